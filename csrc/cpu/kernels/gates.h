// The gates of a GRU, one row at a time:
//   r, z = σ(g + u),  n = tanh(g_n + r ∘ u_n) or tanh(g_n + u_n),  new_state = (1 - z) ∘ n + z ∘ state
#pragma once

#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// g: the input's gates with the context's, at feature `i` of the 3H.
template <class S>
INLINE Vec<Accumulate<S>> input_gate(const GateArgs<S>& args, int64_t i, int64_t count) {
  const auto gate = load_either<S>(args.input_gates, args.input_is_storage, i, count);
  return args.context_gates == nullptr ? gate : gate + load(args.context_gates + i, count);
}

template <class S>
void reset_row(const GateArgs<S>& args) {
  using T = Accumulate<S>;
  for (int64_t h = 0; h < args.H; h += lanes<T>) {
    const int64_t left = args.H - h;
    const Vec<T> r = sigmoid<T>(input_gate(args, h, left) + load(args.hidden_gates + h, left));
    store(args.reset_state + h, r * load(args.state + h, left), left);
  }
}

template <class S>
void gru_row(const GateArgs<S>& args) {
  using T = Accumulate<S>;
  const int64_t H = args.H;
  for (int64_t h = 0; h < H; h += lanes<T>) {
    const int64_t left = H - h;
    const Vec<T> r = sigmoid<T>(input_gate(args, h, left) + load(args.hidden_gates + h, left));
    const Vec<T> z = sigmoid<T>(input_gate(args, H + h, left) + load(args.hidden_gates + H + h, left));
    const Vec<T> u = load(args.hidden_candidate + h, left);
    const Vec<T> g = input_gate(args, 2 * H + h, left);
    const Vec<T> n = tanh<T>(args.reset_after ? g + r * u : g + u);
    store(args.gates + h, r, left);
    store(args.gates + H + h, z, left);
    store(args.gates + 2 * H + h, n, left);
    store(args.gates + 3 * H + h, u, left);
    store(args.new_state + h, (1 - z) * n + z * load(args.state + h, left), left);
  }
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
