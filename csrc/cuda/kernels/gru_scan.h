// T steps of the GRU in one launch:
//
//   d    = state_mask ∘ s_{t-1}
//   u    = U d + b                                      g = input_gates_t, parts r, z, n
//   r, z = σ(g + u)
//   n    = tanh(g_n + r ∘ u_n)                          reset_after: one grid barrier a step
//   n    = tanh(g_n + U_n (r ∘ d) + b_n)                otherwise:   two
//   s_t  = (1 - z) ∘ n + z ∘ s_{t-1}
//
// The blocks exchange d (and r ∘ d) in the storage type; the state itself stays float32 in the block that owns it.
#pragma once

#include "gru.h"

namespace rnnsearch::cuda {

template <typename Storage>
struct GruScanArguments {
  GruShape shape;
  const void* input_gates;  // (B, T, 3H), Storage or float
  bool input_is_storage;
  const float* state;            // (B, H)
  const Storage* hidden_weight;  // (3H, H)
  const Storage* hidden_bias;    // (3H,) or null
  const float* state_mask;       // (B, H) or null
  float* states;                 // (B, T, H)
  float* gates;                  // (B, T, 4H): r, z, n, u_n
  Storage* exchange;             // (3, B, padded_depth(H)): d of even and odd steps, r ∘ d
  uint32_t* barriers;            // (row_groups + 1,), zero: a counter a team, then Stopped
  uint32_t spin_limit;
};

template <typename Storage>
struct GruScanShared {
  int columns, stride;
  size_t products, carry, verdict, bytes;  // offsets; the weights come first

  RNNSEARCH_BOTH GruScanShared(const GruShape& shape, int threads) {
    columns = 3 * shape.units;
    stride = column_stride<Storage>(padded_depth(shape.H));
    products = size_t(columns) * stride * sizeof(Storage);
    carry = products + size_t(threads / 32) * shape.rows * columns * sizeof(float);
    verdict = carry + size_t(shape.rows) * shape.units * sizeof(float);
    bytes = verdict + sizeof(uint32_t);
  }
};

template <typename Storage, int TILES>
RNNSEARCH_KERNEL void gru_scan(GruScanArguments<Storage> a) {
  const GruShape& shape = a.shape;
  const GruPart part(shape);
  const int H = shape.H, depth = padded_depth(H), units = 8 * TILES;
  const GruScanShared<Storage> layout(shape, thread_count());
  char* shared = shared_memory();
  Storage* weights = reinterpret_cast<Storage*>(shared);
  float* products = reinterpret_cast<float*>(shared + layout.products);
  float* carry = reinterpret_cast<float*>(shared + layout.carry);
  GridBarrier barrier{a.barriers + block_index() / shape.unit_groups, a.barriers + shape.row_groups,
                      static_cast<uint32_t>(shape.unit_groups), a.spin_limit,
                      reinterpret_cast<uint32_t*>(shared + layout.verdict)};
  const size_t parity = size_t(shape.B) * depth;
  Storage* const reset = a.exchange + 2 * parity;

  for (int i = thread_index(); i < 3 * units * depth; i += thread_count()) {
    const int column = i / depth, k = i % depth, unit = column % units;
    const size_t row = size_t(column / units) * H + part.first_unit + unit;
    const bool real = unit < part.units && k < H;
    weights[size_t(column) * layout.stride + k] = real ? a.hidden_weight[row * H + k] : from_float<Storage>(0);
  }
  if (block_index() % shape.unit_groups == 0) {
    for (int i = 0; i < 3; ++i) zero_depth_padding(a.exchange + i * parity, part, H, 1);
  }
  const int items = part.rows * part.units;
  for (int i = thread_index(); i < items; i += thread_count()) {
    const size_t row = part.first_row + i / part.units, unit = part.first_unit + i % part.units;
    carry[i] = a.state[row * H + unit];
    const float mask = a.state_mask ? a.state_mask[row * H + unit] : 1;
    a.exchange[row * depth + unit] = from_float<Storage>(mask * carry[i]);
  }
  if (!barrier.wait(0, 0)) return;

  for (int step = 0; step < shape.T; ++step) {
    const Storage* left = a.exchange + step % 2 * parity + size_t(part.first_row) * depth;
    Storage* const next = a.exchange + (step + 1) % 2 * parity;
    if (shape.reset_after) {
      row_products<3 * TILES>(left, depth, part.rows, depth, weights, layout.stride, products, layout.columns);
    } else {
      row_products<2 * TILES>(left, depth, part.rows, depth, weights, layout.stride, products, layout.columns);
    }
    block_barrier();
    for (int i = thread_index(); i < items; i += thread_count()) {
      const int local_row = i / part.units, local_unit = i % part.units;
      const size_t row = part.first_row + local_row, unit = part.first_unit + local_unit;
      const StepOfRow at(shape, static_cast<int>(row), step);
      const float mask = a.state_mask ? a.state_mask[row * H + unit] : 1;
      float r = 0, z = 0, n = 0, u_n = 0;
      if (at.within) {
        const size_t g = (row * shape.T + at.time) * 3 * H + unit;
        float u[3];
        for (int gate = 0; gate < (shape.reset_after ? 3 : 2); ++gate) {
          u[gate] = product_at(products, part.rows, layout.columns, local_row, gate * units + local_unit) +
                    (a.hidden_bias ? to_float(a.hidden_bias[size_t(gate) * H + unit]) : 0);
        }
        r = sigmoid(load_float<Storage>(a.input_gates, a.input_is_storage, g) + u[0]);
        z = sigmoid(load_float<Storage>(a.input_gates, a.input_is_storage, g + H) + u[1]);
        if (shape.reset_after) {
          u_n = u[2];
          n = tanhf(load_float<Storage>(a.input_gates, a.input_is_storage, g + 2 * H) + r * u_n);
        }
      }
      float* const gates = a.gates + (row * shape.T + at.time) * 4 * H + unit;
      gates[0] = r;
      gates[H] = z;
      if (shape.reset_after) {
        gates[2 * H] = n;
        gates[3 * H] = u_n;
        if (at.within) carry[i] = (1 - z) * n + z * carry[i];
        a.states[(row * shape.T + at.time) * H + unit] = at.within ? carry[i] : 0;
        next[row * depth + unit] = from_float<Storage>(mask * carry[i]);
      } else {
        reset[row * depth + unit] = from_float<Storage>(r * mask * carry[i]);
      }
    }
    if (shape.reset_after && step + 1 == shape.T) return;
    if (!barrier.wait(step, 0)) return;
    if (shape.reset_after) continue;

    row_products<TILES>(reset + size_t(part.first_row) * depth, depth, part.rows, depth,
                        weights + size_t(2 * units) * layout.stride, layout.stride, products, layout.columns);
    block_barrier();
    for (int i = thread_index(); i < items; i += thread_count()) {
      const int local_row = i / part.units, local_unit = i % part.units;
      const size_t row = part.first_row + local_row, unit = part.first_unit + local_unit;
      const StepOfRow at(shape, static_cast<int>(row), step);
      const float mask = a.state_mask ? a.state_mask[row * H + unit] : 1;
      float* const gates = a.gates + (row * shape.T + at.time) * 4 * H + unit;
      float n = 0, u_n = 0;
      if (at.within) {
        const size_t g = (row * shape.T + at.time) * 3 * H + unit;
        u_n = product_at(products, part.rows, layout.columns, local_row, local_unit) +
              (a.hidden_bias ? to_float(a.hidden_bias[size_t(2) * H + unit]) : 0);
        n = tanhf(load_float<Storage>(a.input_gates, a.input_is_storage, g + 2 * H) + u_n);
        carry[i] = (1 - gates[H]) * n + gates[H] * carry[i];
      }
      gates[2 * H] = n;
      gates[3 * H] = u_n;
      a.states[(row * shape.T + at.time) * H + unit] = at.within ? carry[i] : 0;
      next[row * depth + unit] = from_float<Storage>(mask * carry[i]);
    }
    if (step + 1 == shape.T) return;
    if (!barrier.wait(step, 1)) return;
  }
}

}  // namespace rnnsearch::cuda
