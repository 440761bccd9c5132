// The gradients of decoder_scan that the recurrence needs, T steps in one launch, last step first:
//
//   grad_g, grad_u    the gradients of g and u from grad_state + grad_states_t        gru_scan_backward.h
//   grad_alpha_j      = outside_j + grad_g · memory_gates_j                           outside: all that comes from
//   elsewhere grad_score_j      = alpha_j (grad_alpha_j - mean)                                 mean = Σ_j alpha_j
//   grad_alpha_j grad_query        = score_weight ∘ Σ_j grad_score_j (1 - tanh²(query + keys_j)) grad_state        =
//   grad_state z + state_mask ∘ (query_weightᵀ grad_query + Uᵀ grad_u)
//
// Two grid barriers a step: after the gates, which belong to who has a unit's columns of the weights, and after the
// attention, whose rows are dealt out as in the forward kernel. Where the reset comes before the product, the reset
// gate's gradient is a product of its own, with a third barrier before it. Everything else is a product, or
// attention_grad_keys, after the launch.
#pragma once

#include "decoder_attention_backward.h"

namespace rnnsearch::cuda {

template <typename Storage>
struct DecoderScanBackwardArguments {
  DecoderShape shape;            // tiles: of eight units, up to kGradTiles
  const float* grad_states;      // (B, T, H)
  const float* outside;          // (B, T, S): grad_attn_weights + grad_contexts · memory
  const float* state;            // (B, H)
  const float* state_mask;       // (B, H) or null
  const Storage* keys;           // (B, S, A)
  const Storage* memory_gates;   // (B, S, 3H)
  const Storage* score_weight;   // (A,)
  const Storage* query_weight;   // (A, H)
  const Storage* hidden_weight;  // (3H, H)
  const float* queries;          // (B, T, A)
  const float* states;           // (B, T, H)
  const float* attn_weights;     // (B, T, S), 0 where padded
  const float* gates;            // (B, T, 4H)
  void* grad_input_gates;        // (B, T, 3H), Storage or float
  bool input_is_storage;
  Storage* grad_hidden;   // (B, T, 3H): the gradient of u
  Storage* grad_queries;  // (B, T, A)
  float* grad_scores;     // (B, T, S)
  float* grad_state;      // (B, H)
  Storage* exchange;      // (2, B, grad_depth(A, H)): the gradients of query and u of even and odd steps
  float* grad_gates;      // (B, 3H): the gradient of g
  float* partial;         // (B, splits, grad_partial_width(A)), or null with one split
  uint32_t* barriers;     // (shape.barrier_words(),), zero
  uint32_t spin_limit;
};

constexpr int kGradTiles = 4;

RNNSEARCH_BOTH int grad_depth(int A, int H) { return padded_depth(A) + 3 * padded_depth(H); }

// Of a split's j, X_j = 1 - tanh²(query + keys_j): Σ_j alpha_j (grad_alpha_j - centre) X_j and Σ_j alpha_j X_j, then
// Σ_j alpha_j grad_alpha_j and the split's centre. The mean of all splits is not known yet; what it is off is added
// later.
RNNSEARCH_BOTH int grad_partial_width(int A) { return 2 * round_up_to_four(A) + 4; }

template <typename Storage>
struct DecoderScanBackwardShared {
  int stride, parts;
  size_t score_weight, keys, gates, carry, scratch, grad_gates, grad_alphas, shifts, sums, verdict, bytes;

  RNNSEARCH_BOTH DecoderScanBackwardShared(const DecoderShape& shape, int threads) {
    stride = column_stride<Storage>(grad_depth(shape.A, shape.H));
    parts = product_parts(shape.rows, threads);
    const size_t columns = size_t(8) * shape.tiles, width = round_up_to_four(shape.A);
    score_weight = columns * stride * sizeof(Storage);
    keys = score_weight + width * sizeof(float);
    gates = keys + kept_bytes(shape.kept_keys, shape.A, sizeof(Storage));
    carry = gates + kept_bytes(shape.kept_gates, 3 * shape.H, sizeof(Storage));
    scratch = carry + shape.rows * columns * sizeof(float);
    // The products, and later the attention: they are never there together.
    const size_t products = parts * shape.rows * columns * sizeof(float);
    grad_gates = scratch;
    grad_alphas = grad_gates + round_up_to_four(3 * shape.H) * sizeof(float);
    shifts = grad_alphas + size_t(2) * round_up_to_four(shape.positions()) * sizeof(float);
    sums = shifts + round_up_to_four(shape.splits + 1) * sizeof(float);
    const size_t attention = sums + 2 * sum_lanes(shape.A, threads) * width * sizeof(float);
    verdict = scratch + products > attention ? scratch + products : attention;
    bytes = verdict + sizeof(uint32_t);
  }
};

template <typename Storage>
struct DecoderScanBackwardBlock {
  const DecoderScanBackwardArguments<Storage>& a;
  const DecoderShape& shape;
  DecoderPart part;
  DecoderScanBackwardShared<Storage> layout;
  int H, A, depth, query_depth, hidden_depth;  // depth = query_depth + 3 hidden_depth
  int columns, first_unit, units;              // units of this block, that exist
  Storage *weights, *kept_keys, *kept_gates;
  float *score_weight, *carry, *products, *grad_gates, *grad_alphas, *alphas, *shifts, *sums;

  RNNSEARCH_DEVICE explicit DecoderScanBackwardBlock(const DecoderScanBackwardArguments<Storage>& arguments)
      : a(arguments), shape(arguments.shape), part(arguments.shape), layout(arguments.shape, thread_count()) {
    H = shape.H;
    A = shape.A;
    query_depth = padded_depth(A);
    hidden_depth = padded_depth(H);
    depth = query_depth + 3 * hidden_depth;
    columns = 8 * shape.tiles;
    first_unit = part.member * columns;
    units = H - first_unit < 0 ? 0 : H - first_unit < columns ? H - first_unit : columns;
    char* const shared = shared_memory();
    weights = reinterpret_cast<Storage*>(shared);
    score_weight = reinterpret_cast<float*>(shared + layout.score_weight);
    kept_keys = reinterpret_cast<Storage*>(shared + layout.keys);
    kept_gates = reinterpret_cast<Storage*>(shared + layout.gates);
    carry = reinterpret_cast<float*>(shared + layout.carry);
    products = reinterpret_cast<float*>(shared + layout.scratch);
    grad_gates = reinterpret_cast<float*>(shared + layout.grad_gates);
    grad_alphas = reinterpret_cast<float*>(shared + layout.grad_alphas);
    alphas = grad_alphas + round_up_to_four(shape.positions());
    shifts = reinterpret_cast<float*>(shared + layout.shifts);
    sums = reinterpret_cast<float*>(shared + layout.sums);
  }

  RNNSEARCH_DEVICE Storage* exchanged(int step, size_t row) const {
    return a.exchange + (step % 2 * size_t(shape.B) + row) * depth;
  }
  RNNSEARCH_DEVICE int hidden_at(int gate) const { return query_depth + gate * hidden_depth; }
  RNNSEARCH_DEVICE float mask(size_t row, int unit) const { return a.state_mask ? a.state_mask[row * H + unit] : 1; }
  RNNSEARCH_DEVICE float old_state(size_t row, int step, int unit) const {
    return step == 0 ? a.state[row * H + unit] : a.states[(row * shape.T + step - 1) * H + unit];
  }

  RNNSEARCH_DEVICE PartRows<Storage> keys_of(const RowPart& at) const {
    return {shape, at, a.keys, A, kept_keys, shape.kept_keys};
  }
  RNNSEARCH_DEVICE PartRows<Storage> memory_gates_of(const RowPart& at) const {
    return {shape, at, a.memory_gates, 3 * H, kept_gates, shape.kept_gates};
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
    for (int item = part.member; item < part.items; item += shape.team) {
      const RowPart at(shape, part.first_row, item);
      keys_of(at).keep();
      memory_gates_of(at).keep();
      for (int k = thread_index(); at.split == 0 && k < depth; k += thread_count()) {
        const bool real = k < query_depth ? k < A : (k - query_depth) % hidden_depth < H;
        if (!real) exchanged(0, at.row)[k] = exchanged(1, at.row)[k] = from_float<Storage>(0);
      }
    }
  }

  // This block's units of a product of the rows' gradients [from, from + size) at a step.
  RNNSEARCH_DEVICE void product(int step, int from, int size) {
    if (units == 0) return;
    row_products<kGradTiles>(exchanged(step, part.first_row) + from, depth, part.rows, size, weights + from,
                             layout.stride, products, columns, tiles_of(part.member, shape.tiles, H), layout.parts);
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
    a.grad_gates[(row * 3 + gate) * H + unit] = grad_g;
    exchanged(step, row)[hidden_at(gate) + unit] = from_float<Storage>(grad_u);
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
    for (int i = thread_index(); i < round_up_to_four(3 * H); i += thread_count()) {
      grad_gates[i] = i < 3 * H ? load_fresh(a.grad_gates + at.row * 3 * H + i) : 0;
    }
    for (int i = thread_index(); i < at.count; i += thread_count()) alphas[i] = a.attn_weights[source + i];
    block_barrier();
    grad_alphas_of_part(at, memory_gates_of(at), grad_gates, a.outside + source, alphas, grad_alphas);
    block_barrier();
    float weighted = 0, total = 0;  // by each warp for itself
    for (int i = thread_index() % kWarp; i < at.count; i += kWarp) {
      weighted += alphas[i] * grad_alphas[i];
      total += alphas[i];
    }
    weighted = warp_sum(weighted);
    total = warp_sum(total);
    const float centre = shape.splits == 1 ? weighted : total == 0 ? 0 : weighted / total;
    sum_slopes(at, a.queries + cell * A, keys_of(at), alphas, grad_alphas, centre, sums);
    for (int i = thread_index(); i < at.count; i += thread_count()) a.grad_scores[source + i] = grad_alphas[i];
    if (shape.splits == 1) {
      if (thread_index() == 0) shifts[0] = 0, shifts[1] = weighted;
      return;
    }
    block_barrier();
    const int width = round_up_to_four(A);
    float* const partial = a.partial + (at.row * shape.splits + at.split) * grad_partial_width(A);
    for (int i = thread_index(); i < A; i += thread_count()) {
      partial[i] = sum_at(sums, A, i);
      partial[width + i] = sum_at(sums + sum_lanes(A, thread_count()) * width, A, i);
    }
    if (thread_index() == 0) {
      partial[2 * width] = weighted;
      partial[2 * width + 1] = centre;
    }
  }

  // By how much each part's centre is off the mean, and behind them the mean.
  RNNSEARCH_DEVICE void find_mean(const RowPart& at) {
    block_barrier();  // sums are complete, and the row before has been read
    if (shape.splits == 1) return;
    const float* const statistics = a.partial + at.row * shape.splits * grad_partial_width(A) + 2 * round_up_to_four(A);
    if (thread_index() <= shape.splits) {
      float mean = 0;
      for (int i = 0; i < shape.splits; ++i) mean += load_fresh(statistics + size_t(i) * grad_partial_width(A));
      const int split = thread_index();
      shifts[split] =
          split == shape.splits ? mean : load_fresh(statistics + size_t(split) * grad_partial_width(A) + 1) - mean;
    }
    block_barrier();
  }

  RNNSEARCH_DEVICE float slope(const RowPart& at, int column) const {
    if (shape.splits == 1) return sum_at(sums, A, column);
    const float* const partial = a.partial + at.row * shape.splits * grad_partial_width(A) + column;
    float sum = 0;
    for (int i = 0; i < shape.splits; ++i) {
      const float* const of = partial + size_t(i) * grad_partial_width(A);
      sum += load_fresh(of) + shifts[i] * load_fresh(of + round_up_to_four(A));
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
    const int first = static_cast<int>(int64_t(A) * at.split / shape.splits);
    const int last = static_cast<int>(int64_t(A) * (at.split + 1) / shape.splits);
    for (int i = first + thread_index(); i < last; i += thread_count()) {
      const float grad = within ? score_weight[i] * slope(at, i) : 0;
      a.grad_queries[cell * A + i] = exchanged(step, at.row)[i] = from_float<Storage>(grad);
    }
  }
};

template <typename Storage>
RNNSEARCH_KERNEL_OF(kDecoderThreads)
void decoder_scan_backward(DecoderScanBackwardArguments<Storage> a) {
  DecoderScanBackwardBlock<Storage> block(a);
  const DecoderShape& shape = a.shape;
  const DecoderPart& part = block.part;
  uint32_t* const stopped = a.barriers + shape.row_groups;
  GridBarrier barrier{a.barriers + part.team, stopped, static_cast<uint32_t>(shape.team), a.spin_limit,
                      reinterpret_cast<uint32_t*>(shared_memory() + block.layout.verdict)};
  block.start();
  block_barrier();
  for (int step = shape.T - 1; step >= 0; --step) {
    block.gate(step);
    if (!shape.reset_after) {
      if (!barrier.wait(step, kCandidate)) return;
      block.reset(step);
    }
    if (!barrier.wait(step, kProjected)) return;
    for (int item = part.member; item < part.items; item += shape.team) {
      const RowPart at(shape, part.first_row, item);
      block.attend(at, step);
      if (shape.splits == 1) block.finish(at, step);
    }
    if (shape.splits > 1) {
      if (!meet_rows(shape, part, barrier, stopped + 1, shape.T - step, step, kRowShared)) return;
      for (int item = part.member; item < part.items; item += shape.team) {
        block.finish(RowPart(shape, part.first_row, item), step);
      }
    }
    if (!barrier.wait(step, kAttended)) return;
    block.carry_on(step);
  }
  for (int i = thread_index(); i < part.rows * block.units; i += thread_count()) {
    const size_t row = part.first_row + i / block.units;
    a.grad_state[row * shape.H + block.first_unit + i % block.units] = block.carry[i];
  }
}

}  // namespace rnnsearch::cuda
