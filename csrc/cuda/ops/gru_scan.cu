// gru_scan as one launch for the whole sequence.
#include "gru.h"

namespace rnnsearch::cuda {

std::tuple<Tensor, Tensor> gru_scan_op(const Tensor& input_gates_, const Tensor& state_,
                                       const OptionalTensor& state_mask_, const Tensor& hidden_weight_,
                                       const OptionalTensor& hidden_bias_, const OptionalTensor& lengths_, bool reverse,
                                       bool reset_after) {
  raise_if_stopped();
  Call call("gru_scan", "hidden_weight", hidden_weight_);
  const Tensor state = call.take("state", state_, {"B", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.take("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Tensor input_gates = call.take("input_gates", input_gates_, {"B", "T", "3H"}, Role::either);
  const Tensor hidden_weight = call.take("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor hidden_bias = call.take("hidden_bias", hidden_bias_, {"3H"}, Role::storage);
  const OptionalTensor lengths = call.take("lengths", lengths_, {"B"}, Role::index);
  const int64_t B = call['B'], T = call['T'], H = call['H'];
  const Plan plan = plan_gru(call, false, reset_after);
  if (!plan.reason.empty()) {
    const auto [states, gates] = step_by_step<2>(call, plan.reason, input_gates, state, state_mask, hidden_weight,
                                                 hidden_bias, lengths, reverse, reset_after);
    return {states, gates};
  }
  const Tensor states = call.empty({B, T, H}, ScalarType::Float), gates = call.empty({B, T, 4 * H}, ScalarType::Float);
  const Tensor exchange = call.empty({plan.cluster ? 0 : 3, B, padded_depth(static_cast<int>(H))}, call.storage());
  const Tensor barriers = call.zeros({plan.row_groups + 1}, ScalarType::Int);
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    GruScanArguments<S> a{};
    a.shape = shape_of(call, plan, lengths, reverse, reset_after);
    a.input_gates = input_gates.data_ptr();
    a.input_is_storage = call.is_storage(input_gates);
    a.state = pointer<float>(state);
    a.hidden_weight = pointer<S>(hidden_weight);
    a.hidden_bias = pointer<S>(hidden_bias);
    a.state_mask = pointer<float>(state_mask);
    a.states = pointer<float>(states);
    a.gates = pointer<float>(gates);
    a.exchange = pointer<S>(exchange);
    a.barriers = pointer<uint32_t>(barriers);
    a.spin_limit = spin_limit();
    call.launched(launch_gru_scan(a, plan.threads, call.stream()));
  });
  call.settle(Scan::gru_scan, plan, barriers, {states, gates});
  return {states, gates};
}

}  // namespace rnnsearch::cuda

RNNSEARCH_OPS(m) { m.impl("gru_scan." RNNSEARCH_OVERLOAD, TORCH_BOX(&rnnsearch::cuda::gru_scan_op)); }
