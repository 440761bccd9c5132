// The gradients of gru_scan: the recurrence as one launch, then the weight's and the bias' as a product and a sum.
#include "gru.h"

namespace rnnsearch::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor> gru_scan_backward_op(const Tensor& grad_states_, const Tensor& input_gates,
                                                                const Tensor& state_, const OptionalTensor& state_mask_,
                                                                const Tensor& hidden_weight_,
                                                                const OptionalTensor& lengths_, const Tensor& states_,
                                                                const Tensor& gates_, bool reverse, bool reset_after) {
  raise_if_stopped();
  Call call("gru_scan_backward", "hidden_weight", hidden_weight_);
  const Tensor grad_states = call.take("grad_states", grad_states_, {"B", "T", "H"}, Role::accumulate);
  call.check("input_gates", input_gates, {"B", "T", "3H"}, Role::either);
  const Tensor state = call.take("state", state_, {"B", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.take("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Tensor hidden_weight = call.take("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor lengths = call.take("lengths", lengths_, {"B"}, Role::index);
  const Tensor states = call.take("states", states_, {"B", "T", "H"}, Role::accumulate);
  const Tensor gates = call.take("gates", gates_, {"B", "T", "4H"}, Role::accumulate);
  const int64_t B = call['B'], T = call['T'], H = call['H'];
  const Plan plan = plan_gru(call, true, reset_after);
  if (!plan.reason.empty()) {
    const auto [grad_input_gates, grad_state, grad_weight, grad_bias] =
        step_by_step<4>(call, plan.reason, grad_states, input_gates, state, state_mask, hidden_weight, lengths, states,
                        gates, reverse, reset_after);
    return {grad_input_gates, grad_state, grad_weight, grad_bias};
  }
  const Tensor grad_input_gates = call.empty({B, T, 3 * H}, input_gates.scalar_type());
  const Tensor grad_state = call.empty({B, H}, ScalarType::Float);
  const Tensor grad_hidden = call.empty({B * T, 3 * H}, call.storage());
  const Tensor entering = call.empty({B * T, H}, call.storage());
  const Tensor reset = reset_after ? entering : call.empty({B * T, H}, call.storage());
  const Tensor exchange = call.empty({2, B, 3 * padded_depth(static_cast<int>(H))}, call.storage());
  const Tensor barriers = call.zeros({plan.row_groups + 1}, ScalarType::Int);
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    const GruShape shape = shape_of(call, plan, lengths, reverse, reset_after);
    GruScanBackwardArguments<S> a{};
    a.shape = shape;
    a.grad_states = pointer<float>(grad_states);
    a.state = pointer<float>(state);
    a.hidden_weight = pointer<S>(hidden_weight);
    a.state_mask = pointer<float>(state_mask);
    a.states = pointer<float>(states);
    a.gates = pointer<float>(gates);
    a.grad_input_gates = grad_input_gates.data_ptr();
    a.input_is_storage = call.is_storage(input_gates);
    a.grad_hidden = pointer<S>(grad_hidden);
    a.grad_state = pointer<float>(grad_state);
    a.exchange = pointer<S>(exchange);
    a.barriers = pointer<uint32_t>(barriers);
    a.spin_limit = spin_limit();
    call.launched(launch_gru_scan(a, plan.threads, call.stream()));
    GruEnteringArguments<S> e{};
    e.shape = shape;
    e.state = a.state;
    e.state_mask = a.state_mask;
    e.states = a.states;
    e.gates = a.gates;
    e.entering = pointer<S>(entering);
    e.reset = reset_after ? nullptr : pointer<S>(reset);
    call.launched(launch_gru_entering(e, call.stream()));
  });
  call.settle(Scan::gru_scan_backward, plan, barriers, {grad_input_gates, grad_state, grad_hidden});

  const Tensor grad_hidden_weight = grad_of_hidden_weight(call, grad_hidden, entering, reset, reset_after);
  return {grad_input_gates, grad_state, grad_hidden_weight, sum_of_rows(grad_hidden, call.storage())};
}

}  // namespace rnnsearch::cuda

RNNSEARCH_OPS(m) { m.impl("gru_scan_backward." RNNSEARCH_OVERLOAD, TORCH_BOX(&rnnsearch::cuda::gru_scan_backward_op)); }
