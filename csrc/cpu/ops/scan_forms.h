// The two forms of what the context adds to the gates' input,
//   C Σ_j α_j memory_j = Σ_j α_j memory_gates_j   with memory_gates = memory Cᵀ (B, S, 3H):
// a product a step, or one product before the loop. Which is the cheaper one hangs on the sizes.
#pragma once

#include "../types.h"

namespace rnnsearch {

// Products with C: `each_step` of T rows where they are in the loop, `each_position` of S where they are outside it.
struct FormCosts {
  int each_step, each_position;
};
inline constexpr FormCosts kForwardCosts = {1, 1};
// In the loop dcontext = Cᵀ dg, after it dC = Σ_t dg_tᵀ context_t; or memory_gates again, dC = dmemory_gatesᵀ memory
// and dmemory_gates C.
inline constexpr FormCosts kBackwardCosts = {2, 3};

// Whether memory_gates are the cheaper form: multiplications of a sentence, over 3H. They are M for each product, and
// for each step one more for each position, since the loop then sums 3H numbers there and something else M of them.
// One of a sum, which has to read (and widen) its operand, counts as `sum` of a product's: as fits the faster form at
// nineteen sizes on Zen 4. The sizes of a sentence decide alone, so that its results are the same bits in any batch.
template <class S>
bool memory_gates_pay(FormCosts costs, int64_t source, int64_t steps, int64_t M) {
  constexpr int64_t sum = sizeof(S) < sizeof(Accumulate<S>) ? 12 : 3;
  return steps * costs.each_step * M > source * costs.each_position * M + sum * steps * source;
}
}  // namespace rnnsearch
