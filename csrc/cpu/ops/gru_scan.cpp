// gru_scan: T steps of the GRU. Past a row's length the state is frozen and every result is zero; with `reverse` each
// row runs from its own end to its start.
#include <cstring>
#include <vector>

#include "recurrence.h"

namespace rnnsearch {

std::tuple<Tensor, Tensor> gru_scan(const Tensor& input_gates_, const Tensor& state_, const Tensor& hidden_weight_,
                                    const OptionalTensor& hidden_bias_, const OptionalTensor& lengths_, bool reverse,
                                    bool reset_after) {
  Signature call("hidden_weight", hidden_weight_);
  const Tensor state = call.check("state", state_, {"B", "H"}, Role::accumulate);
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
    const int64_t* length = pointer<int64_t>(lengths);
    const auto length_of = [&](int64_t b) { return length == nullptr ? steps : length[b]; };
    for (int64_t b = 0; b < B; ++b) {
      const int64_t rest = steps - length_of(b);
      std::memset(pointer<T>(states) + (b * steps + length_of(b)) * H, 0, static_cast<size_t>(rest * H) * sizeof(T));
      std::memset(pointer<T>(gates) + (b * steps + length_of(b)) * 4 * H, 0,
                  static_cast<size_t>(rest * 4 * H) * sizeof(T));
    }
    const Recurrence<S> recurrence{matrix<S>(hidden_weight), pointer<S>(hidden_bias), H, reset_after};
    const bool is_storage = input_gates.scalar_type() == call.storage();
    const int64_t item = is_storage ? sizeof(S) : sizeof(T);
    const char* inputs = static_cast<const char*>(input_gates.data_ptr());
    const Scratch<T> carried(B * H);
    std::vector<int64_t> running;
    for (int64_t t = 0; t < steps; ++t) {
      running.clear();
      for (int64_t b = 0; b < B; ++b)
        if (t < length_of(b)) running.push_back(b);
      if (running.empty()) break;
      const auto place = [&](int64_t b, int64_t step) { return reverse ? length_of(b) - 1 - step : step; };
      const auto old_state = [&](int64_t b) {
        return t == 0 ? pointer<T>(state) + b * state.stride(0)
                      : pointer<T>(states) + (b * steps + place(b, t - 1)) * H;
      };
      const int64_t N = static_cast<int64_t>(running.size());
      for (int64_t n = 0; n < N; ++n)
        std::memcpy(carried.data() + n * H, old_state(running[static_cast<size_t>(n)]),
                    static_cast<size_t>(H) * sizeof(T));
      const PackedRows<S> packed({carried.data(), H, false}, N, H);
      recurrence.advance(packed, N, [&](int64_t n) {
        const int64_t b = running[static_cast<size_t>(n)], at = place(b, t);
        const int64_t offset = b * input_gates.stride(0) + at * input_gates.stride(1);
        return typename Recurrence<S>::Row{inputs + offset * item,
                                           is_storage,
                                           nullptr,
                                           carried.data() + n * H,
                                           pointer<T>(states) + (b * steps + at) * H,
                                           pointer<T>(gates) + (b * steps + at) * 4 * H};
      });
    }
  });
  return {states, gates};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) { m.impl("gru_scan.cpu", TORCH_BOX(&rnnsearch::gru_scan)); }
