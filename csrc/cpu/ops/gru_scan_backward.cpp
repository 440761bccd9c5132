// The derivative of gru_scan.
#include "gru_backward.h"

namespace rnnsearch {

std::tuple<Tensor, Tensor, Tensor, Tensor> gru_scan_backward(const Tensor& grad_states_, const Tensor& input_gates,
                                                             const Tensor& state_, const OptionalTensor& state_mask_,
                                                             const Tensor& hidden_weight_,
                                                             const OptionalTensor& lengths_, const Tensor& states_,
                                                             const Tensor& gates_, bool reverse, bool reset_after) {
  using torch::stable::contiguous;
  Signature call("hidden_weight", hidden_weight_, kStorageTypes);
  const Tensor grad_states = contiguous(call.check("grad_states", grad_states_, {"B", "T", "H"}, Role::accumulate));
  call.check("input_gates", input_gates, {"B", "T", "3H"}, Role::either);
  const Tensor state = call.check("state", state_, {"B", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.check("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Tensor hidden_weight = call.check("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor lengths = call.check("lengths", lengths_, {"B"}, Role::index);
  const Tensor states = contiguous(call.check("states", states_, {"B", "T", "H"}, Role::accumulate));
  const Tensor gates = contiguous(call.check("gates", gates_, {"B", "T", "4H"}, Role::accumulate));
  const int64_t B = call['B'], steps = call['T'], H = call['H'];
  if (lengths.has_value()) call.check_range("lengths", *lengths, 0, steps + 1, "0..T = 0.." + std::to_string(steps));
  const Tensor grad_input_gates = empty({B, steps, 3 * H}, input_gates.scalar_type());
  const Tensor grad_state = empty({B, H}, call.accumulate());
  const Tensor grad_hidden_weight = empty({3 * H, H}, call.storage());
  const Tensor grad_hidden_bias = empty({3 * H}, call.storage());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const Schedule rows(B, steps, pointer<int64_t>(lengths), reverse);
    GruBackward<S> gru(rows, matrix<S>(hidden_weight), H, reset_after, state_mask, {}, 0, 0);
    gru.gather_states(state, pointer<T>(states));
    for (int64_t t = steps; t-- > 0;) {
      gru.gates(t, [&](int64_t n) {
        const int64_t place = rows.place(rows.row(n), t);
        return std::pair(pointer<T>(grad_states) + place * H, pointer<T>(gates) + place * 4 * H);
      });
      gru.state(t);
    }
    gru.store_grad_state(pointer<T>(grad_state));
    if (grad_input_gates.scalar_type() == call.storage())
      gru.store_grad_input(pointer<S>(grad_input_gates));
    else
      gru.store_grad_input(pointer<T>(grad_input_gates));
    gru.store_grad_biases(pointer<S>(grad_hidden_bias), nullptr);
    gru.store_grad_weights({grad_hidden_weight, std::nullopt});
  });
  return {grad_input_gates, grad_state, grad_hidden_weight, grad_hidden_bias};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) {
  m.impl("gru_scan_backward.cpu", TORCH_BOX(&rnnsearch::gru_scan_backward));
}
