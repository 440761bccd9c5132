// decoder_step: attention over the memory with query_weight state, then the GRU on input_gates + context_weight
// context. Ordinary kernels, a launch a phase.
#include "attention.h"
#include "step.h"

namespace rnnsearch::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor> decoder_step_op(
    const Tensor& input_gates_, const Tensor& state_, const OptionalTensor& state_mask_, const Tensor& keys,
    const Tensor& memory_, const Tensor& score_weight, const Tensor& query_weight_, const OptionalTensor& query_bias_,
    const OptionalTensor& context_weight_, const Tensor& hidden_weight_, const OptionalTensor& hidden_bias_,
    const OptionalTensor& key_padding_mask, const OptionalTensor& memory_index, const OptionalTensor& memory_gates_,
    bool reset_after) {
  raise_if_stopped();
  Call call("decoder_step", "keys", keys);
  const Tensor state = call.take("state", state_, {"N", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.take("state_mask", state_mask_, {"N", "H"}, Role::accumulate);
  const Tensor input_gates = call.take("input_gates", input_gates_, {"N", "3H"}, Role::either);
  const Memory memory(call, keys, memory_, score_weight, key_padding_mask, memory_index);
  const Tensor query_weight = call.take("query_weight", query_weight_, {"A", "H"}, Role::storage);
  const OptionalTensor query_bias = call.take("query_bias", query_bias_, {"A"}, Role::storage);
  const OptionalTensor context_weight = call.take("context_weight", context_weight_, {"3H", "M"}, Role::storage);
  const Tensor hidden_weight = call.take("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor hidden_bias = call.take("hidden_bias", hidden_bias_, {"3H"}, Role::storage);
  const OptionalTensor memory_gates = call.take("memory_gates", memory_gates_, {"B", "S", "3H"}, Role::storage);
  if (!context_weight.has_value() && !memory_gates.has_value()) {
    call.launched("`context_weight` (3H, M) must be given where there are no `memory_gates` (B, S, 3H)");
  }
  const int64_t N = call['N'], S = call['S'], H = call['H'], A = call['A'], M = call['M'];
  const int through = static_cast<int>((reset_after ? 3 : 2) * H);  // columns of the product with d, beside the query's
  const AttentionShape shape = memory.shape(N, call);
  const Tensor new_state = call.empty({N, H}, ScalarType::Float), gates = call.empty({N, 4 * H}, ScalarType::Float);
  const Tensor context = call.empty({N, M}, call.storage()), attn_weights = call.empty({N, S}, ScalarType::Float);
  const Tensor projected = call.empty({N, A + through}, ScalarType::Float),
               scores = call.empty({N, S}, ScalarType::Float);
  const Tensor context_gates = call.empty({N, 3 * H}, ScalarType::Float);
  const Tensor candidate = reset_after ? projected : call.empty({N, H}, ScalarType::Float);
  with_storage(call, [&](auto s) {
    using T = decltype(s);
    const int width = static_cast<int>(H);
    const T* const bias = pointer<T>(hidden_bias);
    LinearArguments<T> project{};
    project.N = static_cast<int>(N);
    project.K = width;
    project.input = state.data_ptr();
    project.input_is_storage = call.storage() == ScalarType::Float;
    project.mask = pointer<float>(state_mask);
    project.first = {pointer<T>(query_weight), pointer<T>(query_bias), static_cast<int>(A), width};
    project.second = {pointer<T>(hidden_weight), bias, through, width};
    project.output = pointer<float>(projected);
    call.launched(launch_linear(project, call.stream()));

    ScoreArguments<T> score{};
    score.shape = shape;
    score.A = static_cast<int>(A);
    score.query = projected.data_ptr();
    score.query_stride = score.A + through;
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
    if (memory_gates.has_value()) {
      attend.W = 3 * width;
      attend.values = pointer<T>(memory_gates);
      attend.output = context_gates.data_ptr();
      attend.output_is_storage = call.storage() == ScalarType::Float;
      call.launched(launch_attention_output(attend, call.stream()));
    } else {
      LinearArguments<T> from_context{};
      from_context.N = project.N;
      from_context.K = attend.W;
      from_context.input = context.data_ptr();
      from_context.input_is_storage = true;
      from_context.first = {pointer<T>(context_weight), nullptr, 3 * width, attend.W};
      from_context.output = pointer<float>(context_gates);
      call.launched(launch_linear(from_context, call.stream()));
    }

    StepGatesArguments<T> step{};
    step.N = project.N;
    step.H = width;
    step.input_gates = input_gates.data_ptr();
    step.input_is_storage = call.is_storage(input_gates);
    step.context_gates = pointer<float>(context_gates);
    step.hidden_gates = pointer<float>(projected) + A;
    step.hidden_stride = score.query_stride;
    step.reset_after = reset_after;
    step.state = pointer<float>(state);
    step.new_state = pointer<float>(new_state);
    step.gates = pointer<float>(gates);
    call.launched(launch_step_gates(step, call.stream()));
    if (reset_after) return;
    LinearArguments<T> reset = project;
    reset.reset = step.gates;
    reset.reset_stride = 4 * width;
    reset.first = {pointer<T>(hidden_weight) + 2 * H * H, bias ? bias + 2 * H : nullptr, width, width};
    reset.second = {};
    reset.output = pointer<float>(candidate);
    call.launched(launch_linear(reset, call.stream()));
    step.candidate = reset.output;
    call.launched(launch_step_gates(step, call.stream()));
  });
  return {new_state, context, attn_weights, gates};
}

}  // namespace rnnsearch::cuda

RNNSEARCH_OPS(m) { m.impl("decoder_step." RNNSEARCH_OVERLOAD, TORCH_BOX(&rnnsearch::cuda::decoder_step_op)); }
