// gru_scan: T steps of the GRU. Past a row's length the state is frozen and every result is zero; with `reverse` each
// row runs from its own end to its start.
#include "gru_forward.h"

namespace rnnsearch {

std::tuple<Tensor, Tensor> gru_scan(const Tensor& input_gates_, const Tensor& state_, const OptionalTensor& state_mask_,
                                    const Tensor& hidden_weight_, const OptionalTensor& hidden_bias_,
                                    const OptionalTensor& lengths_, bool reverse, bool reset_after) {
  Signature call("hidden_weight", hidden_weight_, kStorageTypes);
  const Tensor state = call.check("state", state_, {"B", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.check("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Tensor input_gates = call.check("input_gates", input_gates_, {"B", "T", "3H"}, Role::either);
  const Tensor hidden_weight = call.check("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor hidden_bias = call.check("hidden_bias", hidden_bias_, {"3H"}, Role::storage);
  const OptionalTensor lengths = call.check("lengths", lengths_, {"B"}, Role::index);
  const int64_t B = call['B'], steps = call['T'], H = call['H'];
  if (lengths.has_value()) call.check_range("lengths", *lengths, 0, steps + 1, "0..T = 0.." + std::to_string(steps));
  const Tensor states = empty({B, steps, H}, call.accumulate());
  const Tensor gates = empty({B, steps, 4 * H}, call.accumulate());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const Schedule rows(B, steps, pointer<int64_t>(lengths), reverse);
    rows.zero_rest(pointer<T>(states), H);
    rows.zero_rest(pointer<T>(gates), 4 * H);
    const GruForward<S> gru(rows, matrix<S>(hidden_weight), pointer<S>(hidden_bias), H, reset_after, state, state_mask,
                            {}, nullptr, 0);
    for (int64_t t = 0; t < steps && rows.running(t) > 0; ++t) {
      gru.products(t);
      gru.advance(t, input_gates, nullptr, pointer<T>(states), pointer<T>(gates));
    }
  });
  return {states, gates};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) { m.impl("gru_scan.cpu", TORCH_BOX(&rnnsearch::gru_scan)); }
