// T steps of the GRU in one launch:
//
//   d    = state_mask ∘ s_{t-1}
//   u    = U d + b                                      g = input_gates_t, parts r, z, n
//   r, z = σ(g + u)
//   n    = tanh(g_n + r ∘ u_n)                          reset_after: one barrier of the team a step
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
  Storage* exchange;             // (3, B, padded_depth(H)): d of even and odd steps, r ∘ d; not read in clusters
  uint32_t* barriers;            // (row_groups + 1,), zero: a counter a team, then Stopped; not read in clusters
  uint32_t spin_limit;
};

template <typename Storage>
struct GruScanShared {
  int columns, stride;
  size_t handed, products, carry, verdict, bytes;  // offsets; the weights come first

  RNNSEARCH_BOTH GruScanShared(const GruShape& shape, int threads) {
    columns = 3 * shape.units;
    stride = column_stride<Storage>(padded_depth(shape.H));
    handed = size_t(columns) * stride * sizeof(Storage);
    // A cluster's exchange, as wide apart as the columns: eight rows fall on different banks.
    const int rows_handed = shape.cluster ? (shape.reset_after ? 2 : 3) * shape.rows : 0;
    products = handed + size_t(rows_handed) * stride * sizeof(Storage);
    carry = products + size_t(threads / 32) * shape.rows * columns * sizeof(float);
    verdict = carry + size_t(shape.rows) * shape.units * sizeof(float);
    bytes = verdict + sizeof(uint32_t);
  }
};

template <typename Storage, int TILES, typename Team>
struct GruScanBlock {
  static constexpr int kUnits = 8 * TILES;
  const GruScanArguments<Storage>& a;
  const GruShape& shape;
  const GruPart part;
  const GruScanShared<Storage> layout;
  const int H, depth, items;  // items: this block's rows times its units
  Storage *weights, *handed;
  float *products, *carry;
  int stride;  // from one row to the next of what is handed over

  RNNSEARCH_DEVICE explicit GruScanBlock(const GruScanArguments<Storage>& arguments)
      : a(arguments),
        shape(arguments.shape),
        part(arguments.shape),
        layout(arguments.shape, thread_count()),
        H(arguments.shape.H),
        depth(padded_depth(arguments.shape.H)),
        items(part.rows * part.units) {
    char* const shared = shared_memory();
    weights = reinterpret_cast<Storage*>(shared);
    handed = reinterpret_cast<Storage*>(shared + layout.handed);
    products = reinterpret_cast<float*>(shared + layout.products);
    carry = reinterpret_cast<float*>(shared + layout.carry);
    stride = Team::kCluster ? layout.stride : depth;
  }

  RNNSEARCH_DEVICE TeamArguments team() const {
    return {a.barriers,        shape.row_groups, part.team,
            shape.unit_groups, a.spin_limit,     reinterpret_cast<uint32_t*>(shared_memory() + layout.verdict)};
  }
  // The team's rows of d of even and of odd steps, and of r ∘ d.
  RNNSEARCH_DEVICE Storage* entering(int which) const {
    if constexpr (Team::kCluster) return handed + size_t(which) * shape.rows * stride;
    return a.exchange + (size_t(which) * shape.B + part.first_row) * stride;
  }
  RNNSEARCH_DEVICE float mask(size_t row, size_t unit) const { return a.state_mask ? a.state_mask[row * H + unit] : 1; }
  RNNSEARCH_DEVICE float input(size_t cell, int gate, size_t unit) const {
    return load_float<Storage>(a.input_gates, a.input_is_storage, (cell * 3 + gate) * H + unit);
  }
  RNNSEARCH_DEVICE float bias(int gate, size_t unit) const {
    return a.hidden_bias ? to_float(a.hidden_bias[size_t(gate) * H + unit]) : 0;
  }

  // What stays in shared memory, and the first d.
  RNNSEARCH_DEVICE void start(const Team& team) {
    for (int i = thread_index(); i < 3 * kUnits * depth; i += thread_count()) {
      const int column = i / depth, k = i % depth, unit = column % kUnits;
      const size_t row = size_t(column / kUnits) * H + part.first_unit + unit;
      const bool real = unit < part.units && k < H;
      weights[size_t(column) * layout.stride + k] = real ? a.hidden_weight[row * H + k] : from_float<Storage>(0);
    }
    if (Team::kCluster || part.member == 0) {
      for (int i = 0; i < (shape.reset_after ? 2 : 3); ++i) zero_depth_padding(entering(i), part.rows, stride, H);
    }
    for (int i = thread_index(); i < items; i += thread_count()) {
      const int local_row = i / part.units;
      const size_t row = part.first_row + local_row, unit = part.first_unit + i % part.units;
      carry[i] = a.state[row * H + unit];
      team.give(entering(0) + size_t(local_row) * stride + unit, from_float<Storage>(mask(row, unit) * carry[i]));
    }
  }

  // The gates, and where the reset comes after the product the step's end.
  RNNSEARCH_DEVICE void gate(const Team& team, int step) {
    Storage* const next = entering((step + 1) % 2);
    if (shape.reset_after) {
      row_products<3 * TILES, Team>(entering(step % 2), stride, part.rows, depth, weights, layout.stride, products,
                                    layout.columns);
    } else {
      row_products<2 * TILES, Team>(entering(step % 2), stride, part.rows, depth, weights, layout.stride, products,
                                    layout.columns);
    }
    block_barrier();
    for (int i = thread_index(); i < items; i += thread_count()) {
      const int local_row = i / part.units, local_unit = i % part.units;
      const size_t row = part.first_row + local_row, unit = part.first_unit + local_unit;
      const StepOfRow at(shape, static_cast<int>(row), step);
      const size_t cell = row * shape.T + at.time;
      float r = 0, z = 0, n = 0, u_n = 0;
      if (at.within) {
        float u[3];
        for (int gate = 0; gate < (shape.reset_after ? 3 : 2); ++gate) {
          u[gate] =
              product_at(products, part.rows, layout.columns, local_row, gate * kUnits + local_unit) + bias(gate, unit);
        }
        r = sigmoid(input(cell, 0, unit) + u[0]);
        z = sigmoid(input(cell, 1, unit) + u[1]);
        if (shape.reset_after) {
          u_n = u[2];
          n = tanhf(input(cell, 2, unit) + r * u_n);
        }
      }
      float* const gates = a.gates + cell * 4 * H + unit;
      const size_t to = size_t(local_row) * stride + unit;
      gates[0] = r;
      gates[H] = z;
      if (shape.reset_after) {
        gates[2 * H] = n;
        gates[3 * H] = u_n;
        if (at.within) carry[i] = (1 - z) * n + z * carry[i];
        a.states[cell * H + unit] = at.within ? carry[i] : 0;
        team.give(next + to, from_float<Storage>(mask(row, unit) * carry[i]));
      } else {
        team.give(entering(2) + to, from_float<Storage>(r * mask(row, unit) * carry[i]));
      }
    }
  }

  // The candidate and the step's end where the reset comes before the product.
  RNNSEARCH_DEVICE void finish(const Team& team, int step) {
    Storage* const next = entering((step + 1) % 2);
    row_products<TILES, Team>(entering(2), stride, part.rows, depth, weights + size_t(2 * kUnits) * layout.stride,
                              layout.stride, products, layout.columns);
    block_barrier();
    for (int i = thread_index(); i < items; i += thread_count()) {
      const int local_row = i / part.units, local_unit = i % part.units;
      const size_t row = part.first_row + local_row, unit = part.first_unit + local_unit;
      const StepOfRow at(shape, static_cast<int>(row), step);
      const size_t cell = row * shape.T + at.time;
      float* const gates = a.gates + cell * 4 * H + unit;
      float n = 0, u_n = 0;
      if (at.within) {
        u_n = product_at(products, part.rows, layout.columns, local_row, local_unit) + bias(2, unit);
        n = tanhf(input(cell, 2, unit) + u_n);
        carry[i] = (1 - gates[H]) * n + gates[H] * carry[i];
      }
      gates[2 * H] = n;
      gates[3 * H] = u_n;
      a.states[cell * H + unit] = at.within ? carry[i] : 0;
      team.give(next + size_t(local_row) * stride + unit, from_float<Storage>(mask(row, unit) * carry[i]));
    }
  }
};

template <typename Storage, int TILES, typename Team>
RNNSEARCH_KERNEL void gru_scan(GruScanArguments<Storage> a) {
  if constexpr (Team::kHere) {
    GruScanBlock<Storage, TILES, Team> block(a);
    Team team(block.team());
    team.enter();
    block.start(team);
    if (!team.wait(0, 0)) return;
    for (int step = 0; step < a.shape.T; ++step) {
      const bool last = step + 1 == a.shape.T;
      block.gate(team, step);
      if (!a.shape.reset_after) {
        if (!team.wait(step, 0)) return;
        block.finish(team, step);
      }
      if (!last && !team.wait(step, a.shape.reset_after ? 0 : 1)) return;
    }
    team.leave();
  }
}

}  // namespace rnnsearch::cuda
