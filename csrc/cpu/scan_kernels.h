// The contract of the scans' kernels, beside those of kernels.h: products with a weight that was packed once for many
// steps, the attention of one row against one sentence with e^{2 keys} at hand, and the way back through the gates.
//
// Real positions of a sentence are numbered p = 0, 1, … `count`; positions[p] tells where they stand. What is per
// position is kept by p, in tiles of kPositionTile.
#pragma once

#include "types.h"

namespace rnnsearch {

inline constexpr int64_t kPositionTile = 4;

// Outputs [begin, end) and inputs [input_begin, input_end) of a packed weight take their values from `weight`, which
// is (outputs, inputs) or, transposed, (inputs, outputs), and whose first element is that of `begin`, `input_begin`.
template <class S>
struct PackWeightArgs {
  const S* weight;
  int64_t stride;
  bool transposed;
  int64_t I;
  int64_t begin, end, input_begin, input_end;
  Accumulate<S>* packed;
};

// x as the panels take it: in each slot a pair of inputs, rounded to the storage type. An odd last input is paired with
// zero.
template <class T>
struct PairRowsArgs {
  const T* x;
  int64_t x_stride;
  int64_t begin, end, I;  // rows
  T* pairs;               // rows x slots
};

// y = x Wᵀ + bias for panels [panel_begin, panel_end) of a packed weight W with O outputs, or y += x Wᵀ.
template <class T>
struct PanelArgs {
  const T* x;
  int64_t x_stride;
  int64_t rows, I, O;  // I: slots of a panel
  const T* packed;
  const T* bias;  // O elements, or null
  bool add;
  T* y;
  int64_t y_stride;
  int64_t panel_begin, panel_end;
};

// One sentence's keys as the scan wants them.
template <class S>
struct PreparedKeys {
  const S* keys;
  int64_t key_stride;
  const int32_t* positions;
  int64_t count;
  int64_t A;
  Accumulate<S>* exponential;  // count x padded: e^{2 keys}
  uint8_t* is_small;           // by tile of positions: whether all |key| <= 9
  int64_t padded;
};

// One row's query: padded, with e^{2 query} and whether all |query| <= 9.
template <class T>
struct PreparedQuery {
  const T* query;
  const T* exponential;
  bool is_small;
};

// scores[p] as those of kernels.h for p in [begin, end), begin a multiple of the tile.
template <class S>
struct ScanScoreArgs {
  PreparedKeys<S> keys;
  PreparedQuery<Accumulate<S>> query;
  const Accumulate<S>* score_weight;
  int64_t begin, end;
  Accumulate<S>* scores;
};

// out[p] = vector · values[positions[p]] for p in [begin, end).
template <class S>
struct DotArgs {
  const Accumulate<S>* vector;
  const S* values;
  int64_t stride;
  int64_t features;
  const int32_t* positions;
  int64_t begin, end;
  Accumulate<S>* out;
};

// grad_query_a = Σ_p grad_scores[p] v_a (1 - tanh²(query_a + keys_pa)) for a in [begin, end), multiples of a vector.
template <class S>
struct GradQueryArgs {
  PreparedKeys<S> keys;
  PreparedQuery<Accumulate<S>> query;
  const Accumulate<S>* score_weight;
  const Accumulate<S>* grad_scores;
  int64_t begin, end;
  Accumulate<S>* grad_query;
};

// Of one sentence, for features [begin, end):
//   grad_keys_pa = v_a Σ_t grad_scores[t, p] (1 - tanh²(query_ta + keys_pa)),
//   grad_score_weight_a = Σ_t Σ_p grad_scores[t, p] tanh(query_ta + keys_pa).
template <class S>
struct GradKeysArgs {
  PreparedKeys<S> keys;
  const Accumulate<S>* queries;  // T x A rows
  const int64_t* query_rows;
  int64_t query_stride;
  int64_t steps;
  bool queries_are_small;
  const Accumulate<S>* score_weight;
  const Accumulate<S>* grad_scores;  // by tile of positions: T x kPositionTile
  int64_t begin, end;
  Accumulate<S>* scratch;            // steps vectors
  S* grad_keys;                      // (S, A), the rows of padded positions left alone
  Accumulate<S>* grad_score_weight;  // A
};

// sums[i] = Σ values[row, i] for columns i in [begin, end), row after row.
template <class T>
struct ColumnSumArgs {
  const T* values;
  int64_t stride;
  int64_t rows;
  int64_t begin, end;
  T* sums;
};

// One row of the way back through a GRU step. grads holds [n | r | z | r ∘ n] where the reset comes after the product
// and [n | r | z] where it comes before: the gradients of the gates' inputs, and of u.
template <class T>
struct GateBackwardArgs {
  const T* grad_state;      // from later steps
  const T* grad_new_state;  // from outside
  const T* gates;
  const T* state;  // before the step
  const T* grad_reset_state;
  T* grads;
  T* grad_old_state;  // the part that does not go through a product
  T* reset_state;     // r ∘ state, where the reset comes before the product
  int64_t H;
  bool reset_after;
};

// out = left + right.
template <class S>
struct AddRowsArgs {
  const Accumulate<S>* left;
  const S* right;
  int64_t count;
  Accumulate<S>* out;
};

// Products with a packed weight.
template <class S>
struct PackedProducts {
  using T = Accumulate<S>;
  void (*pack_weight)(const PackWeightArgs<S>& args);
  void (*panels)(const PanelArgs<T>& args);
  // Null where a slot of a panel is one input and x is taken as it is.
  void (*pair_rows)(const PairRowsArgs<T>& args);
};

template <class S>
struct ScanKernels {
  using T = Accumulate<S>;
  int64_t panel_width;
  PackedProducts<S> packed;
  void (*prepare_keys)(const PreparedKeys<S>& args, int64_t begin, int64_t end);
  void (*scores)(const ScanScoreArgs<S>& args);
  void (*dot)(const DotArgs<S>& args);
  void (*grad_query)(const GradQueryArgs<S>& args);
  void (*grad_keys)(const GradKeysArgs<S>& args);
  void (*add_rows)(const AddRowsArgs<S>& args);
  void (*column_sums)(const ColumnSumArgs<T>& args);
  void (*gates_backward)(const GateBackwardArgs<T>& args);
  void (*reset_backward)(const GateBackwardArgs<T>& args);
};
}  // namespace rnnsearch
