// Products with bfloat16 weights on `vdpbf16ps`: each lane takes two products of bfloat16 numbers a time, twice the
// rate of float32, and nothing has to be widened. x is rounded to bfloat16, as PyTorch itself does with bfloat16
// weights and as a GPU's tensor cores want it: a second half, as on AMX, would cost as much again, which is what the
// widened weights cost. Sums are float32, along the inputs. The instruction takes subnormal numbers (below 1.2e-38) for
// zero, in its operands and in its sums.
#if defined(__x86_64__)
#define RNNSEARCH_ISA avx512_bf16
#define RNNSEARCH_VECTOR_BYTES 64
#define RNNSEARCH_REGISTERS 32
#define RNNSEARCH_TARGET "arch=x86-64-v4,avx512bf16"
#include "dot.h"
#include "panel.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {
namespace {

// Pairs of inputs are multiplied and added to one lane.
struct PairedDot {
  using Storage = BFloat16;
  using T = float;
  using Packed = BFloat16;
  using Input = __m512bh;
  using Weight = __m512bh;
  static constexpr int64_t width = 32;
  static INLINE int64_t row_size(int64_t inputs) { return (inputs + width - 1) / width * width; }
  static INLINE Input input(const BFloat16* x) { return (__m512bh)_mm512_loadu_si512(x); }
  static INLINE Weight weight(const BFloat16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static INLINE Weight weight(const BFloat16* p, int64_t count) {
    return (__m512bh)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << count) - 1), p);
  }
  static INLINE void add(FloatVector& total, const Input& x, const Weight& w) {
    total = FloatVector(_mm512_dpbf16_ps(__m512(total), x, w));
  }
  static INLINE void pack_row(const Rows& rows, int64_t r, int64_t inputs, BFloat16* packed) {
    for (int64_t i = 0; i < row_size(inputs); i += lanes<float>) {
      FloatVector x = {};
      if (i < inputs) x = load_either<BFloat16>(rows.data, rows.is_storage, r * rows.stride + i, inputs - i);
      store(packed + i, x);
    }
  }
};

// The packed weights of a scan.
struct TwoByTwo {
  static INLINE FloatVector slot(const float* x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return FloatVector(_mm512_castsi512_ps(_mm512_set1_epi32(pair)));
  }
  static INLINE FloatVector add(FloatVector total, FloatVector x, FloatVector weight) {
    return FloatVector(_mm512_dpbf16_ps(__m512(total), reinterpret_cast<__m512bh>(__m512(weight)),
                                        reinterpret_cast<__m512bh>(__m512(x))));
  }
};

// As pack_weight of panel.h, with the inputs 2i and 2i + 1 side by side in slot i.
void pack_pairs(const PackWeightArgs<BFloat16>& args) {
  constexpr int64_t width = kPanelVectors * lanes<float>;
  const int64_t slots = (args.I + 1) / 2;
  BFloat16* packed = reinterpret_cast<BFloat16*>(args.packed);
  const int64_t step_o = args.transposed ? 1 : args.stride, step_i = args.transposed ? args.stride : 1;
  constexpr int64_t depth = 32;  // inputs that stay in the first-level cache while all outputs of a panel pass
  for (int64_t o = args.begin; o < args.end;) {
    const int64_t lane = o % width, take = args.end - o < width - lane ? args.end - o : width - lane;
    BFloat16* panel = packed + (o / width * slots * width + lane) * 2;
    const BFloat16* from = args.weight + (o - args.begin) * step_o - args.input_begin * step_i;
    for (int64_t low = args.input_begin; low < args.input_end; low += depth) {
      const int64_t high = args.input_end - low < depth ? args.input_end : low + depth;
      if (args.transposed) {
        for (int64_t i = low; i < high; ++i)
          for (int64_t l = 0; l < take; ++l) panel[(i / 2 * width + l) * 2 + i % 2] = from[l + i * step_i];
      } else {
        for (int64_t l = 0; l < take; ++l)
          for (int64_t i = low; i < high; ++i) panel[(i / 2 * width + l) * 2 + i % 2] = from[l * step_o + i];
      }
    }
    o += take;
  }
}

void pair_rows(const PairRowsArgs<float>& args) {
  const int64_t slots = (args.I + 1) / 2;
  for (int64_t row = args.begin; row < args.end; ++row) {
    const float* x = args.x + row * args.x_stride;
    BFloat16* pairs = reinterpret_cast<BFloat16*>(args.pairs + row * slots);
    for (int64_t i = 0; i < args.I; i += lanes<float>) {
      const int64_t left = args.I - i;
      // The zero beside an odd last input is one of those that `load` fills the vector with.
      store(pairs + i, load(x + i, left), left < lanes<float> ? left + left % 2 : left);
    }
  }
}
}  // namespace
}  // namespace RNNSEARCH_ISA

constexpr ProductKernels<BFloat16> kAvx512Bf16Products = avx512_bf16::products<avx512_bf16::PairedDot>();
constexpr PackedProducts<BFloat16> kAvx512Bf16Packed = {
    avx512_bf16::pack_pairs, avx512_bf16::panels<float, avx512_bf16::TwoByTwo>, avx512_bf16::pair_rows};
}  // namespace rnnsearch
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
