// decoder_step: attention over the memory with query_weight state, then the GRU on input_gates + context_weight
// context.
#include "attend.h"
#include "recurrence.h"

namespace rnnsearch {

std::tuple<Tensor, Tensor, Tensor, Tensor> decoder_step(
    const Tensor& input_gates_, const Tensor& state_, const OptionalTensor& state_mask_, const Tensor& keys,
    const Tensor& memory_, const Tensor& score_weight, const Tensor& query_weight_, const OptionalTensor& query_bias_,
    const OptionalTensor& context_weight_, const Tensor& hidden_weight_, const OptionalTensor& hidden_bias_,
    const OptionalTensor& key_padding_mask, const OptionalTensor& memory_index, const OptionalTensor& memory_gates_,
    bool reset_after) {
  Signature call("keys", keys, kStorageTypes);
  const Tensor state = call.check("state", state_, {"N", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.check("state_mask", state_mask_, {"N", "H"}, Role::accumulate);
  const Tensor input_gates = call.check("input_gates", input_gates_, {"N", "3H"}, Role::either);
  const Memory memory = Memory::check(call, keys, memory_, score_weight, key_padding_mask, memory_index);
  const Tensor query_weight = call.check("query_weight", query_weight_, {"A", "H"}, Role::storage);
  const OptionalTensor query_bias = call.check("query_bias", query_bias_, {"A"}, Role::storage);
  const OptionalTensor context_weight = call.check("context_weight", context_weight_, {"3H", "M"}, Role::storage);
  const Tensor hidden_weight = call.check("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor hidden_bias = call.check("hidden_bias", hidden_bias_, {"3H"}, Role::storage);
  const OptionalTensor memory_gates = call.check("memory_gates", memory_gates_, {"B", "S", "3H"}, Role::storage);
  if (!context_weight.has_value() && !memory_gates.has_value())
    throw std::runtime_error("`context_weight` (3H, M) must be given where there are no `memory_gates` (B, S, 3H)");
  const int64_t N = call['N'], S_ = call['S'], H = call['H'], A = call['A'], M = call['M'];
  const Tensor new_state = empty({N, H}, call.accumulate());
  const Tensor context = empty({N, M}, call.storage());
  const Tensor attn_weights = empty({N, S_}, call.accumulate());
  const Tensor gates = empty({N, 4 * H}, call.accumulate());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const Scratch<T> masked(state_mask.has_value() ? N * H : 0);
    for (int64_t n = 0; state_mask.has_value() && n < N; ++n)
      mask_row(pointer<T>(state_mask) + n * state_mask->stride(0), pointer<T>(state) + n * state.stride(0), H,
               masked.data() + n * H);
    const Rows entering = state_mask.has_value() ? Rows{masked.data(), H, false} : rows_of(state, call);
    const PackedRows<S> states(entering, N, H);
    const Scratch<T> query(N * A), context_gates(N * 3 * H);
    states.product(matrix<S>(query_weight), pointer<S>(query_bias), A, query.data(), A);
    const Attention<S> attention(memory, N, call['B'], S_);
    const Unrounded<S> sums(pointer<S>(context), N * M);
    const Rows queries{query.data(), A, false};
    if (memory_gates.has_value()) {
      attention.attend(queries, pointer<T>(attn_weights),
                       {{memory.values, sums.data()}, {*memory_gates, context_gates.data()}});
    } else {
      attention.attend(queries, pointer<T>(attn_weights), {{memory.values, sums.data()}});
      PackedRows<S>({sums.data(), M, false}, N, M)
          .product(matrix<S>(*context_weight), nullptr, 3 * H, context_gates.data(), 3 * H);
    }
    sums.store();

    const Rows input = rows_of(input_gates, call);
    Recurrence<S>{matrix<S>(hidden_weight), pointer<S>(hidden_bias), H, reset_after}.advance(states, N, [&](int64_t n) {
      return typename Recurrence<S>::Row{row<S>(input, n),
                                         input.is_storage,
                                         context_gates.data() + n * 3 * H,
                                         pointer<T>(state) + n * state.stride(0),
                                         static_cast<const T*>(row<S>(entering, n)),
                                         pointer<T>(new_state) + n * H,
                                         pointer<T>(gates) + n * 4 * H};
    });
  });
  return {new_state, context, attn_weights, gates};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) { m.impl("decoder_step.cpu", TORCH_BOX(&rnnsearch::decoder_step)); }
