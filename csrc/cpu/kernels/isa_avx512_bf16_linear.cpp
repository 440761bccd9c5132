// y = x weightᵀ + bias with bfloat16 weights, by `vdpbf16ps`, which sums pairs of products. In dot form, as
// linear.h: the weights are read where they lie, 32 inputs of an output at a time. Rows that are stored in bfloat16
// count as they are; others are split into two bfloat16 numbers, x = high + low, so that about 16 bits of them count.
// The choice is the whole matrix's, and no sum is shared: a row's result does not depend on which rows stand beside it.
#if defined(__x86_64__)
#define RNNSEARCH_ISA avx512_bf16
#define RNNSEARCH_VECTOR_BYTES 64
#define RNNSEARCH_REGISTERS 32
#define RNNSEARCH_TARGET "arch=x86-64-v4,avx512bf16"
#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {
namespace {

constexpr int64_t kDepth = 32;   // inputs of a vector
constexpr int64_t kHeader = 32;  // elements before a row: the first says whether a low half follows the high one
constexpr int64_t kBlock = 48;
constexpr int kOutputTile = 4;
constexpr int kRowTile = 6;
#define RNNSEARCH_UNROLL _Pragma("GCC unroll 8")

int64_t width(int64_t inputs) { return (inputs + kDepth - 1) / kDepth * kDepth; }
int64_t row_stride(int64_t inputs) { return kHeader + 2 * width(inputs); }

int64_t packed_bytes(int64_t rows, int64_t inputs) {
  return rows * row_stride(inputs) * static_cast<int64_t>(sizeof(BFloat16));
}

void pack(const Rows& rows, int64_t inputs, int64_t begin, int64_t end, void* packed) {
  const int64_t wide = width(inputs);
  for (int64_t r = begin; r < end; ++r) {
    BFloat16* header = static_cast<BFloat16*>(packed) + r * row_stride(inputs);
    header->bits = !rows.is_storage;
    BFloat16 *high = header + kHeader, *low = high + wide;
    for (int64_t i = 0; i < wide; i += 16) {
      FloatVector x = {};
      if (i < inputs) x = load_either<BFloat16>(rows.data, rows.is_storage, r * rows.stride + i, inputs - i);
      if (rows.is_storage) {
        store(high + i, x);
        continue;
      }
      const FloatVector truncated = bit_cast<float>(bits_of<float>(x) & static_cast<int32_t>(0xffff0000));
      // An infinity is all in its high half: inf - inf would be NaN. So is a NaN, whose upper bits may be infinity's.
      const FloatVector first = x == x ? truncated : x;
      const FloatVector rest = magnitude<float>(x) == broadcast(__builtin_inff()) ? FloatVector{} : x - truncated;
      store(high + i, first);
      store(low + i, rest);
    }
  }
}

INLINE __m512i load_pairs(const BFloat16* p) { return _mm512_loadu_si512(p); }
INLINE __m512i load_pairs(const BFloat16* p, int64_t count) {
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << count) - 1), p);
}

template <int rows, int outputs>
INLINE void add_products(__m512 (&total)[rows][outputs], const BFloat16* x, int64_t x_stride,
                         const __m512i (&w)[outputs]) {
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    const __m512bh v = __m512bh(load_pairs(x + r * x_stride));
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) total[r][o] = _mm512_dpbf16_ps(total[r][o], v, __m512bh(w[o]));
  }
}

// Meanwhile the rows of weights from `next` on are brought into the second-level cache.
template <int rows, int outputs, bool split>
void dot_tile(const BFloat16* x, int64_t I, const BFloat16* weight, int64_t stride, const BFloat16* next, float* y,
              int64_t y_stride, const float* bias) {
  const int64_t x_stride = row_stride(I), low = width(I);
  __m512 total[rows][outputs];
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) total[r][o] = _mm512_setzero_ps();
  }
  __m512i w[outputs];
  int64_t i = 0;
  for (; i + kDepth <= I; i += kDepth) {
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) {
      w[o] = load_pairs(weight + o * stride + i);
      if (next != nullptr) __builtin_prefetch(next + o * stride + i, 0, 2);
    }
    add_products(total, x + i, x_stride, w);
    if constexpr (split) add_products(total, x + low + i, x_stride, w);
  }
  if (i < I) {
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) w[o] = load_pairs(weight + o * stride + i, I - i);
    add_products(total, x + i, x_stride, w);
    if constexpr (split) add_products(total, x + low + i, x_stride, w);
  }
  const FloatVector zero = {};
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    float sums[4];
    if constexpr (outputs == kOutputTile) {
      sum4<float>(FloatVector(total[r][0]), FloatVector(total[r][1]), FloatVector(total[r][2]),
                  FloatVector(total[r][3]), sums);
    } else {
      sum4<float>(FloatVector(total[r][0]), zero, zero, zero, sums);
    }
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) y[r * y_stride + o] = sums[o] + bias[o];
  }
}

template <int outputs, bool split>
void dot_rows(int64_t rows, const BFloat16* x, int64_t I, const BFloat16* weight, int64_t stride, const BFloat16* next,
              float* y, int64_t y_stride, const float* bias) {
  const int64_t tiles = (rows + kRowTile - 1) / kRowTile;
  for (int64_t tile = 0, r = 0; tile < tiles; ++tile) {
    const int64_t take = rows / tiles + (tile < rows % tiles);
    choose<kRowTile>(take, [&](auto count) {
      dot_tile<decltype(count)::value, outputs, split>(x + r * row_stride(I), I, weight, stride,
                                                       tile == 0 ? next : nullptr, y + r * y_stride, y_stride, bias);
    });
    r += take;
  }
}

template <bool split>
void linear_of(const LinearArgs<BFloat16>& args, const BFloat16* x) {
  const int64_t rows = args.row_end - args.row_begin, stride = args.weight.stride;
  for (int64_t o = args.output_begin; o < args.output_end;) {
    const bool whole = o + kOutputTile <= args.output_end;
    const int64_t take = whole ? kOutputTile : 1;
    const BFloat16* weight = args.weight.data + o * stride;
    const BFloat16* next = o + take + kOutputTile <= args.output_end ? weight + take * stride : nullptr;
    float bias[kOutputTile] = {};
    if (args.bias != nullptr)
      for (int64_t b = 0; b < take; ++b) bias[b] = scalar(args.bias[o + b]);
    float* y = args.y + (o - args.output_begin);
    if (whole)
      dot_rows<kOutputTile, split>(rows, x, args.I, weight, stride, next, y, args.y_stride, bias);
    else
      dot_rows<1, split>(rows, x, args.I, weight, stride, next, y, args.y_stride, bias);
    o += take;
  }
}

void linear(const LinearArgs<BFloat16>& args) {
  const BFloat16* header = static_cast<const BFloat16*>(args.packed) + args.row_begin * row_stride(args.I);
  if (header->bits != 0)
    linear_of<true>(args, header + kHeader);
  else
    linear_of<false>(args, header + kHeader);
}
}  // namespace
}  // namespace RNNSEARCH_ISA

constexpr ProductKernels<BFloat16> kAvx512Bf16Products = {avx512_bf16::kBlock, avx512_bf16::packed_bytes,
                                                          avx512_bf16::pack, avx512_bf16::linear, false};
}  // namespace rnnsearch
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
