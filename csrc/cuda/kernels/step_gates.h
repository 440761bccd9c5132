// The GRU of one decoder step, after its products:
//
//   g    = input_gates + context_gates                  u = U d + b (r and z alone where the reset comes first)
//   r, z = σ(g + u)
//   n    = tanh(g_n + r ∘ u_n)                          reset_after
//   n    = tanh(g_n + u_n), u_n = U_n (r ∘ d) + b_n     otherwise, once that product is there
//   new_state = (1 - z) ∘ n + z ∘ state
#pragma once

#include "gru.h"

namespace rnnsearch::cuda {

template <typename Storage>
struct StepGatesArguments {
  int N, H;
  const void* input_gates;  // (N, 3H), Storage or float
  bool input_is_storage;
  const float* context_gates;  // (N, 3H)
  const float* hidden_gates;   // (N, 3H or 2H), rows `hidden_stride` apart: u
  int hidden_stride;
  const float* candidate;  // (N, H): u_n of its own product; null where it is in hidden_gates, or not there yet
  bool reset_after;
  const float* state;  // (N, H)
  float* new_state;    // (N, H)
  float* gates;        // (N, 4H): r, z, n, u_n

  LaunchShape launch() const { return {N, 256, 0}; }
};

// A block a row. Where the reset comes first it runs twice: for r and z, and with `candidate` for the rest.
template <typename Storage>
RNNSEARCH_KERNEL void step_gates(StepGatesArguments<Storage> a) {
  const size_t row = block_index(), H = a.H;
  const float* const context = a.context_gates + row * 3 * H;
  const float* const hidden = a.hidden_gates + row * a.hidden_stride;
  for (size_t unit = thread_index(); unit < H; unit += thread_count()) {
    float* const gates = a.gates + row * 4 * H + unit;
    const auto g = [&](size_t gate) {
      const size_t at = gate * H + unit;
      return load_float<Storage>(a.input_gates, a.input_is_storage, row * 3 * H + at) + context[at];
    };
    if (!a.candidate) {
      gates[0] = sigmoid(g(0) + hidden[unit]);
      gates[H] = sigmoid(g(1) + hidden[H + unit]);
      if (!a.reset_after) continue;
    }
    const float r = gates[0], z = gates[H];
    const float u_n = a.candidate ? a.candidate[row * H + unit] : hidden[2 * H + unit];
    const float n = tanhf(g(2) + (a.reset_after ? r * u_n : u_n));
    gates[2 * H] = n;
    gates[3 * H] = u_n;
    a.new_state[row * H + unit] = (1 - z) * n + z * a.state[row * H + unit];
  }
}

}  // namespace rnnsearch::cuda
