// Vectors of one width, in and out of memory. Included by one isa_*.cpp after it has named its instruction set;
// everything here is inlined and lives in that instruction set's own namespace, so that no function compiled for one
// machine can be linked into another's kernels. For the same reason no C++ library header is used below this line.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../kernels.h"

// The target holds for every function from here on, and for none of the headers above.
#if defined(RNNSEARCH_TARGET)
#define RNNSEARCH_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define RNNSEARCH_SET_TARGET(name) \
  RNNSEARCH_PRAGMA(clang attribute push(__attribute__((target(name))), apply_to = function))
#else
#define RNNSEARCH_SET_TARGET(name) RNNSEARCH_PRAGMA(GCC target(name))
#endif
RNNSEARCH_SET_TARGET(RNNSEARCH_TARGET)
#endif

#define INLINE inline __attribute__((always_inline))
// Arrays of vectors live in registers only where every loop over them is unrolled from the start.
#define RNNSEARCH_UNROLL _Pragma("GCC unroll 16")

namespace rnnsearch {
namespace RNNSEARCH_ISA {

typedef float FloatVector __attribute__((vector_size(RNNSEARCH_VECTOR_BYTES)));
typedef int32_t FloatBits __attribute__((vector_size(RNNSEARCH_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(RNNSEARCH_VECTOR_BYTES)));
typedef int64_t DoubleBits __attribute__((vector_size(RNNSEARCH_VECTOR_BYTES)));
typedef uint32_t WideBits __attribute__((vector_size(RNNSEARCH_VECTOR_BYTES)));
typedef uint16_t NarrowBits __attribute__((vector_size(RNNSEARCH_VECTOR_BYTES / 2)));

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using Vector = FloatVector;
  using Bits = FloatBits;
  static constexpr int mantissa = 23;
  static constexpr int32_t all_but_sign = 0x7fffffff;
  static constexpr float round = 12582912.0f + 127;  // 1.5 · 2^23 and the exponent's bias
  static constexpr float lowest_exponent = -87.0f, highest_exponent = 88.0f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <>
struct Simd<double> {
  using Vector = DoubleVector;
  using Bits = DoubleBits;
  static constexpr int mantissa = 52;
  static constexpr int64_t all_but_sign = 0x7fffffffffffffff;
  static constexpr double round = 6755399441055744.0 + 1023;  // 1.5 · 2^52 and the exponent's bias
  static constexpr double lowest_exponent = -708.0, highest_exponent = 709.0;
  static constexpr double ln2_high = 0.693145751953125, ln2_low = 1.42860682030941723212e-6;
};

template <class T>
using Vec = typename Simd<T>::Vector;
template <class T>
using Bits = typename Simd<T>::Bits;
template <class T>
inline constexpr int lanes = RNNSEARCH_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
INLINE int64_t padded(int64_t count) {
  return (count + lanes<T> - 1) / lanes<T> * lanes<T>;
}

template <class T>
INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// ---- loads and stores: S as stored, T as computed ----

template <class T>
INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
INLINE void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof v);
}

INLINE FloatVector widen(NarrowBits narrow) {
  const WideBits wide = __builtin_convertvector(narrow, WideBits) << 16;
  FloatVector v;
  memcpy(&v, &wide, sizeof v);
  return v;
}

// Round to nearest even; a NaN stays one.
INLINE NarrowBits narrow(FloatVector v) {
  WideBits wide;
  memcpy(&wide, &v, sizeof v);
  const WideBits rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  const WideBits quiet = (wide >> 16) | 0x40;
  const FloatBits is_nan = v != v;
  return __builtin_convertvector(is_nan ? quiet : rounded, NarrowBits);
}

INLINE FloatVector load(const BFloat16* p) {
  NarrowBits narrow;
  memcpy(&narrow, p, sizeof narrow);
  return widen(narrow);
}

INLINE void store(BFloat16* p, FloatVector v) {
  const NarrowBits bits = narrow(v);
  memcpy(p, &bits, sizeof bits);
}

// `count` elements, at most a vector's; the rest are zero and are not read.
template <class S>
INLINE Vec<Accumulate<S>> load(const S* p, int64_t count) {
  if (count >= lanes<Accumulate<S>>) return load(p);
  S part[lanes<Accumulate<S>>] = {};
  memcpy(part, p, static_cast<size_t>(count) * sizeof(S));
  return load(part);
}

template <class S>
INLINE void store(S* p, Vec<Accumulate<S>> v, int64_t count) {
  if (count >= lanes<Accumulate<S>>) return store(p, v);
  S part[lanes<Accumulate<S>>];
  store(part, v);
  memcpy(p, part, static_cast<size_t>(count) * sizeof(S));
}

#if RNNSEARCH_VECTOR_BYTES == 64 && defined(__x86_64__)
template <>
INLINE FloatVector load<float>(const float* p, int64_t count) {
  if (count >= 16) return load(p);
  return FloatVector(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
}
template <>
INLINE FloatVector load<BFloat16>(const BFloat16* p, int64_t count) {
  if (count >= 16) return load(p);
  return widen(NarrowBits(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p)));
}
#endif

// Rows whose type is known only at run time.
template <class S>
INLINE Vec<Accumulate<S>> load_either(const void* p, bool is_storage, int64_t offset, int64_t count) {
  return is_storage ? load(static_cast<const S*>(p) + offset, count)
                    : load(static_cast<const Accumulate<S>*>(p) + offset, count);
}

INLINE float scalar(float x) { return x; }
INLINE double scalar(double x) { return x; }
INLINE float scalar(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
