// additive_attention and its gradients: ordinary kernels, a launch a phase.
#include "attention.h"

namespace rnnsearch::cuda {

std::tuple<Tensor, Tensor> additive_attention_op(const Tensor& query_, const Tensor& keys, const Tensor& memory_,
                                                 const Tensor& score_weight, const OptionalTensor& key_padding_mask,
                                                 const OptionalTensor& memory_index) {
  raise_if_stopped();
  Call call("additive_attention", "keys", keys);
  const Tensor query = call.take("query", query_, {"N", "A"}, Role::either);
  const Memory memory(call, keys, memory_, score_weight, key_padding_mask, memory_index);
  const int64_t N = call['N'], S = call['S'], A = call['A'], M = call['M'];
  const AttentionShape shape = memory.shape(N, call);
  const Tensor context = call.empty({N, M}, call.storage()), attn_weights = call.empty({N, S}, ScalarType::Float);
  const Tensor scores = call.empty({N, S}, ScalarType::Float);
  with_storage(call, [&](auto s) {
    using T = decltype(s);
    ScoreArguments<T> score{};
    score.shape = shape;
    score.A = static_cast<int>(A);
    score.query = query.data_ptr();
    score.query_is_storage = call.is_storage(query);
    score.query_stride = score.A;
    score.keys = pointer<T>(memory.keys);
    score.score_weight = pointer<T>(memory.score_weight);
    score.scores = pointer<float>(scores);
    call.launched(launch_attention_scores(score, call.stream()));
    AttendArguments<T> attend{};
    attend.shape = shape;
    attend.W = static_cast<int>(M);
    attend.scores = score.scores;
    attend.values = pointer<T>(memory.values);
    attend.attn_weights = pointer<float>(attn_weights);
    attend.output = context.data_ptr();
    attend.output_is_storage = true;
    call.launched(launch_attention_output(attend, call.stream()));
  });
  return {context, attn_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> additive_attention_backward_op(
    const Tensor& grad_context_, const Tensor& grad_attn_weights_, const Tensor& query_, const Tensor& keys,
    const Tensor& memory_, const Tensor& score_weight, const OptionalTensor& key_padding_mask,
    const Tensor& attn_weights_) {
  raise_if_stopped();
  Call call("additive_attention_backward", "keys", keys);
  const Tensor grad_context = call.take("grad_context", grad_context_, {"B", "M"}, Role::storage);
  const Tensor grad_attn_weights = call.take("grad_attn_weights", grad_attn_weights_, {"B", "S"}, Role::accumulate);
  const Tensor query = call.take("query", query_, {"B", "A"}, Role::either);
  const Memory memory(call, keys, memory_, score_weight, key_padding_mask, std::nullopt);
  const Tensor attn_weights = call.take("attn_weights", attn_weights_, {"B", "S"}, Role::accumulate);
  const int64_t B = call['B'], S = call['S'], A = call['A'], M = call['M'];
  const AttentionShape shape = memory.shape(B, call);
  const Tensor grad_query = call.empty({B, A}, query.scalar_type());
  const Tensor grad_keys = call.empty({B, S, A}, call.storage()), grad_memory = call.empty({B, S, M}, call.storage());
  const Tensor grad_weights = call.empty({B, S}, ScalarType::Float);
  const Tensor grad_scores = call.empty({B, S}, ScalarType::Float);
  // What each block of positions adds to the gradient of score_weight.
  const int64_t chunks = GradKeysArguments<float>::position_chunks(static_cast<int>(S));
  const Tensor parts = call.empty({B * chunks, A}, ScalarType::Float);
  with_storage(call, [&](auto s) {
    using T = decltype(s);
    GradWeightsArguments<T> weights{};
    weights.shape = shape;
    weights.W = static_cast<int>(M);
    weights.outside = pointer<float>(grad_attn_weights);
    weights.grad_output = pointer<T>(grad_context);
    weights.values = pointer<T>(memory.values);
    weights.attn_weights = pointer<float>(attn_weights);
    weights.grad_weights = pointer<float>(grad_weights);
    weights.grad_values = pointer<T>(grad_memory);
    call.launched(launch_attention_grad_weights(weights, call.stream()));
    GradQueryArguments<T> queries{};
    queries.shape = shape;
    queries.A = static_cast<int>(A);
    queries.grad_weights = weights.grad_weights;
    queries.attn_weights = weights.attn_weights;
    queries.query = query.data_ptr();
    queries.query_is_storage = call.is_storage(query);
    queries.keys = pointer<T>(memory.keys);
    queries.score_weight = pointer<T>(memory.score_weight);
    queries.grad_scores = pointer<float>(grad_scores);
    queries.grad_query = grad_query.data_ptr();
    call.launched(launch_attention_grad_query(queries, call.stream()));
    GradKeysArguments<T> of_keys{};
    of_keys.shape = shape;
    of_keys.T = 1;
    of_keys.A = queries.A;
    of_keys.grad_scores = queries.grad_scores;
    of_keys.queries = queries.query;
    of_keys.queries_are_storage = queries.query_is_storage;
    of_keys.keys = queries.keys;
    of_keys.score_weight = queries.score_weight;
    of_keys.grad_keys = pointer<T>(grad_keys);
    of_keys.grad_score_weight = pointer<float>(parts);
    call.launched(launch_attention_grad_keys(of_keys, call.stream()));
  });
  return {grad_query, grad_keys, grad_memory, sum_of_rows(parts, call.storage())};
}

}  // namespace rnnsearch::cuda

RNNSEARCH_OPS(m) {
  m.impl("additive_attention." RNNSEARCH_OVERLOAD, TORCH_BOX(&rnnsearch::cuda::additive_attention_op));
  m.impl("additive_attention_backward." RNNSEARCH_OVERLOAD,
         TORCH_BOX(&rnnsearch::cuda::additive_attention_backward_op));
}
