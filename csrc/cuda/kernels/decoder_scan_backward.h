// The gradients of decoder_scan that the recurrence needs, T steps in one launch, last step first:
//
//   grad_g, grad_u    the gradients of g and u from grad_state + grad_states_t        gru_scan_backward.h
//   grad_alpha_j    = outside_j + grad_g · memory_gates_j             outside: all that comes from elsewhere
//   grad_score_j    = alpha_j (grad_alpha_j - mean)                   mean = Σ_j alpha_j grad_alpha_j
//   grad_query      = score_weight ∘ Σ_j grad_score_j (1 - tanh²(query + keys_j))
//   grad_state      = grad_state z + state_mask ∘ (query_weightᵀ grad_query + Uᵀ grad_u)
//
// Two barriers of the team a step: after the gates, which belong to who has a unit's columns of the weights, and after
// the attention, whose rows are dealt out as in the forward kernel. Where the reset comes before the product, the reset
// gate's gradient is a product of its own, with a third barrier before it. Everything else is a product, or
// attention_grad_keys, after the launch. The gradients of query and u, A + 3H values a row that all blocks read, go
// through global memory in a cluster too: a copy in each block would leave its keys no room.
#pragma once

#include "decoder_scan_backward_layout.h"

namespace rnnsearch::cuda {

template <typename Storage, typename Team>
struct DecoderScanBackwardBlock : DecoderBlock<Storage, DecoderScanBackwardArguments, DecoderScanBackwardShared, Team> {
  using Base = DecoderBlock<Storage, DecoderScanBackwardArguments, DecoderScanBackwardShared, Team>;
  using Base::a, Base::shape, Base::part, Base::layout, Base::H, Base::A, Base::inbox, Base::mask;
  const int query_depth, hidden_depth, depth;  // depth = query_depth + 3 hidden_depth
  const int columns, first_unit;
  int units;  // of this block, that exist
  const Shares of_query;
  const HandedSums<Team> handed;
  Storage* const weights;
  float *const score_weight, *const carry, *const products, *const grad_alphas, *const alphas, *const shifts,
                                                                                                   *const sums;

  RNNSEARCH_DEVICE explicit DecoderScanBackwardBlock(const DecoderScanBackwardArguments<Storage>& arguments)
      : Base(arguments),
        query_depth(padded_depth(A)),
        hidden_depth(padded_depth(H)),
        depth(query_depth + 3 * hidden_depth),
        columns(8 * shape.tiles),
        first_unit(part.member * columns),
        of_query{A, shape.splits},
        handed{grad_part_sums(shape), inbox, layout.inbox_sums, part.first_row, a.partial},
        weights(this->values(0)),
        score_weight(this->floats(layout.score_weight)),
        carry(this->floats(layout.carry)),
        products(this->floats(layout.scratch)),
        grad_alphas(this->floats(layout.grad_alphas)),
        alphas(grad_alphas + round_up_to_four(shape.positions())),
        shifts(this->floats(layout.shifts)),
        sums(this->floats(layout.sums)) {
    units = H - first_unit < 0 ? 0 : H - first_unit < columns ? H - first_unit : columns;
  }

  RNNSEARCH_DEVICE Storage* exchanged(int step, size_t row) const {
    return a.exchange + (step % 2 * size_t(shape.B) + row) * depth;
  }
  RNNSEARCH_DEVICE int hidden_at(int gate) const { return query_depth + gate * hidden_depth; }
  RNNSEARCH_DEVICE float old_state(size_t row, int step, int unit) const {
    return step == 0 ? a.state[row * H + unit] : a.states[(row * shape.T + step - 1) * H + unit];
  }

  // What stays in shared memory, and zeros in what pads the depth.
  RNNSEARCH_DEVICE void start() {
    for (int i = thread_index(); i < columns * depth; i += thread_count()) {
      const int unit = i % columns, k = i / columns;  // neighbours read neighbours
      const int gate = k < query_depth ? 0 : (k - query_depth) / hidden_depth;
      const int from = k < query_depth ? k : (k - query_depth) % hidden_depth;
      const Storage* const row =
          k < query_depth ? a.query_weight + size_t(from) * H : a.hidden_weight + (size_t(gate) * H + from) * H;
      const bool real = unit < units && from < (k < query_depth ? A : H);
      weights[size_t(unit) * layout.stride + k] = real ? row[first_unit + unit] : from_float<Storage>(0);
    }
    copy_row(score_weight, a.score_weight, A);
    for (int i = thread_index(); i < part.rows * columns; i += thread_count()) carry[i] = 0;
    this->keep_parts();
    for (int item = part.member; item < part.items; item += shape.team) {
      const RowPart at(shape, part.first_row, item);
      for (int k = thread_index(); at.split == 0 && k < depth; k += thread_count()) {
        const bool real = k < query_depth ? k < A : (k - query_depth) % hidden_depth < H;
        if (!real) exchanged(0, at.row)[k] = exchanged(1, at.row)[k] = from_float<Storage>(0);
      }
    }
  }

  // This block's units of a product of the rows' gradients [from, from + size) at a step.
  RNNSEARCH_DEVICE void product(int step, int from, int size) {
    if (units == 0) return;
    row_products<kGradTiles, GridTeam>(exchanged(step, part.first_row) + from, depth, part.rows, size, weights + from,
                                       layout.stride, products, columns, tiles_of(part.member, shape.tiles, H),
                                       layout.parts);
    block_barrier();
  }
  RNNSEARCH_DEVICE float product_of(int row, int unit) const {
    return product_at(products, part.rows, columns, row, unit, layout.parts);
  }

  // What a step leaves to the one before: of all gradients, or all but the candidate's where that went first.
  RNNSEARCH_DEVICE void carry_on(int step) {
    product(step, 0, shape.reset_after ? depth : hidden_at(2));
    for (int i = thread_index(); i < part.rows * units; i += thread_count()) {
      const int row = i / units, unit = i % units;
      if (!shape.within(part.first_row + row, step)) continue;
      carry[i] += mask(part.first_row + row, first_unit + unit) * product_of(row, unit);
    }
  }

  RNNSEARCH_DEVICE void give(size_t row, int step, int gate, int unit, float grad_g, float grad_u) {
    const size_t to = ((row * shape.T + step) * 3 + gate) * H + unit;
    store_float<Storage>(a.grad_input_gates, a.input_is_storage, to, grad_g);
    a.grad_hidden[to] = from_float<Storage>(grad_u);
    exchanged(step, row)[hidden_at(gate) + unit] = from_float<Storage>(grad_u);
    if constexpr (Team::kCluster) {
      for (int split = 0; split < shape.splits; ++split) {
        inbox.send(static_cast<int>(row) - part.first_row, split, gate * H + unit, grad_g);
      }
    } else {
      a.grad_gates[(row * 3 + gate) * H + unit] = grad_g;
    }
  }
  RNNSEARCH_DEVICE const float* grad_gates(const RowPart& at) const {
    if constexpr (Team::kCluster) return inbox.of(at);
    float* const grad_gates = this->floats(layout.grad_gates);
    for (int i = thread_index(); i < round_up_to_four(3 * H); i += thread_count()) {
      grad_gates[i] = i < 3 * H ? load_fresh(a.grad_gates + at.row * 3 * H + i) : 0;
    }
    return grad_gates;
  }

  RNNSEARCH_DEVICE void gate(int step) {
    for (int i = thread_index(); i < part.rows * units; i += thread_count()) {
      const size_t row = part.first_row + i / units, cell = row * shape.T + step;
      const int unit = first_unit + i % units;
      float grad_r = 0, grad_z = 0, grad_n = 0, grad_u_n = 0;
      if (shape.within(row, step)) {
        const float* const gates = a.gates + cell * 4 * H + unit;
        const float r = gates[0], z = gates[H], n = gates[2 * H], u_n = gates[3 * H];
        const float total = carry[i] + a.grad_states[cell * H + unit];
        grad_n = total * (1 - z) * (1 - n * n);
        grad_z = total * (old_state(row, step, unit) - n) * z * (1 - z);
        grad_u_n = grad_n;
        if (shape.reset_after) {
          grad_r = grad_n * u_n * r * (1 - r);
          grad_u_n = grad_n * r;
        }
        carry[i] = total * z;
      }
      if (shape.reset_after) give(row, step, 0, unit, grad_r, grad_r);
      give(row, step, 1, unit, grad_z, grad_z);
      give(row, step, 2, unit, grad_n, grad_u_n);
    }
  }

  // The reset gate's gradient where it waits for U_nᵀ grad_n.
  RNNSEARCH_DEVICE void reset(int step) {
    product(step, hidden_at(2), hidden_depth);
    for (int i = thread_index(); i < part.rows * units; i += thread_count()) {
      const size_t row = part.first_row + i / units;
      const int unit = first_unit + i % units;
      float grad_r = 0;
      if (shape.within(row, step)) {
        const float r = a.gates[(row * shape.T + step) * 4 * H + unit];
        const float grad_reset = product_of(i / units, i % units) * mask(row, unit);
        grad_r = grad_reset * old_state(row, step, unit) * r * (1 - r);
        carry[i] += grad_reset * r;
      }
      give(row, step, 0, unit, grad_r, grad_r);
    }
  }

  // A part's gradients of alpha, and the sums over its positions that make the query's.
  RNNSEARCH_DEVICE void attend(const RowPart& at, int step) {
    if (!shape.within(at.row, step)) return;
    const size_t cell = at.row * shape.T + step, source = cell * shape.S + at.first;
    block_barrier();  // the row before may still be read
    const float* const grad_g = grad_gates(at);
    for (int i = thread_index(); i < at.count; i += thread_count()) alphas[i] = a.attn_weights[source + i];
    block_barrier();
    grad_alphas_of_part(at, this->memory_gates_of(at), grad_g, a.outside + source, alphas, grad_alphas);
    block_barrier();
    float weighted = 0, total = 0;  // by each warp for itself
    for (int i = thread_index() % kWarp; i < at.count; i += kWarp) {
      weighted += alphas[i] * grad_alphas[i];
      total += alphas[i];
    }
    weighted = warp_sum(weighted);
    total = warp_sum(total);
    const float centre = shape.splits == 1 ? weighted : total == 0 ? 0 : weighted / total;
    sum_slopes(at, a.queries + cell * A, this->keys_of(at), alphas, grad_alphas, centre, sums);
    for (int i = thread_index(); i < at.count; i += thread_count()) a.grad_scores[source + i] = grad_alphas[i];
    if (shape.splits == 1) {
      if (thread_index() == 0) shifts[0] = 0, shifts[1] = weighted;
      return;
    }
    block_barrier();
    const float* const plain = sums + sum_lanes(A, thread_count()) * round_up_to_four(A);
    for (int i = thread_index(); i < A; i += thread_count()) {
      handed.give(at, 0, i, sum_at(sums, A, i));
      handed.give(at, 1, i, sum_at(plain, A, i));
    }
    if (thread_index() == 0) handed.give_numbers(at, weighted, centre);
  }

  // By how much each part's centre is off the mean, and behind them the mean.
  RNNSEARCH_DEVICE void find_mean(const RowPart& at) {
    block_barrier();  // sums are complete, and the row before has been read
    if (shape.splits == 1) return;
    if (thread_index() <= shape.splits) {
      float mean = 0;
      for (int i = 0; i < shape.splits; ++i) mean += handed.number(at, i, 0);
      const int split = thread_index();
      shifts[split] = split == shape.splits ? mean : handed.number(at, split, 1) - mean;
    }
    block_barrier();
  }

  RNNSEARCH_DEVICE float slope(const RowPart& at, int column) const {
    if (shape.splits == 1) return sum_at(sums, A, column);
    float sum = 0;
    for (int i = 0; i < shape.splits; ++i) {
      sum += handed.sum(at, i, 0, column) + shifts[i] * handed.sum(at, i, 1, column);
    }
    return sum;
  }

  // The part's gradients of the scores, and its share of the query's.
  RNNSEARCH_DEVICE void finish(const RowPart& at, int step) {
    const size_t cell = at.row * shape.T + step, source = cell * shape.S + at.first;
    const bool within = shape.within(at.row, step);
    if (within) find_mean(at);
    for (int i = thread_index(); i < at.count; i += thread_count()) {
      float grad = 0;
      if (within) grad = a.attn_weights[source + i] * (a.grad_scores[source + i] - shifts[shape.splits]);
      a.grad_scores[source + i] = grad;
    }
    const int last = of_query.first(at.split + 1);
    for (int i = of_query.first(at.split) + thread_index(); i < last; i += thread_count()) {
      const float grad = within ? score_weight[i] * slope(at, i) : 0;
      a.grad_queries[cell * A + i] = exchanged(step, at.row)[i] = from_float<Storage>(grad);
    }
  }
};

template <typename Storage, typename Team>
RNNSEARCH_KERNEL_OF(kDecoderThreads)
void decoder_scan_backward(DecoderScanBackwardArguments<Storage> a) {
  if constexpr (Team::kHere) {
    DecoderScanBackwardBlock<Storage, Team> block(a);
    const DecoderShape& shape = a.shape;
    const DecoderPart& part = block.part;
    uint32_t* const rows_arrived = a.barriers + shape.row_groups + 1;
    Team team(block.team());
    block.start();
    block_barrier();
    team.enter();
    for (int step = shape.T - 1; step >= 0; --step) {
      block.gate(step);
      if (!shape.reset_after) {
        if (!team.wait(step, kCandidate)) return;
        block.reset(step);
      }
      if (!team.wait(step, kProjected)) return;
      for (int item = part.member; item < part.items; item += shape.team) {
        const RowPart at(shape, part.first_row, item);
        block.attend(at, step);
        if (shape.splits == 1) block.finish(at, step);
      }
      if (shape.splits > 1) {
        if (!meet_rows(shape, part, team, rows_arrived, shape.T - step, step, kRowShared)) return;
        for (int item = part.member; item < part.items; item += shape.team) {
          block.finish(RowPart(shape, part.first_row, item), step);
        }
      }
      if (!team.wait(step, kAttended)) return;
      block.carry_on(step);
    }
    for (int i = thread_index(); i < part.rows * block.units; i += thread_count()) {
      const size_t row = part.first_row + i / block.units;
      a.grad_state[row * shape.H + block.first_unit + i % block.units] = block.carry[i];
    }
  }
}

}  // namespace rnnsearch::cuda
