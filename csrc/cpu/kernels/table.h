// Fills the table of one instruction set; the last lines of an isa_*.cpp.
#pragma once

#include "attention.h"
#include "gates.h"
#include "linear.h"
#include "topk.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

template <class S>
constexpr KernelTable<S> table() {
  using T = Accumulate<S>;
  return {{kRowBlock, packed_bytes<S>, pack<S>, linear<S>},
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
          top_k<S>};
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch

#if defined(RNNSEARCH_TARGET) && defined(__clang__)
#pragma clang attribute pop
#endif
