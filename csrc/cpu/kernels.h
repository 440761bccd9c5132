// The contract between the kernels, which are compiled once for each instruction set, and their launchers.
//
// Kernels know pointers, sizes and strides. Each works on a range of its task, so that the launcher can spread the
// task over threads, and no result depends on how it is cut up: a row's arithmetic is the same alone and in any
// batch. Strides count elements; the innermost stride is always 1.
//
// Sizes: N rows, B sentences, S source length, A attention, M memory, H hidden, I inputs, O outputs, K candidates.
#pragma once

#include <stdint.h>

#include "scan_kernels.h"

namespace rnnsearch {

// y = x weightᵀ + bias over rows [row_begin, row_end) and outputs [output_begin, output_end). x is packed by `pack`;
// row_begin is a multiple of row_block. y[0] is row_begin's output_begin.
template <class S>
struct LinearArgs {
  const void* packed;
  int64_t I;
  Matrix<S> weight;
  const S* bias;  // or null
  Accumulate<S>* y;
  int64_t y_stride;
  int64_t row_begin, row_end, output_begin, output_end;
  void* panel;  // scratch of `panel_bytes`
};

// One sentence's key positions [begin, end) of its list of real ones, against the rows that attend to it.
// scores[row * score_stride + p] = -2 Σ_a v_a / (1 + e^{2(query_a + keys_a)}), which is v · tanh(query + keys) less
// Σ v: a constant that the softmax takes out. query and exp_query = e^{2 query} are rows of `padded` elements.
template <class S>
struct ScoreArgs {
  const int64_t* rows;
  int64_t row_count;
  const Accumulate<S>* query;
  const Accumulate<S>* exp_query;
  const uint8_t* query_is_small;
  const Accumulate<S>* score_weight;
  int64_t padded;
  const S* keys;
  int64_t position_stride;
  int64_t A;
  const int32_t* positions;
  int64_t begin, end;
  Accumulate<S>* scores;
  int64_t score_stride;
  // Where not null: rows of values, one for each key, to bring into the second-level cache meanwhile, a vector of keys'
  // share at a time.
  const S* ahead;
  int64_t ahead_stride, ahead_share;
};

// out[row] = Σ_p weights[row, p] values[positions[p]] over features [begin, end), for the rows of one sentence.
template <class S>
struct WeightedSumArgs {
  const int64_t* rows;
  int64_t row_count;
  const Accumulate<S>* weights;
  int64_t weight_stride;
  const int32_t* positions;
  int64_t count;
  const S* values;
  int64_t position_stride;
  int64_t begin, end;
  Accumulate<S>* out;
  int64_t out_stride;
};

// One sentence of the attention's backward pass.
template <class S>
struct AttentionBackwardArgs {
  const S* grad_context;
  const Accumulate<S>* grad_attn_weights;
  const Accumulate<S>* attn_weights;
  const Accumulate<S>* query;         // padded
  const Accumulate<S>* score_weight;  // padded
  const S* keys;
  int64_t key_stride;
  const S* memory;
  int64_t memory_stride;
  const bool* ignore;  // or null
  int64_t S_, A, M;
  Accumulate<S>* grad_scores;        // S: scratch
  Accumulate<S>* grad_query;         // A
  Accumulate<S>* grad_score_weight;  // A: this sentence's share
  S* grad_keys;                      // S x A
  S* grad_memory;                    // S x M
};

// One row of a GRU step. input_gates and hidden_gates hold r, z, n; hidden_candidate is u_n, which is the n part of
// hidden_gates where the reset comes after the product.
template <class S>
struct GateArgs {
  const void* input_gates;
  bool input_is_storage;
  const Accumulate<S>* context_gates;  // or null
  const Accumulate<S>* hidden_gates;
  const Accumulate<S>* hidden_candidate;
  const Accumulate<S>* state;
  Accumulate<S>* reset_state;  // r ∘ state: the result of `reset_row`
  Accumulate<S>* new_state;    // the results of `gru_row`
  Accumulate<S>* gates;
  int64_t H;
  bool reset_after;
};

// The best K of a row so far, best first; ids of equal values ascend.
template <class S>
struct TopK {
  Accumulate<S>* values;
  int64_t* ids;
  int64_t count;
};

// One row's logits of tokens [first_id, first_id + count).
template <class S>
struct TopKArgs {
  const Accumulate<S>* logits;
  int64_t first_id, count, k;
  const int64_t* banned;
  int64_t banned_count;
  Accumulate<S>* maximum;  // of these logits
  Accumulate<S>* sum;      // Σ e^{logit - maximum}
};

// What one row's cross-entropy is made of.
template <class S>
struct LossRow {
  Accumulate<S> maximum;  // of the logits
  Accumulate<S> sum;      // Σ e^{logit - maximum}
  Accumulate<S> target_logit;
  Accumulate<S> logit_sum;  // Σ logit, where ε is not 0
};

// One row of logits, and in their place afterwards softmax(logits) - (1 - ε) [v = target] - ε / count.
template <class S>
struct LossRowArgs {
  Accumulate<S>* logits;
  int64_t count, target;
  Accumulate<S> label_smoothing;
  LossRow<S>* result;
};

// out (columns, rows) = xᵀ, sums (columns) = Σ over the rows, one after the other.
template <class T>
struct TransposeArgs {
  const T* x;
  int64_t x_stride;
  int64_t rows, columns;
  T* out;
  int64_t out_stride;
  T* sums;
};

// Products of few rows with a weight.
template <class S>
struct ProductKernels {
  int64_t row_block;  // rows that `linear` wants together
  int64_t (*packed_bytes)(int64_t rows, int64_t inputs);
  // Rows [begin, end), begin a multiple of row_block, into their place in `packed`.
  void (*pack)(const Rows& rows, int64_t inputs, int64_t begin, int64_t end, void* packed);
  void (*linear)(const LinearArgs<S>& args);
  // What `linear` wants as scratch for so many rows; null where it wants none.
  int64_t (*panel_bytes)(int64_t rows, int64_t inputs) = nullptr;
  // Whether they run on a matrix unit, which multiplies storage faster than anything multiplies what it is widened to.
  bool matrix_unit = false;
};

// Everything that one instruction set compiles for one storage type.
template <class S>
struct KernelTable {
  using T = Accumulate<S>;
  ProductKernels<S> products;
  int64_t (*padded)(int64_t features);
  // The query as `scores` wants it: padded rows, e^{2 query} and whether all |query| <= 9.
  void (*prepare_query)(const void* query, bool is_storage, int64_t A, T* padded, T* exponential, uint8_t* is_small);
  void (*prepare_score_weight)(const S* weight, int64_t A, T* padded);
  void (*scores)(const ScoreArgs<S>& args);
  // softmax in place over count elements; zero elements stay so.
  void (*softmax)(T* scores, int64_t count);
  void (*weighted_sum)(const WeightedSumArgs<S>& args);
  void (*attention_backward)(const AttentionBackwardArgs<S>& args);
  void (*to_storage)(const T* from, S* to, int64_t count);
  void (*reset_row)(const GateArgs<S>& args);
  void (*gru_row)(const GateArgs<S>& args);
  void (*top_k)(const TopKArgs<S>& args, TopK<S>& best);
  void (*loss_row)(const LossRowArgs<S>& args);
  void (*transpose_and_sum)(const TransposeArgs<T>& args);
  ScanKernels<S> scan;
};

// An instruction set this was compiled for.
struct Isa {
  const char* name;
  KernelTable<float> float32;
  KernelTable<double> float64;
  KernelTable<BFloat16> bfloat16;
};

extern const Isa kBaseline;
#if defined(__x86_64__)
extern const Isa kX86V3, kX86V4;
// The matrix unit's products; everything else of its instruction set is x86-64-v4's.
extern const ProductKernels<BFloat16> kAmxProducts;
// Products with `vdpbf16ps`, of weights in place and of a scan's packed ones; everything else is x86-64-v4's.
extern const ProductKernels<BFloat16> kAvx512Bf16Products;
extern const PackedProducts<BFloat16> kAvx512Bf16Packed;
#endif
}  // namespace rnnsearch
