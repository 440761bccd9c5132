// The GRU's hidden products and gates for a block of rows, as decoder_step and gru_scan use them.
#pragma once

#include "launch.h"

namespace rnnsearch {

template <class S>
struct Recurrence {
  using T = Accumulate<S>;
  Matrix<S> weight;  // (3H, H)
  const S* bias;     // or null
  int64_t H;
  bool reset_after;

  // One row's tensors, chosen by the caller.
  struct Row {
    const void* input_gates;
    bool input_is_storage;
    const T* context_gates;  // or null
    const T* state;
    const T* masked_state;  // what the products read of it
    T* new_state;
    T* gates;
  };

  // `packed` holds the masked states; row(n) tells where row n lies.
  template <class F>
  void advance(const PackedRows<S>& packed, int64_t N, const F& row) const {
    const KernelTable<S>& k = kernels<S>();
    const Scratch<T> hidden(N * 3 * H), reset_state(reset_after ? 0 : N * H);
    packed.product(weight, bias, reset_after ? 3 * H : 2 * H, hidden.data(), 3 * H);
    const auto for_rows = [&](void (*kernel)(const GateArgs<S>&), const T* Row::* state) {
      parallel(N, 40 * H, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const Row at = row(n);
          const T* u = hidden.data() + n * 3 * H;
          kernel({at.input_gates, at.input_is_storage, at.context_gates, u, u + 2 * H, at.*state,
                  reset_state.data() + (reset_after ? 0 : n * H), at.new_state, at.gates, H, reset_after});
        }
      });
    };
    if (!reset_after) {
      for_rows(k.reset_row, &Row::masked_state);
      const Matrix<S> candidate = {weight.data + 2 * H * weight.stride, weight.stride};
      PackedRows<S>({reset_state.data(), H, false}, N, H)
          .product(candidate, bias == nullptr ? nullptr : bias + 2 * H, H, hidden.data() + 2 * H, 3 * H);
    }
    for_rows(k.gru_row, &Row::state);
  }
};
}  // namespace rnnsearch
