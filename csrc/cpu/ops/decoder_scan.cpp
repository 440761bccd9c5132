// decoder_scan: T steps of decoder_step, teacher-forced. A step is one product for the query and the hidden gates, the
// attention, and, unless it sums memory_gates, one product of the context: all weights are packed once a call.
#include "gru_forward.h"
#include "memory_gates.h"

namespace rnnsearch {

std::tuple<Tensor, Tensor, Tensor, Tensor> decoder_scan(
    const Tensor& input_gates_, const Tensor& state_, const OptionalTensor& state_mask_, const Tensor& keys,
    const Tensor& memory_, const Tensor& score_weight, const Tensor& query_weight_, const OptionalTensor& query_bias_,
    const Tensor& context_weight_, const Tensor& hidden_weight_, const OptionalTensor& hidden_bias_,
    const OptionalTensor& key_padding_mask, const OptionalTensor& input_lengths_, bool reset_after) {
  Signature call("keys", keys, kStorageTypes);
  const Tensor state = call.check("state", state_, {"B", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.check("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Tensor input_gates = call.check("input_gates", input_gates_, {"B", "T", "3H"}, Role::either);
  const Memory memory = check_memory(call, keys, memory_, score_weight, key_padding_mask);
  const Tensor query_weight = call.check("query_weight", query_weight_, {"A", "H"}, Role::storage);
  const OptionalTensor query_bias = call.check("query_bias", query_bias_, {"A"}, Role::storage);
  const Tensor context_weight = call.check("context_weight", context_weight_, {"3H", "M"}, Role::storage);
  const Tensor hidden_weight = call.check("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor hidden_bias = call.check("hidden_bias", hidden_bias_, {"3H"}, Role::storage);
  const OptionalTensor input_lengths = call.check("input_lengths", input_lengths_, {"B"}, Role::index);
  const int64_t B = call['B'], steps = call['T'], S_ = call['S'], H = call['H'], A = call['A'], M = call['M'];
  if (input_lengths.has_value())
    call.check_range("input_lengths", *input_lengths, 0, steps + 1, "0..T = 0.." + std::to_string(steps));
  const Tensor states = empty({B, steps, H}, call.accumulate());
  const Tensor contexts = empty({B, steps, M}, call.storage());
  const Tensor attn_weights = empty({B, steps, S_}, call.accumulate());
  const Tensor gates = empty({B, steps, 4 * H}, call.accumulate());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const KernelTable<S>& k = kernels<S>();
    const Schedule rows(B, steps, pointer<int64_t>(input_lengths));
    rows.zero_rest(pointer<T>(states), H);
    rows.zero_rest(pointer<S>(contexts), M);
    rows.zero_rest(pointer<T>(attn_weights), S_);
    rows.zero_rest(pointer<T>(gates), 4 * H);

    const GruForward<S> gru(rows, matrix<S>(hidden_weight), pointer<S>(hidden_bias), H, reset_after, state, state_mask,
                            matrix<S>(query_weight), pointer<S>(query_bias), A);
    PackedWeight<S> from_context(3 * H, M);
    from_context.outputs(matrix<S>(context_weight), 0, 3 * H);
    const bool by_memory_gates = memory_gates_pay<S>(kForwardCosts, S_, steps, M);
    Memory summed = memory;
    if (by_memory_gates) summed.values = memory_gates(memory.values, from_context);
    const ScanAttention<S> attention(summed, B, S_);
    const QueryRows<S> queries(B, A);
    const Scratch<T> weights(B * S_), sums(B * attention.features()), products(by_memory_gates ? 0 : B * 3 * H);
    const T* context_gates = (by_memory_gates ? sums : products).data();
    for (int64_t t = 0; t < steps && rows.running(t) > 0; ++t) {
      const int64_t N = rows.running(t);
      gru.products(t);
      queries.prepare(N, [&](int64_t n) { return gru.extra(n); });
      attention.attend(
          rows, N, queries, weights.data(), [&](int64_t b) { return pointer<T>(attn_weights) + rows.place(b, t) * S_; },
          sums.data());
      if (!by_memory_gates) from_context.product(sums.data(), M, N, nullptr, products.data(), 3 * H);
      gru.advance(t, input_gates, context_gates, pointer<T>(states), pointer<T>(gates));
      for (int64_t n = 0; !by_memory_gates && n < N; ++n)
        k.to_storage(sums.data() + n * M, pointer<S>(contexts) + rows.place(rows.row(n), t) * M, M);
    }
    if (by_memory_gates) contexts_of_all_steps(rows, attention, memory.values, attn_weights, contexts);
  });
  return {states, contexts, attn_weights, gates};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) { m.impl("decoder_scan.cpu", TORCH_BOX(&rnnsearch::decoder_scan)); }
