// T steps of the attention decoder in one launch:
//
//   d         = state_mask ∘ s_{t-1}
//   query | u = [query_weight ; U] d + biases
//   score_j   = score_weight · tanh(query + keys_j)           α = softmax over the real j of score
//   g         = input_gates_t + Σ_j α_j memory_gates_j        memory_gates = memory context_weightᵀ, made before
//   s_t       = GRU(g, u, s_{t-1})                            gru_scan.h
//
// Two barriers of the team a step: after the product, whose columns are dealt out to the blocks, and after the
// attention and the gates, whose rows are. Where the reset comes before the product, three: u_n = U_n (r ∘ d) + b_n is
// a product of its own, and who has its columns ends the step. The contexts are a product of α after the launch.
#pragma once

#include "decoder_scan_layout.h"

namespace rnnsearch::cuda {

template <typename Storage, typename Team>
struct DecoderScanBlock : DecoderBlock<Storage, DecoderScanArguments, DecoderScanShared, Team> {
  using Base = DecoderBlock<Storage, DecoderScanArguments, DecoderScanShared, Team>;
  using Base::a, Base::shape, Base::part, Base::layout, Base::H, Base::A, Base::inbox, Base::mask;
  const int depth, through, stride;  // through: columns of the product with d; stride: of rows of d
  const Shares of_units;
  const HandedSums<Team> handed;
  Storage* const weights;
  float *const score_weight, *const products, *const scores, *const alphas, *const scales, *const sums;

  RNNSEARCH_DEVICE explicit DecoderScanBlock(const DecoderScanArguments<Storage>& arguments)
      : Base(arguments),
        depth(padded_depth(H)),
        through(A + (shape.reset_after ? 3 : 2) * H),
        stride(Team::kCluster ? layout.stride : depth),
        of_units{H, shape.splits},
        handed{part_sums(shape), inbox, layout.inbox_sums, part.first_row, a.partial},
        weights(this->values(0)),
        score_weight(this->floats(layout.score_weight)),
        products(this->floats(layout.scratch)),
        scores(this->floats(layout.scores)),
        alphas(scores + round_up_to_four(shape.positions())),
        scales(this->floats(layout.scales)),
        sums(this->floats(layout.sums)) {}

  RNNSEARCH_DEVICE Storage* candidate_weights() const { return weights + size_t(8) * shape.tiles * layout.stride; }
  RNNSEARCH_DEVICE float input(size_t cell, int gate, int unit) const {
    return load_float<Storage>(a.input_gates, a.input_is_storage, (cell * 3 + gate) * H + unit);
  }
  RNNSEARCH_DEVICE float old_state(size_t row, int step, int unit) const {
    return step == 0 ? a.state[row * H + unit] : load_fresh(a.states + (row * shape.T + step - 1) * H + unit);
  }

  // The team's rows of d, and of r ∘ d.
  RNNSEARCH_DEVICE Storage* entering(int which) const {
    if constexpr (Team::kCluster) return this->values(layout.handed) + size_t(which) * shape.rows * stride;
    return a.exchange + (size_t(which) * shape.B + part.first_row) * stride;
  }
  RNNSEARCH_DEVICE void enter(const Team& team, int which, size_t row, int unit, float value) const {
    team.give(entering(which) + (row - part.first_row) * stride + unit, from_float<Storage>(value));
  }

  // What stays in shared memory, and the first d.
  RNNSEARCH_DEVICE void start(const Team& team) const {
    keep_columns(weights, layout.stride, 8 * shape.tiles, part.member * 8 * shape.tiles, through, H,
                 [&](int c) { return c < A ? a.query_weight + size_t(c) * H : a.hidden_weight + size_t(c - A) * H; });
    keep_columns(candidate_weights(), layout.stride, 8 * shape.candidate_tiles, part.member * 8 * shape.candidate_tiles,
                 H, H, [&](int c) { return a.hidden_weight + size_t(2 * H + c) * H; });
    copy_row(score_weight, a.score_weight, A);
    this->keep_parts();
    if (Team::kCluster || part.member == 0) {
      for (int i = 0; i < (shape.reset_after ? 1 : 2); ++i) zero_depth_padding(entering(i), part.rows, stride, H);
    }
    for (int item = part.member; item < part.items; item += shape.team) {
      const RowPart at(shape, part.first_row, item);
      for (int i = thread_index(); i < at.units; i += thread_count()) {
        const int unit = at.first_unit + i;
        enter(team, 0, at.row, unit, mask(at.row, unit) * a.state[at.row * H + unit]);
      }
    }
  }

  // This block's columns of a product; true for a thread's entry and its value is what `take` is called with.
  template <int TILES, typename Take>
  RNNSEARCH_DEVICE void product(const Storage* left, const Storage* columns_weights, int tiles, int total,
                                const Take& take) const {
    const int mine = tiles_of(part.member, tiles, total), columns = 8 * tiles, first = part.member * columns;
    if (mine == 0) return;
    row_products<TILES, Team>(left, stride, part.rows, depth, columns_weights, layout.stride, products, columns, mine,
                              layout.parts);
    block_barrier();
    for (int i = thread_index(); i < part.rows * columns; i += thread_count()) {
      const int row = i / columns, column = first + i % columns;
      if (column >= total) continue;
      take(size_t(part.first_row + row), column,
           product_at(products, part.rows, columns, row, i % columns, layout.parts));
    }
  }

  // Query and u go to who attends for the row, and who has its unit.
  template <int TILES>
  RNNSEARCH_DEVICE void project() const {
    product<TILES>(entering(0), weights, shape.tiles, through, [&](size_t row, int column, float value) {
      const Storage* const bias = column < A ? a.query_bias : a.hidden_bias;
      if (bias) value += to_float(bias[column < A ? column : column - A]);
      if constexpr (Team::kCluster) {
        const int to = static_cast<int>(row) - part.first_row;
        if (column < A) {
          for (int split = 0; split < shape.splits; ++split) inbox.send(to, split, column, value);
        } else {
          const int gate = (column - A) / H, unit = (column - A) % H, split = of_units.of(unit);
          inbox.send(to, split, layout.query_width + gate * of_units.most() + unit - of_units.first(split), value);
        }
      } else {
        a.projected[row * (A + 3 * H) + column] = value;
      }
    });
  }
  RNNSEARCH_DEVICE const float* query(const RowPart& at) const {
    if constexpr (Team::kCluster) return inbox.of(at);
    float* const query = this->floats(layout.query);
    for (int i = thread_index(); i < round_up_to_four(A); i += thread_count()) {
      query[i] = i < A ? load_fresh(a.projected + at.row * (A + 3 * H) + i) : 0;
    }
    return query;
  }
  RNNSEARCH_DEVICE float u(const RowPart& at, int gate, int unit) const {
    if constexpr (Team::kCluster) {
      return inbox.of(at)[layout.query_width + gate * of_units.most() + unit - at.first_unit];
    }
    return load_fresh(a.projected + at.row * (A + 3 * H) + A + gate * H + unit);
  }
  // g_n in place of u_n.
  RNNSEARCH_DEVICE float* candidate(size_t row, int unit) const {
    return a.projected + row * (A + 3 * H) + A + 2 * H + unit;
  }

  // Scores, their softmax within the part up to its total, and the weighted sums of memory_gates.
  RNNSEARCH_DEVICE void attend(const RowPart& at, int step) const {
    if (!shape.within(at.row, step)) return;
    block_barrier();  // the row before may still be read
    const float* const query_of_row = query(at);
    block_barrier();
    score_part(shape, at, this->keys_of(at), query_of_row, score_weight, scores);
    block_barrier();
    const float largest = largest_of(scores, at.count);
    for (int i = thread_index(); i < at.count; i += thread_count()) alphas[i] = exp_of(scores[i] - largest);
    block_barrier();
    sum_values(at, this->memory_gates_of(at), scores, alphas, sums);
    if (shape.splits == 1) return;
    block_barrier();
    for (int i = thread_index(); i < 3 * H; i += thread_count()) {
      handed.give(at, i / H, i % H, sum_at(sums, 3 * H, i));
    }
    float* const attn_weights = a.attn_weights + (at.row * shape.T + step) * shape.S + at.first;
    for (int i = thread_index(); i < at.count; i += thread_count()) attn_weights[i] = alphas[i];
    const float total = total_of(alphas, at.count);
    if (thread_index() == 0) handed.give_numbers(at, largest, total);
  }

  // What the parts of a row are multiplied with to become one softmax.
  RNNSEARCH_DEVICE void scale_parts(const RowPart& at) const {
    block_barrier();  // sums are complete, and the row before has been read
    if (shape.splits == 1) {
      const float total = total_of(alphas, at.count);
      if (thread_index() == 0) scales[0] = total == 0 ? 0 : 1 / total;
    } else if (thread_index() < shape.splits) {
      float largest = -INFINITY, total = 0;
      for (int i = 0; i < shape.splits; ++i) {
        if (handed.number(at, i, 1) != 0) largest = fmaxf(largest, handed.number(at, i, 0));
      }
      for (int i = 0; i < shape.splits; ++i) {
        const float of_part = handed.number(at, i, 1);
        if (of_part != 0) total += of_part * exp_of(handed.number(at, i, 0) - largest);
      }
      const int own = thread_index();
      scales[own] = handed.number(at, own, 1) == 0 ? 0 : exp_of(handed.number(at, own, 0) - largest) / total;
    }
    block_barrier();
  }

  RNNSEARCH_DEVICE float context_gate(const RowPart& at, int gate, int unit) const {
    if (shape.splits == 1) return scales[0] * sum_at(sums, 3 * H, gate * H + unit);
    float sum = 0;
    for (int i = 0; i < shape.splits; ++i) {
      if (scales[i] != 0) sum += scales[i] * handed.sum(at, i, gate, unit);
    }
    return sum;
  }

  // The part's attention weights, and its units: the gates, and the step's end where the reset comes after.
  RNNSEARCH_DEVICE void advance(const Team& team, const RowPart& at, int step) const {
    const size_t cell = at.row * shape.T + step;
    const bool within = shape.within(at.row, step);
    float* const attn_weights = a.attn_weights + cell * shape.S + at.first;
    if (within) scale_parts(at);
    for (int i = thread_index(); i < at.count; i += thread_count()) {
      attn_weights[i] = within ? scales[at.split] * (shape.splits == 1 ? alphas[i] : attn_weights[i]) : 0;
    }
    for (int i = thread_index(); i < at.units; i += thread_count()) {
      const int unit = at.first_unit + i;
      float r = 0, z = 0, n = 0, u_n = 0, new_state = 0;
      if (within) {
        const float old = old_state(at.row, step, unit);
        const float g_n = input(cell, 2, unit) + context_gate(at, 2, unit);
        r = sigmoid(input(cell, 0, unit) + context_gate(at, 0, unit) + u(at, 0, unit));
        z = sigmoid(input(cell, 1, unit) + context_gate(at, 1, unit) + u(at, 1, unit));
        if (shape.reset_after) {
          u_n = u(at, 2, unit);
          n = tanhf(g_n + r * u_n);
          new_state = (1 - z) * n + z * old;
          enter(team, 0, at.row, unit, mask(at.row, unit) * new_state);
        } else {
          *candidate(at.row, unit) = g_n;
          enter(team, 1, at.row, unit, r * mask(at.row, unit) * old);
        }
      }
      float* const gates = a.gates + cell * 4 * H + unit;
      gates[0] = r;
      gates[H] = z;
      if (shape.reset_after) {
        gates[2 * H] = n;
        gates[3 * H] = u_n;
        a.states[cell * H + unit] = new_state;
      }
    }
  }

  // The step's end where the reset comes before: this block's units of all rows.
  template <int TILES>
  RNNSEARCH_DEVICE void finish(const Team& team, int step) const {
    product<TILES>(entering(1), candidate_weights(), shape.candidate_tiles, H, [&](size_t row, int unit, float u_n) {
      const size_t cell = row * shape.T + step;
      float* const gates = a.gates + cell * 4 * H + unit;
      float n = 0, new_state = 0;
      if (shape.within(row, step)) {
        if (a.hidden_bias) u_n += to_float(a.hidden_bias[2 * H + unit]);
        n = tanhf(load_fresh(candidate(row, unit)) + u_n);
        const float z = load_fresh(gates + H);
        new_state = (1 - z) * n + z * old_state(row, step, unit);
        enter(team, 0, row, unit, mask(row, unit) * new_state);
      } else {
        u_n = 0;
      }
      gates[2 * H] = n;
      gates[3 * H] = u_n;
      a.states[cell * H + unit] = new_state;
    });
  }
};

template <typename Storage, int TILES, typename Team>
RNNSEARCH_KERNEL_OF(kDecoderThreads)
void decoder_scan(DecoderScanArguments<Storage> a) {
  if constexpr (Team::kHere) {
    const DecoderScanBlock<Storage, Team> block(a);
    const DecoderShape& shape = a.shape;
    const DecoderPart& part = block.part;
    uint32_t* const rows_arrived = a.barriers + shape.row_groups + 1;
    Team team(block.team());
    team.enter();
    block.start(team);
    if (!team.wait(0, kCandidate)) return;

    for (int step = 0; step < shape.T; ++step) {
      const bool last = step + 1 == shape.T;
      block.template project<TILES>();
      if (!team.wait(step, kProjected)) return;
      for (int item = part.member; item < part.items; item += shape.team) {
        const RowPart at(shape, part.first_row, item);
        block.attend(at, step);
        if (shape.splits == 1) block.advance(team, at, step);
      }
      if (shape.splits > 1) {
        if (!meet_rows(shape, part, team, rows_arrived, step + 1, step, kRowShared)) return;
        for (int item = part.member; item < part.items; item += shape.team) {
          block.advance(team, RowPart(shape, part.first_row, item), step);
        }
      }
      if (!shape.reset_after) {
        if (!team.wait(step, kAttended)) return;
        block.template finish<TILES>(team, step);
      }
      if (!last && !team.wait(step, shape.reset_after ? kAttended : kCandidate)) return;
    }
    team.leave();
  }
}

}  // namespace rnnsearch::cuda
