// Fills the table of one instruction set; the last lines of an isa_*.cpp.
#pragma once

#include "attention.h"
#include "gates.h"
#include "linear.h"
#include "loss.h"
#include "panel.h"
#include "scan.h"
#include "topk.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

template <class S>
constexpr KernelTable<S> table() {
  using T = Accumulate<S>;
  return {products<S>(),
          padded<T>,
          prepare_query<S>,
          prepare_score_weight<S>,
          scores<S>,
          softmax<S>,
          weighted_sum<S>,
          attention_backward<S>,
          to_storage<S>,
          reset_row<S>,
          gru_row<S>,
          top_k<S>,
          loss_row<S>,
          transpose_and_sum<T>,
          {kPanelVectors * lanes<T>,
           {pack_weight<S>, panels<T>, nullptr},
           prepare_keys<S>,
           scan_scores<S>,
           dot<S>,
           grad_query<S>,
           grad_keys<S>,
           add_rows<S>,
           column_sums<T>,
           gates_backward<T>,
           reset_backward<T>}};
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch

#if defined(RNNSEARCH_TARGET) && defined(__clang__)
#pragma clang attribute pop
#endif
