// Arithmetic on vectors of one width, and sums and maxima across their lanes. A NaN goes through all of it.
#pragma once

#include "simd.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// `larger` and `smaller` give their second argument where either is NaN.
template <class T>
INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
#if RNNSEARCH_VECTOR_BYTES == 64 && defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return FloatVector(_mm512_max_ps(__m512(a), __m512(b)));
#endif
  return a > b ? a : b;
}
template <class T>
INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
#if RNNSEARCH_VECTOR_BYTES == 64 && defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return FloatVector(_mm512_min_ps(__m512(a), __m512(b)));
#endif
  return a < b ? a : b;
}

template <class T>
INLINE Vec<T> clamp(Vec<T> v, T low, T high) {
  return smaller<T>(broadcast(high), larger<T>(broadcast(low), v));
}

template <class T>
INLINE Vec<T> bit_cast(Bits<T> bits) {
  Vec<T> v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T>
INLINE Bits<T> bits_of(Vec<T> v) {
  Bits<T> bits;
  memcpy(&bits, &v, sizeof v);
  return bits;
}

template <class T>
INLINE Vec<T> magnitude(Vec<T> v) {
  return bit_cast<T>(bits_of<T>(v) & Simd<T>::all_but_sign);
}

// e^r = 1 + r + r² P(r) on |r| <= ln 2 / 2, P fitted for the smallest largest relative error: 3.1e-9, 3.6e-18.
INLINE FloatVector exp_near_zero(FloatVector r) {
  FloatVector p = r * 0.001381459865f + 0.00836871688f;
  p = p * r + 0.04166838805f;
  p = p * r + 0.1666652063f;
  p = p * r + 0.4999999345f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}
INLINE DoubleVector exp_near_zero(DoubleVector r) {
  DoubleVector p = r * 2.50000616028356667e-8 + 2.7630248379211444e-7;
  p = p * r + 2.75575863738401637e-6;
  p = p * r + 2.48014930989065507e-5;
  p = p * r + 1.98412695065786877e-4;
  p = p * r + 0.00138888889436301129;
  p = p * r + 0.00833333333349446166;
  p = p * r + 0.0416666666665301586;
  p = p * r + 0.166666666666664125;
  p = p * r + 0.500000000000001063;
  p = p * r + 1.0;
  return p * r + 1.0;
}

// e^x for x between the exponents of the smallest and the largest normal number; a NaN stays one.
template <class T>
INLINE Vec<T> exp_in_range(Vec<T> x) {
  using L = Simd<T>;
  // Adding `round` leaves the nearest integer, plus the exponent's bias, in the lowest bits.
  const Vec<T> shifted = x * static_cast<T>(1.44269504088896340736) + L::round;
  const Vec<T> n = shifted - L::round;
  Vec<T> r = x - n * L::ln2_high;
  r = r - n * L::ln2_low;
  return exp_near_zero(r) * bit_cast<T>(bits_of<T>(shifted) << L::mantissa);
}

// e^x, x held within that range.
template <class T>
INLINE Vec<T> exp(Vec<T> x) {
  return exp_in_range<T>(clamp<T>(x, Simd<T>::lowest_exponent, Simd<T>::highest_exponent));
}

// e^{2x} for |x| <= 40; a NaN stays one.
template <class T>
INLINE Vec<T> exp_twice(Vec<T> x) {
  return exp_in_range<T>(x + x);
}
#if RNNSEARCH_VECTOR_BYTES == 64 && defined(__x86_64__)
// 2^{i/16}, less what the shift by 19 in `exp_twice` puts into the mantissa.
alignas(64) inline constexpr uint32_t kSixteenthsOfTwo[16] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d,
};
// 2x = n ln 2 / 16 + 2r: 2^{n/16} from a table that one register holds, and a cubic for e^{2r}, 1.6e-9 off at most.
// That is four multiplications and additions less than `exp_in_range`, in what these kernels spend most of their time
// on. ln 2 / 16 is not split in two: rounding it costs 2.8e-9 of |2x|.
template <>
INLINE FloatVector exp_twice<float>(FloatVector x) {
  constexpr float round = 12582912.0f;  // 1.5 · 2^23: leaves the nearest integer in the lowest bits
  const FloatVector shifted = x * (32 * 1.44269504088896340736f) + round;
  const FloatVector n = shifted - round;
  const FloatVector r = x - n * (0.693147180559945309417f / 32);
  FloatVector p = r * 1.333360701f + 2.000065173f;
  p = p * r + 2.0f;
  p = p * r + 1.0f;
  const FloatBits bits = bits_of<float>(shifted);
  const FloatBits root = FloatBits(_mm512_permutexvar_epi32(__m512i(bits), _mm512_load_si512(kSixteenthsOfTwo)));
  return p * bit_cast<float>(root + (bits << 19));
}
#endif

INLINE DoubleVector reciprocal(DoubleVector x) { return 1.0 / x; }
// Of a positive, finite x.
INLINE FloatVector reciprocal(FloatVector x) {
#if RNNSEARCH_VECTOR_BYTES == 64 && defined(__x86_64__)
  const FloatVector estimate = FloatVector(_mm512_rcp14_ps(__m512(x)));
  return estimate + estimate * (1.0f - x * estimate);
#else
  return 1.0f / x;
#endif
}

template <class T>
INLINE Vec<T> sigmoid(Vec<T> x) {
  return static_cast<T>(1) / (exp<T>(-x) + 1);
}
// 1 - 2/(1 + e^{2x}) loses the small ones' relative accuracy, never more than an epsilon of 1.
template <class T>
INLINE Vec<T> tanh(Vec<T> x) {
  return 1 - 2 / (exp<T>(x + x) + 1);
}

// ---- sums and maxima across lanes ----

template <int N, int... Lane>
struct MakeLanes : MakeLanes<N - 1, N - 1, Lane...> {};
template <int... Lane>
struct MakeLanes<0, Lane...> {
  // Where result lane l comes from when a and b hold items of `segment` lanes and each item is halved.
  template <class T, int segment, int half>
  static INLINE Vec<T> halves(Vec<T> a, Vec<T> b) {
    constexpr int items = sizeof...(Lane) / segment;
    constexpr auto source = [](int lane) constexpr {
      const int item = lane / (segment / 2), within = lane % (segment / 2) + half * (segment / 2);
      return (item % items) * segment + within + (item < items ? 0 : static_cast<int>(sizeof...(Lane)));
    };
#if defined(__clang__)
    return __builtin_shufflevector(a, b, source(Lane)...);
#else
    return __builtin_shuffle(a, b, Bits<T>{source(Lane)...});
#endif
  }
};

template <class T>
struct Sum {
  static INLINE Vec<T> of(Vec<T> a, Vec<T> b) { return a + b; }
};
template <class T>
struct Maximum {
  static INLINE Vec<T> of(Vec<T> a, Vec<T> b) { return larger<T>(a, b); }
};

template <class T, template <class> class Operation, int segment>
INLINE Vec<T> fold(Vec<T> a, Vec<T> b) {
  using Lanes = MakeLanes<lanes<T>>;
  return Operation<T>::of(Lanes::template halves<T, segment, 0>(a, b), Lanes::template halves<T, segment, 1>(a, b));
}

template <class T, template <class> class Operation, int segment>
INLINE Vec<T> fold_down(Vec<T> v) {
  if constexpr (segment > 1) return fold_down<T, Operation, segment / 2>(fold<T, Operation, segment>(v, v));
  return v;
}

// Four vectors at once, each by the same tree: halves are joined until one lane is left.
template <class T, template <class> class Operation>
INLINE void reduce4(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, T* out) {
  constexpr int n = lanes<T>;
  const Vec<T> ab = fold<T, Operation, n>(a, b), cd = fold<T, Operation, n>(c, d);
  if constexpr (n == 2) {
    memcpy(out, &ab, 2 * sizeof(T));
    memcpy(out + 2, &cd, 2 * sizeof(T));
  } else {
    const Vec<T> all = fold_down<T, Operation, n / 4>(fold<T, Operation, n / 2>(ab, cd));
    memcpy(out, &all, 4 * sizeof(T));
  }
}

template <class T>
INLINE void sum4(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, T* out) {
  reduce4<T, Sum>(a, b, c, d, out);
}

template <class T>
INLINE T sum(Vec<T> v) {
  return fold_down<T, Sum, lanes<T>>(v)[0];
}

template <class T>
INLINE T largest(Vec<T> v) {
  return fold_down<T, Maximum, lanes<T>>(v)[0];
}

// A square of vectors: the numbers' places, row and column one after the other, are rotated by a bit until each of the
// two stands where the other was.
template <class T>
INLINE void turn(Vec<T> (&v)[lanes<T>]) {
  constexpr int n = lanes<T>;
  using Lanes = MakeLanes<n>;
  RNNSEARCH_UNROLL
  for (int bit = 1; bit < n; bit *= 2) {
    Vec<T> turned[n];
    RNNSEARCH_UNROLL
    for (int i = 0; i < n; i += 2) {
      turned[i / 2] = Lanes::template halves<T, 2, 0>(v[i], v[i + 1]);
      turned[(i + n) / 2] = Lanes::template halves<T, 2, 1>(v[i], v[i + 1]);
    }
    RNNSEARCH_UNROLL
    for (int i = 0; i < n; ++i) v[i] = turned[i];
  }
}

// A count known at run time, 1 to `most`, as one known to the compiler: f(Count<count>{}).
template <int n>
struct Count {
  static constexpr int value = n;
};
template <int most, class F>
INLINE void choose(int64_t count, const F& f) {
  if constexpr (most == 1) {
    f(Count<1>{});
  } else if (count == most) {
    f(Count<most>{});
  } else {
    choose<most - 1>(count, f);
  }
}

}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
