// The gradients of gru_scan that the recurrence needs, T steps in one launch, last step first:
//
//   grad_n = δ (1 - z)(1 - n²)                δ = grad_state + grad_states_t
//   grad_z = δ (s_{t-1} - n) z (1 - z)
//   reset_after:  grad_r = grad_n u_n r (1 - r), grad_u = [grad_r, grad_z, grad_n r];       one barrier of the team a
//   step
//                 grad_state = δ z + state_mask ∘ Uᵀ grad_u
//   otherwise:    q = U_nᵀ grad_n, grad_r = q d r (1 - r), grad_u = [grad_r, grad_z, grad_n]; two
//                 grad_state = δ z + state_mask ∘ (q r + U_rzᵀ [grad_r, grad_z])
//
// A block owns units as in the forward kernel and keeps their columns of U. What the blocks hand one another, three
// gates a unit, goes through global memory in a cluster too: it would take as much of the way between blocks. The
// gradients of the weight and the bias are products and sums of grad_hidden after the launch, with what gru_entering
// finds.
#pragma once

#include "gru.h"

namespace rnnsearch::cuda {

template <typename Storage>
struct GruScanBackwardArguments {
  GruShape shape;
  const float* grad_states;      // (B, T, H)
  const float* state;            // (B, H)
  const Storage* hidden_weight;  // (3H, H)
  const float* state_mask;       // (B, H) or null
  const float* states;           // (B, T, H)
  const float* gates;            // (B, T, 4H)
  void* grad_input_gates;        // (B, T, 3H), Storage or float
  bool input_is_storage;
  Storage* grad_hidden;  // (B, T, 3H): the gradient of u, a factor of the weight's
  float* grad_state;     // (B, H)
  Storage* exchange;     // (2, B, 3 padded_depth(H)): the gradient of u of even and odd steps
  uint32_t* barriers;    // (row_groups + 1,), zero
  uint32_t spin_limit;
};

template <typename Storage>
struct GruScanBackwardShared {
  int stride;
  size_t products, carry, verdict, bytes;

  RNNSEARCH_BOTH GruScanBackwardShared(const GruShape& shape, int threads) {
    stride = column_stride<Storage>(3 * padded_depth(shape.H));
    products = size_t(shape.units) * stride * sizeof(Storage);
    carry = products + size_t(threads / 32) * shape.rows * shape.units * sizeof(float);
    verdict = carry + size_t(shape.rows) * shape.units * sizeof(float);
    bytes = verdict + sizeof(uint32_t);
  }
};

template <typename Storage, int TILES, typename Team>
RNNSEARCH_KERNEL void gru_scan_backward(GruScanBackwardArguments<Storage> a) {
  if constexpr (!Team::kHere) return;
  const GruShape& shape = a.shape;
  const GruPart part(shape);
  const int H = shape.H, depth = padded_depth(H), units = 8 * TILES;
  const GruScanBackwardShared<Storage> layout(shape, thread_count());
  char* shared = shared_memory();
  Storage* weights = reinterpret_cast<Storage*>(shared);
  float* products = reinterpret_cast<float*>(shared + layout.products);
  float* carry = reinterpret_cast<float*>(shared + layout.carry);
  Team team({a.barriers, shape.row_groups, part.team, shape.unit_groups, a.spin_limit,
             reinterpret_cast<uint32_t*>(shared + layout.verdict)});
  const size_t parity = size_t(shape.B) * 3 * depth;

  for (int i = thread_index(); i < units * 3 * depth; i += thread_count()) {
    const int unit = i % units, k = i / units, gate = k / depth, from = k % depth;
    const bool real = unit < part.units && from < H;
    weights[size_t(unit) * layout.stride + k] =
        real ? a.hidden_weight[(size_t(gate) * H + from) * H + part.first_unit + unit] : from_float<Storage>(0);
  }
  if (part.member == 0) {
    for (int i = 0; i < 2; ++i) {
      zero_depth_padding(a.exchange + i * parity + size_t(part.first_row) * 3 * depth, 3 * part.rows, depth, H);
    }
  }
  const int items = part.rows * part.units;
  for (int i = thread_index(); i < items; i += thread_count()) carry[i] = 0;

  for (int step = shape.T - 1; step >= 0; --step) {
    Storage* const exchange = a.exchange + step % 2 * parity;
    for (int i = thread_index(); i < items; i += thread_count()) {
      const size_t row = part.first_row + i / part.units, unit = part.first_unit + i % part.units;
      const StepOfRow at(shape, static_cast<int>(row), step);
      const size_t cell = row * shape.T + at.time;
      float grad_r = 0, grad_z = 0, grad_n = 0, grad_u_n = 0;
      if (at.within) {
        const float* gates = a.gates + cell * 4 * H + unit;
        const float r = gates[0], z = gates[H], n = gates[2 * H], u_n = gates[3 * H];
        const float old = old_state(shape, a.state, a.states, row, step, unit);
        const float total = carry[i] + a.grad_states[cell * H + unit];
        grad_n = total * (1 - z) * (1 - n * n);
        grad_z = total * (old - n) * z * (1 - z);
        grad_u_n = grad_n;
        if (shape.reset_after) {
          grad_r = grad_n * u_n * r * (1 - r);
          grad_u_n = grad_n * r;
        }
        carry[i] = total * z;
      }
      store_float<Storage>(a.grad_input_gates, a.input_is_storage, cell * 3 * H + H + unit, grad_z);
      store_float<Storage>(a.grad_input_gates, a.input_is_storage, cell * 3 * H + 2 * H + unit, grad_n);
      Storage* const grad_hidden = a.grad_hidden + cell * 3 * H + unit;
      Storage* const out = exchange + row * 3 * depth + unit;
      grad_hidden[H] = out[depth] = from_float<Storage>(grad_z);
      grad_hidden[2 * H] = out[2 * depth] = from_float<Storage>(grad_u_n);
      if (shape.reset_after) {
        store_float<Storage>(a.grad_input_gates, a.input_is_storage, cell * 3 * H + unit, grad_r);
        grad_hidden[0] = out[0] = from_float<Storage>(grad_r);
      }
    }
    if (!team.wait(step, 0)) return;

    const Storage* const left = exchange + size_t(part.first_row) * 3 * depth;
    if (!shape.reset_after) {
      row_products<TILES, GridTeam>(left + 2 * depth, 3 * depth, part.rows, depth, weights + 2 * depth, layout.stride,
                                    products, units);
      block_barrier();
      for (int i = thread_index(); i < items; i += thread_count()) {
        const int local_row = i / part.units, local_unit = i % part.units;
        const size_t row = part.first_row + local_row, unit = part.first_unit + local_unit;
        const StepOfRow at(shape, static_cast<int>(row), step);
        const size_t cell = row * shape.T + at.time;
        float grad_r = 0;
        if (at.within) {
          const float mask = a.state_mask ? a.state_mask[row * H + unit] : 1;
          const float old = old_state(shape, a.state, a.states, row, step, unit);
          const float r = a.gates[cell * 4 * H + unit];
          const float grad_reset = product_at(products, part.rows, units, local_row, local_unit);
          grad_r = grad_reset * mask * old * r * (1 - r);
          carry[i] += mask * grad_reset * r;
        }
        store_float<Storage>(a.grad_input_gates, a.input_is_storage, cell * 3 * H + unit, grad_r);
        a.grad_hidden[cell * 3 * H + unit] = exchange[row * 3 * depth + unit] = from_float<Storage>(grad_r);
      }
      if (!team.wait(step, 1)) return;
    }
    row_products<TILES, GridTeam>(left, 3 * depth, part.rows, (shape.reset_after ? 3 : 2) * depth, weights,
                                  layout.stride, products, units);
    block_barrier();
    for (int i = thread_index(); i < items; i += thread_count()) {
      const int local_row = i / part.units, local_unit = i % part.units;
      const size_t row = part.first_row + local_row, unit = part.first_unit + local_unit;
      const float mask = a.state_mask ? a.state_mask[row * H + unit] : 1;
      if (StepOfRow(shape, static_cast<int>(row), step).within) {
        carry[i] += mask * product_at(products, part.rows, units, local_row, local_unit);
      }
    }
  }
  for (int i = thread_index(); i < items; i += thread_count()) {
    a.grad_state[size_t(part.first_row + i / part.units) * H + part.first_unit + i % part.units] = carry[i];
  }
}

// The other factors of the weight's gradient, zero past a row's length: d, and r ∘ d where the reset comes first.
template <typename Storage>
struct GruEnteringArguments {
  GruShape shape;
  const float* state;       // (B, H)
  const float* state_mask;  // (B, H) or null
  const float* states;      // (B, T, H)
  const float* gates;       // (B, T, 4H)
  Storage* entering;        // (B, T, H)
  Storage* reset;           // (B, T, H) or null
};

// A block a row and step.
template <typename Storage>
RNNSEARCH_KERNEL void gru_entering(GruEnteringArguments<Storage> a) {
  const GruShape& shape = a.shape;
  const int row = block_index() / shape.T, step = block_index() % shape.T;
  const StepOfRow at(shape, row, step);
  const size_t H = shape.H, cell = size_t(row) * shape.T + at.time;
  for (size_t unit = thread_index(); unit < H; unit += thread_count()) {
    float entering = 0;
    if (at.within) {
      const float mask = a.state_mask ? a.state_mask[row * H + unit] : 1;
      entering = mask * old_state(shape, a.state, a.states, row, step, unit);
    }
    a.entering[cell * H + unit] = from_float<Storage>(entering);
    if (a.reset) a.reset[cell * H + unit] = from_float<Storage>(entering * a.gates[cell * 4 * H + unit]);
  }
}

}  // namespace rnnsearch::cuda
