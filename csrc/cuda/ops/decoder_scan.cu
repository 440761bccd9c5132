// decoder_scan as one launch for the whole sequence, between two products of the library: memory_gates before, the
// contexts after.
#include "attention.h"
#include "decoder.h"

namespace rnnsearch::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor> decoder_scan_op(
    const Tensor& input_gates_, const Tensor& state_, const OptionalTensor& state_mask_, const Tensor& keys,
    const Tensor& memory_, const Tensor& score_weight, const Tensor& query_weight_, const OptionalTensor& query_bias_,
    const Tensor& context_weight_, const Tensor& hidden_weight_, const OptionalTensor& hidden_bias_,
    const OptionalTensor& key_padding_mask, const OptionalTensor& input_lengths_, bool reset_after) {
  raise_if_stopped();
  Call call("decoder_scan", "keys", keys);
  const Tensor state = call.take("state", state_, {"B", "H"}, Role::accumulate);
  const Tensor input_gates = call.take("input_gates", input_gates_, {"B", "T", "3H"}, Role::either);
  const OptionalTensor state_mask = call.take("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Memory memory(call, keys, memory_, score_weight, key_padding_mask, std::nullopt);
  const Tensor query_weight = call.take("query_weight", query_weight_, {"A", "H"}, Role::storage);
  const OptionalTensor query_bias = call.take("query_bias", query_bias_, {"A"}, Role::storage);
  const Tensor context_weight = call.take("context_weight", context_weight_, {"3H", "M"}, Role::storage);
  const Tensor hidden_weight = call.take("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor hidden_bias = call.take("hidden_bias", hidden_bias_, {"3H"}, Role::storage);
  const OptionalTensor lengths = call.take("input_lengths", input_lengths_, {"B"}, Role::index);
  const int64_t B = call['B'], T = call['T'], S = call['S'], H = call['H'], A = call['A'], M = call['M'];
  const DecoderPlan plan = plan_decoder(call, false, reset_after);
  if (!plan.reason.empty()) {
    const auto [states, contexts, attn_weights, gates] =
        step_by_step<4>(call, plan.reason, input_gates, state, state_mask, memory.keys, memory.values,
                        memory.score_weight, query_weight, query_bias, context_weight, hidden_weight, hidden_bias,
                        memory.key_padding_mask, lengths, reset_after);
    return {states, contexts, attn_weights, gates};
  }
  using torch::stable::transpose;
  const Tensor states = call.empty({B, T, H}, ScalarType::Float), gates = call.empty({B, T, 4 * H}, ScalarType::Float);
  const Tensor attn_weights = call.empty({B, T, S}, ScalarType::Float);
  const Tensor memory_gates = call.empty({B * S, 3 * H}, call.storage());
  product("aten::mm", rows_of(memory.values, B * S, M), transpose(context_weight, 0, 1), memory_gates);

  const DecoderShape shape = decoder_shape(call, plan, memory.key_padding_mask, lengths, reset_after);
  const Tensor exchange = call.empty({plan.cluster ? 0 : 2, B, padded_depth(shape.H)}, call.storage());
  const Tensor projected = call.empty({plan.cluster && reset_after ? 0 : B, A + 3 * H}, ScalarType::Float);
  const int64_t parts = plan.splits > 1 && !plan.cluster ? B * plan.splits * part_sums(shape).width() : 0;
  const Tensor partial = call.empty({parts}, ScalarType::Float);
  const Tensor barriers = call.zeros({shape.barrier_words()}, ScalarType::Int);
  with_storage(call, [&](auto s) {
    using U = decltype(s);
    DecoderScanArguments<U> a{};
    a.shape = shape;
    a.input_gates = input_gates.data_ptr();
    a.input_is_storage = call.is_storage(input_gates);
    a.state = pointer<float>(state);
    a.state_mask = pointer<float>(state_mask);
    a.keys = pointer<U>(memory.keys);
    a.memory_gates = pointer<U>(memory_gates);
    a.score_weight = pointer<U>(memory.score_weight);
    a.query_weight = pointer<U>(query_weight);
    a.query_bias = pointer<U>(query_bias);
    a.hidden_weight = pointer<U>(hidden_weight);
    a.hidden_bias = pointer<U>(hidden_bias);
    a.states = pointer<float>(states);
    a.attn_weights = pointer<float>(attn_weights);
    a.gates = pointer<float>(gates);
    a.exchange = pointer<U>(exchange);
    a.projected = pointer<float>(projected);
    a.partial = pointer<float>(partial);
    a.barriers = pointer<uint32_t>(barriers);
    a.spin_limit = spin_limit();
    call.launched(launch_decoder_scan(a, plan.threads, call.stream()));
  });
  call.settle(Scan::decoder_scan, plan, barriers, {states, attn_weights, gates});

  const Tensor contexts = call.empty({B, T, M}, call.storage());
  product("aten::bmm", torch::stable::to(attn_weights, call.storage()),
          without_padding(call, memory.values, memory.key_padding_mask, std::nullopt), contexts);
  // Past a row's length the weights are zero, and yet a NaN in a real position would come through.
  return {states, without_padding(call, contexts, std::nullopt, lengths), attn_weights, gates};
}

}  // namespace rnnsearch::cuda

RNNSEARCH_OPS(m) { m.impl("decoder_scan." RNNSEARCH_OVERLOAD, TORCH_BOX(&rnnsearch::cuda::decoder_scan_op)); }
