// The gradients of decoder_scan: what no later step changes, by the library for all steps at once; the recurrence as
// one launch; the keys'; the weights' and the memory's by the library again.
#include "../launch_decoder.h"
#include "attention.h"
#include "decoder.h"
#include "gru.h"

namespace rnnsearch::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decoder_scan_backward_op(
    const Tensor& grad_states_, const Tensor& grad_contexts_, const Tensor& grad_attn_weights_,
    const Tensor& input_gates, const Tensor& state_, const OptionalTensor& state_mask_, const Tensor& keys,
    const Tensor& memory_, const Tensor& score_weight, const Tensor& query_weight_, const OptionalTensor& query_bias_,
    const Tensor& context_weight_, const Tensor& hidden_weight_, const OptionalTensor& key_padding_mask,
    const OptionalTensor& input_lengths_, const Tensor& states_, const Tensor& contexts_, const Tensor& attn_weights_,
    const Tensor& gates_, bool reset_after) {
  using torch::stable::narrow, torch::stable::subtract, torch::stable::to, torch::stable::transpose;
  raise_if_stopped();
  Call call("decoder_scan_backward", "keys", keys);
  const Tensor grad_states = call.take("grad_states", grad_states_, {"B", "T", "H"}, Role::accumulate);
  const Tensor all_grad_contexts = call.take("grad_contexts", grad_contexts_, {"B", "T", "M"}, Role::storage);
  const Tensor grad_attn_weights =
      call.take("grad_attn_weights", grad_attn_weights_, {"B", "T", "S"}, Role::accumulate);
  call.check("input_gates", input_gates, {"B", "T", "3H"}, Role::either);
  const Tensor state = call.take("state", state_, {"B", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.take("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Memory memory(call, keys, memory_, score_weight, key_padding_mask, std::nullopt);
  const Tensor query_weight = call.take("query_weight", query_weight_, {"A", "H"}, Role::storage);
  const OptionalTensor query_bias = call.take("query_bias", query_bias_, {"A"}, Role::storage);
  const Tensor context_weight = call.take("context_weight", context_weight_, {"3H", "M"}, Role::storage);
  const Tensor hidden_weight = call.take("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor lengths = call.take("input_lengths", input_lengths_, {"B"}, Role::index);
  const Tensor states = call.take("states", states_, {"B", "T", "H"}, Role::accumulate);
  const Tensor contexts = call.take("contexts", contexts_, {"B", "T", "M"}, Role::storage);
  const Tensor attn_weights = call.take("attn_weights", attn_weights_, {"B", "T", "S"}, Role::accumulate);
  const Tensor gates = call.take("gates", gates_, {"B", "T", "4H"}, Role::accumulate);
  const int64_t B = call['B'], T = call['T'], S = call['S'], H = call['H'], A = call['A'], M = call['M'];
  const DecoderPlan plan = plan_decoder(call, true, reset_after);
  if (!plan.reason.empty()) {
    const auto r = step_by_step<10>(call, plan.reason, grad_states, all_grad_contexts, grad_attn_weights, input_gates,
                                    state, state_mask, memory.keys, memory.values, memory.score_weight, query_weight,
                                    query_bias, context_weight, hidden_weight, memory.key_padding_mask, lengths, states,
                                    contexts, attn_weights, gates, reset_after);
    return {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9]};
  }

  const Tensor grad_contexts = without_padding(call, all_grad_contexts, std::nullopt, lengths);
  const Tensor real_memory = without_padding(call, memory.values, memory.key_padding_mask, std::nullopt);
  const Tensor memory_gates = call.empty({B * S, 3 * H}, call.storage());
  product("aten::mm", rows_of(memory.values, B * S, M), transpose(context_weight, 0, 1), memory_gates);
  const Tensor entering = call.empty({B * T, H}, call.storage());
  const Tensor reset = reset_after ? entering : call.empty({B * T, H}, call.storage());
  with_storage(call, [&](auto s) {
    using U = decltype(s);
    GruEnteringArguments<U> e{};
    e.shape.B = static_cast<int>(B);
    e.shape.T = static_cast<int>(T);
    e.shape.H = static_cast<int>(H);
    e.shape.lengths = pointer<int64_t>(lengths);
    e.state = pointer<float>(state);
    e.state_mask = pointer<float>(state_mask);
    e.states = pointer<float>(states);
    e.gates = pointer<float>(gates);
    e.entering = pointer<U>(entering);
    e.reset = reset_after ? nullptr : pointer<U>(reset);
    call.launched(launch_gru_entering(e, call.stream()));
  });
  // Both in float32: a query's error, and one of what the softmax takes the mean from, would be rounding of inputs.
  Tensor queries = product_in_float("aten::mm", entering, transpose(query_weight, 0, 1));
  if (query_bias.has_value()) queries = subtract(queries, *query_bias, -1);
  const Tensor outside =
      subtract(product_in_float("aten::bmm", grad_contexts, transpose(real_memory, 1, 2)), grad_attn_weights, -1);

  const Tensor grad_input_gates = call.empty({B, T, 3 * H}, input_gates.scalar_type());
  const Tensor grad_state = call.empty({B, H}, ScalarType::Float);
  const Tensor grad_hidden = call.empty({B * T, 3 * H}, call.storage());
  const Tensor grad_queries = call.empty({B * T, A}, call.storage());
  const Tensor grad_scores = call.empty({B, T, S}, ScalarType::Float);
  const Tensor grad_keys = call.empty({B, S, A}, call.storage());
  const int64_t chunks = GradKeysArguments<float>::position_chunks(static_cast<int>(S));
  const Tensor grad_score_weights = call.empty({B * chunks, A}, ScalarType::Float);
  const DecoderShape shape = decoder_shape(call, plan, memory.key_padding_mask, lengths, reset_after);
  const Tensor exchange = call.empty({2, B, grad_depth(shape.A, shape.H)}, call.storage());
  const Tensor grad_gates = call.empty({plan.cluster ? 0 : B, 3 * H}, ScalarType::Float);
  const int64_t parts = plan.splits > 1 && !plan.cluster ? B * plan.splits * grad_part_sums(shape).width() : 0;
  const Tensor partial = call.empty({parts}, ScalarType::Float);
  const Tensor barriers = call.zeros({shape.barrier_words()}, ScalarType::Int);
  with_storage(call, [&](auto s) {
    using U = decltype(s);
    DecoderScanBackwardArguments<U> a{};
    a.shape = shape;
    a.grad_states = pointer<float>(grad_states);
    a.outside = pointer<float>(outside);
    a.state = pointer<float>(state);
    a.state_mask = pointer<float>(state_mask);
    a.keys = pointer<U>(memory.keys);
    a.memory_gates = pointer<U>(memory_gates);
    a.score_weight = pointer<U>(memory.score_weight);
    a.query_weight = pointer<U>(query_weight);
    a.hidden_weight = pointer<U>(hidden_weight);
    a.queries = pointer<float>(queries);
    a.states = pointer<float>(states);
    a.attn_weights = pointer<float>(attn_weights);
    a.gates = pointer<float>(gates);
    a.grad_input_gates = grad_input_gates.data_ptr();
    a.input_is_storage = call.is_storage(input_gates);
    a.grad_hidden = pointer<U>(grad_hidden);
    a.grad_queries = pointer<U>(grad_queries);
    a.grad_scores = pointer<float>(grad_scores);
    a.grad_state = pointer<float>(grad_state);
    a.exchange = pointer<U>(exchange);
    a.grad_gates = pointer<float>(grad_gates);
    a.partial = pointer<float>(partial);
    a.barriers = pointer<uint32_t>(barriers);
    a.spin_limit = spin_limit();
    call.launched(launch_decoder_scan(a, plan.threads, call.stream()));
  });
  call.settle(Scan::decoder_scan_backward, plan, barriers,
              {grad_input_gates, grad_state, grad_hidden, grad_queries, grad_scores});
  with_storage(call, [&](auto s) {
    using U = decltype(s);
    GradKeysArguments<U> of_keys{};
    of_keys.shape = memory.shape(B, call);
    of_keys.T = shape.T;
    of_keys.A = shape.A;
    of_keys.grad_scores = pointer<float>(grad_scores);
    of_keys.queries = queries.data_ptr();
    of_keys.queries_are_storage = call.is_storage(queries);
    of_keys.keys = pointer<U>(memory.keys);
    of_keys.score_weight = pointer<U>(memory.score_weight);
    of_keys.grad_keys = pointer<U>(grad_keys);
    of_keys.grad_score_weight = pointer<float>(grad_score_weights);
    call.launched(launch_attention_grad_keys(of_keys, call.stream()));
  });

  const Tensor grad_query_weight = call.empty({A, H}, call.storage());
  product_of_columns(grad_queries, entering, grad_query_weight);
  const Tensor grad_hidden_weight = grad_of_hidden_weight(call, grad_hidden, entering, reset, reset_after);
  const Tensor grad_g = rows_of(to(grad_input_gates, call.storage()), B * T, 3 * H);
  const Tensor grad_context_weight = call.empty({3 * H, M}, call.storage());
  product_of_columns(grad_g, rows_of(contexts, B * T, M), grad_context_weight);
  const Tensor of_contexts =
      to(subtract(product_in_float("aten::mm", grad_g, context_weight), rows_of(grad_contexts, B * T, M), -1),
         call.storage());
  const Tensor grad_memory = call.empty({B, S, M}, call.storage());
  const int64_t by_row[] = {B, T, M};
  product("aten::bmm", transpose(to(attn_weights, call.storage()), 1, 2),
          torch::stable::view(of_contexts, torch::headeronly::IntHeaderOnlyArrayRef(by_row, 3)), grad_memory);
  return {grad_input_gates,
          grad_state,
          grad_keys,
          grad_memory,
          sum_of_rows(grad_score_weights, call.storage()),
          grad_query_weight,
          sum_of_rows(grad_queries, call.storage()),
          grad_context_weight,
          grad_hidden_weight,
          sum_of_rows(grad_hidden, call.storage())};
}

}  // namespace rnnsearch::cuda

RNNSEARCH_OPS(m) {
  m.impl("decoder_scan_backward." RNNSEARCH_OVERLOAD, TORCH_BOX(&rnnsearch::cuda::decoder_scan_backward_op));
}
