// What the bindings of gru_scan and its backward op share.
#pragma once

#include "../launch_gru.h"
#include "call.h"

namespace rnnsearch::cuda {

inline Plan plan_gru(const Call& call, bool backward, bool reset_after) {
  return plan_gru_scan({backward, call.planned_storage(), reset_after, call['B'], call['T'], call['H']}, call.limits());
}

inline GruShape shape_of(const Call& call, const Plan& plan, const OptionalTensor& lengths, bool reverse,
                         bool reset_after) {
  return {static_cast<int>(call['B']),
          static_cast<int>(call['T']),
          static_cast<int>(call['H']),
          static_cast<int>(plan.rows),
          plan.row_groups,
          static_cast<int>(plan.units),
          plan.unit_groups,
          reverse,
          reset_after,
          pointer<int64_t>(lengths),
          plan.cluster > 0};
}

// The gradient of hidden_weight from those of u, (B T, 3H), and the states that entered, of n's part after the reset.
inline Tensor grad_of_hidden_weight(const Call& call, const Tensor& grad_hidden, const Tensor& entering,
                                    const Tensor& reset, bool reset_after) {
  using torch::stable::narrow;
  const int64_t H = call['H'];
  Tensor grad = call.empty({3 * H, H}, call.storage()), all = grad_hidden;
  if (reset_after) {
    product_of_columns(grad_hidden, entering, grad);
  } else {
    product_of_columns(narrow(all, 1, 0, 2 * H), entering, narrow(grad, 0, 0, 2 * H));
    product_of_columns(narrow(all, 1, 2 * H, H), reset, narrow(grad, 0, 2 * H, H));
  }
  return grad;
}

// Kernels are compiled in gru_scan.cu alone.
#define RNNSEARCH_GRU(STORAGE)                                                                        \
  extern template const char* launch_gru_scan(const GruScanArguments<STORAGE>&, int, Stream);         \
  extern template const char* launch_gru_scan(const GruScanBackwardArguments<STORAGE>&, int, Stream); \
  extern template const char* launch_gru_entering(const GruEnteringArguments<STORAGE>&, Stream);
RNNSEARCH_GRU(float)
RNNSEARCH_GRU(bfloat16)
RNNSEARCH_GRU(float16)
#undef RNNSEARCH_GRU

}  // namespace rnnsearch::cuda
