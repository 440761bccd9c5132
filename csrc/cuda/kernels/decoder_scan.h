// T steps of the attention decoder in one launch:
//
//   d         = state_mask ∘ s_{t-1}
//   query | u = [query_weight ; U] d + biases
//   score_j   = score_weight · tanh(query + keys_j)           α = softmax over the real j of score
//   g         = input_gates_t + Σ_j α_j memory_gates_j        memory_gates = memory context_weightᵀ, made before
//   s_t       = GRU(g, u, s_{t-1})                            gru_scan.h
//
// Two grid barriers a step: after the product, whose columns are dealt out to the blocks, and after the attention and
// the gates, whose rows are. Where the reset comes before the product, three: u_n = U_n (r ∘ d) + b_n is a product of
// its own, and who has its columns ends the step. The contexts are a product of α after the launch.
#pragma once

#include "decoder_attention.h"

namespace rnnsearch::cuda {

template <typename Storage>
struct DecoderScanArguments {
  DecoderShape shape;
  const void* input_gates;  // (B, T, 3H), Storage or float
  bool input_is_storage;
  const float* state;            // (B, H)
  const float* state_mask;       // (B, H) or null
  const Storage* keys;           // (B, S, A)
  const Storage* memory_gates;   // (B, S, 3H)
  const Storage* score_weight;   // (A,)
  const Storage* query_weight;   // (A, H)
  const Storage* query_bias;     // (A,) or null
  const Storage* hidden_weight;  // (3H, H)
  const Storage* hidden_bias;    // (3H,) or null
  float* states;                 // (B, T, H)
  float* attn_weights;           // (B, T, S)
  float* gates;                  // (B, T, 4H): r, z, n, u_n
  Storage* exchange;             // (2, B, padded_depth(H)): d, r ∘ d
  float* projected;              // (B, A + 3H): query and u; g_n in place of u_n where that comes later
  float* partial;                // (B, splits, partial_width(H)), or null with one split
  uint32_t* barriers;            // (shape.barrier_words(),), zero
  uint32_t spin_limit;
};

// Σ_j exp(score_j - largest) memory_gates_j, then largest and Σ_j exp(score_j - largest), of a split's j.
RNNSEARCH_BOTH int partial_width(int H) { return round_up_to_four(3 * H) + 4; }

template <typename Storage>
struct DecoderScanShared {
  int stride, parts;
  size_t score_weight, keys, gates, scratch, query, scores, scales, sums, verdict,
      bytes;  // offsets; the weights come first

  RNNSEARCH_BOTH DecoderScanShared(const DecoderShape& shape, int threads) {
    stride = column_stride<Storage>(padded_depth(shape.H));
    parts = product_parts(shape.rows, threads);
    score_weight = size_t(8) * (shape.tiles + shape.candidate_tiles) * stride * sizeof(Storage);
    keys = score_weight + round_up_to_four(shape.A) * sizeof(float);
    gates = keys + kept_bytes(shape.kept_keys, shape.A, sizeof(Storage));
    scratch = gates + kept_bytes(shape.kept_gates, 3 * shape.H, sizeof(Storage));
    // The products, and later the attention: they are never there together.
    const int tiles = shape.tiles > shape.candidate_tiles ? shape.tiles : shape.candidate_tiles;
    const size_t products = size_t(parts) * shape.rows * 8 * tiles * sizeof(float);
    query = scratch;
    scores = query + round_up_to_four(shape.A) * sizeof(float);
    scales = scores + size_t(2) * round_up_to_four(shape.positions()) * sizeof(float);
    sums = scales + round_up_to_four(shape.splits) * sizeof(float);
    const size_t width = round_up_to_four(3 * shape.H);
    const size_t attention = sums + sum_lanes(3 * shape.H, threads) * width * sizeof(float);
    verdict = scratch + products > attention ? scratch + products : attention;
    bytes = verdict + sizeof(uint32_t);
  }
};

template <typename Storage>
struct DecoderScanBlock {
  const DecoderScanArguments<Storage>& a;
  const DecoderShape& shape;
  DecoderPart part;
  DecoderScanShared<Storage> layout;
  int H, A, depth, through;  // through: columns of the product with d
  Storage *weights, *kept_keys, *kept_gates;
  float *score_weight, *products, *query, *scores, *alphas, *scales, *sums;

  RNNSEARCH_DEVICE explicit DecoderScanBlock(const DecoderScanArguments<Storage>& arguments)
      : a(arguments), shape(arguments.shape), part(arguments.shape), layout(arguments.shape, thread_count()) {
    H = shape.H;
    A = shape.A;
    depth = padded_depth(H);
    through = A + (shape.reset_after ? 3 : 2) * H;
    char* const shared = shared_memory();
    weights = reinterpret_cast<Storage*>(shared);
    score_weight = reinterpret_cast<float*>(shared + layout.score_weight);
    kept_keys = reinterpret_cast<Storage*>(shared + layout.keys);
    kept_gates = reinterpret_cast<Storage*>(shared + layout.gates);
    products = reinterpret_cast<float*>(shared + layout.scratch);
    query = reinterpret_cast<float*>(shared + layout.query);
    scores = reinterpret_cast<float*>(shared + layout.scores);
    alphas = scores + round_up_to_four(shape.positions());
    scales = reinterpret_cast<float*>(shared + layout.scales);
    sums = reinterpret_cast<float*>(shared + layout.sums);
  }

  RNNSEARCH_DEVICE Storage* entering(int which) const { return a.exchange + size_t(which) * shape.B * depth; }
  RNNSEARCH_DEVICE Storage* candidate_weights() const { return weights + size_t(8) * shape.tiles * layout.stride; }
  RNNSEARCH_DEVICE float mask(size_t row, int unit) const { return a.state_mask ? a.state_mask[row * H + unit] : 1; }
  RNNSEARCH_DEVICE float input(size_t cell, int gate, int unit) const {
    return load_float<Storage>(a.input_gates, a.input_is_storage, (cell * 3 + gate) * H + unit);
  }
  RNNSEARCH_DEVICE float old_state(size_t row, int step, int unit) const {
    return step == 0 ? a.state[row * H + unit] : load_fresh(a.states + (row * shape.T + step - 1) * H + unit);
  }

  RNNSEARCH_DEVICE PartRows<Storage> keys_of(const RowPart& at) const {
    return {shape, at, a.keys, A, kept_keys, shape.kept_keys};
  }
  RNNSEARCH_DEVICE PartRows<Storage> memory_gates_of(const RowPart& at) const {
    return {shape, at, a.memory_gates, 3 * H, kept_gates, shape.kept_gates};
  }

  // What stays in shared memory, and the first d.
  RNNSEARCH_DEVICE void start() {
    keep_columns(weights, layout.stride, 8 * shape.tiles, part.member * 8 * shape.tiles, through, H,
                 [&](int c) { return c < A ? a.query_weight + size_t(c) * H : a.hidden_weight + size_t(c - A) * H; });
    keep_columns(candidate_weights(), layout.stride, 8 * shape.candidate_tiles, part.member * 8 * shape.candidate_tiles,
                 H, H, [&](int c) { return a.hidden_weight + size_t(2 * H + c) * H; });
    copy_row(score_weight, a.score_weight, A);
    for (int item = part.member; item < part.items; item += shape.team) {
      const RowPart at(shape, part.first_row, item);
      keys_of(at).keep();
      memory_gates_of(at).keep();
      for (int i = thread_index(); i < at.units; i += thread_count()) {
        const int unit = at.first_unit + i;
        entering(0)[at.row * depth + unit] = from_float<Storage>(mask(at.row, unit) * a.state[at.row * H + unit]);
      }
      for (int i = H + thread_index(); at.split == 0 && i < depth; i += thread_count()) {
        entering(0)[at.row * depth + i] = entering(1)[at.row * depth + i] = from_float<Storage>(0);
      }
    }
  }

  // This block's columns of a product; true for a thread's entry and its value is what `take` is called with.
  template <int TILES, typename Take>
  RNNSEARCH_DEVICE void product(const Storage* left, const Storage* columns_weights, int tiles, int total,
                                const Take& take) {
    const int mine = tiles_of(part.member, tiles, total), columns = 8 * tiles, first = part.member * columns;
    if (mine == 0) return;
    row_products<TILES>(left + size_t(part.first_row) * depth, depth, part.rows, depth, columns_weights, layout.stride,
                        products, columns, mine, layout.parts);
    block_barrier();
    for (int i = thread_index(); i < part.rows * columns; i += thread_count()) {
      const int row = i / columns, column = first + i % columns;
      if (column >= total) continue;
      take(size_t(part.first_row + row), column,
           product_at(products, part.rows, columns, row, i % columns, layout.parts));
    }
  }

  template <int TILES>
  RNNSEARCH_DEVICE void project() {
    product<TILES>(entering(0), weights, shape.tiles, through, [&](size_t row, int column, float value) {
      const Storage* const bias = column < A ? a.query_bias : a.hidden_bias;
      if (bias) value += to_float(bias[column < A ? column : column - A]);
      a.projected[row * (A + 3 * H) + column] = value;
    });
  }

  // Scores, their softmax within the part up to its total, and the weighted sums of memory_gates.
  RNNSEARCH_DEVICE void attend(const RowPart& at, int step) {
    if (!shape.within(at.row, step)) return;
    block_barrier();  // the row before may still be read
    for (int i = thread_index(); i < round_up_to_four(A); i += thread_count()) {
      query[i] = i < A ? load_fresh(a.projected + at.row * (A + 3 * H) + i) : 0;
    }
    block_barrier();
    score_part(shape, at, keys_of(at), query, score_weight, scores);
    block_barrier();
    const float largest = largest_of(scores, at.count);
    for (int i = thread_index(); i < at.count; i += thread_count()) alphas[i] = exp_of(scores[i] - largest);
    block_barrier();
    sum_values(at, memory_gates_of(at), scores, alphas, sums);
    if (shape.splits == 1) return;
    block_barrier();
    float* const partial = a.partial + (at.row * shape.splits + at.split) * partial_width(H);
    for (int i = thread_index(); i < 3 * H; i += thread_count()) partial[i] = sum_at(sums, 3 * H, i);
    float* const attn_weights = a.attn_weights + (at.row * shape.T + step) * shape.S + at.first;
    for (int i = thread_index(); i < at.count; i += thread_count()) attn_weights[i] = alphas[i];
    const float total = total_of(alphas, at.count);
    if (thread_index() == 0) {
      partial[partial_width(H) - 2] = largest;
      partial[partial_width(H) - 1] = total;
    }
  }

  // What the parts of a row are multiplied with to become one softmax.
  RNNSEARCH_DEVICE void scale_parts(const RowPart& at) {
    block_barrier();  // sums are complete, and the row before has been read
    if (shape.splits == 1) {
      const float total = total_of(alphas, at.count);
      if (thread_index() == 0) scales[0] = total == 0 ? 0 : 1 / total;
    } else if (thread_index() < shape.splits) {
      const float* const statistics = a.partial + at.row * shape.splits * partial_width(H) + partial_width(H) - 2;
      float largest = -INFINITY, total = 0;
      for (int i = 0; i < shape.splits; ++i) {
        const float* const of = statistics + size_t(i) * partial_width(H);
        if (load_fresh(of + 1) != 0) largest = fmaxf(largest, load_fresh(of));
      }
      for (int i = 0; i < shape.splits; ++i) {
        const float* const of = statistics + size_t(i) * partial_width(H);
        if (load_fresh(of + 1) != 0) total += load_fresh(of + 1) * exp_of(load_fresh(of) - largest);
      }
      const float* const own = statistics + size_t(thread_index()) * partial_width(H);
      scales[thread_index()] = load_fresh(own + 1) == 0 ? 0 : exp_of(load_fresh(own) - largest) / total;
    }
    block_barrier();
  }

  RNNSEARCH_DEVICE float context_gate(const RowPart& at, int column) const {
    if (shape.splits == 1) return scales[0] * sum_at(sums, 3 * H, column);
    const float* const partial = a.partial + at.row * shape.splits * partial_width(H) + column;
    float sum = 0;
    for (int i = 0; i < shape.splits; ++i) {
      if (scales[i] != 0) sum += scales[i] * load_fresh(partial + size_t(i) * partial_width(H));
    }
    return sum;
  }

  // The part's attention weights, and its units: the gates, and the step's end where the reset comes after.
  RNNSEARCH_DEVICE void advance(const RowPart& at, int step) {
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
        float* const u = a.projected + at.row * (A + 3 * H) + A + unit;
        const float old = old_state(at.row, step, unit);
        const float g_n = input(cell, 2, unit) + context_gate(at, 2 * H + unit);
        r = sigmoid(input(cell, 0, unit) + context_gate(at, unit) + load_fresh(u));
        z = sigmoid(input(cell, 1, unit) + context_gate(at, H + unit) + load_fresh(u + H));
        if (shape.reset_after) {
          u_n = load_fresh(u + 2 * H);
          n = tanhf(g_n + r * u_n);
          new_state = (1 - z) * n + z * old;
          entering(0)[at.row * depth + unit] = from_float<Storage>(mask(at.row, unit) * new_state);
        } else {
          u[2 * H] = g_n;
          entering(1)[at.row * depth + unit] = from_float<Storage>(r * mask(at.row, unit) * old);
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
  RNNSEARCH_DEVICE void finish(int step) {
    product<TILES>(entering(1), candidate_weights(), shape.candidate_tiles, H, [&](size_t row, int unit, float u_n) {
      const size_t cell = row * shape.T + step;
      float* const gates = a.gates + cell * 4 * H + unit;
      float n = 0, new_state = 0;
      if (shape.within(row, step)) {
        if (a.hidden_bias) u_n += to_float(a.hidden_bias[2 * H + unit]);
        n = tanhf(load_fresh(a.projected + row * (A + 3 * H) + A + 2 * H + unit) + u_n);
        const float z = load_fresh(gates + H);
        new_state = (1 - z) * n + z * old_state(row, step, unit);
        entering(0)[row * depth + unit] = from_float<Storage>(mask(row, unit) * new_state);
      } else {
        u_n = 0;
      }
      gates[2 * H] = n;
      gates[3 * H] = u_n;
      a.states[cell * H + unit] = new_state;
    });
  }
};

template <typename Storage, int TILES>
RNNSEARCH_KERNEL_OF(kDecoderThreads)
void decoder_scan(DecoderScanArguments<Storage> a) {
  DecoderScanBlock<Storage> block(a);
  const DecoderShape& shape = a.shape;
  const DecoderPart& part = block.part;
  uint32_t* const stopped = a.barriers + shape.row_groups;
  GridBarrier barrier{a.barriers + part.team, stopped, static_cast<uint32_t>(shape.team), a.spin_limit,
                      reinterpret_cast<uint32_t*>(shared_memory() + block.layout.verdict)};
  block.start();
  if (!barrier.wait(0, kCandidate)) return;

  for (int step = 0; step < shape.T; ++step) {
    block.template project<TILES>();
    if (!barrier.wait(step, kProjected)) return;
    for (int item = part.member; item < part.items; item += shape.team) {
      const RowPart at(shape, part.first_row, item);
      block.attend(at, step);
      if (shape.splits == 1) block.advance(at, step);
    }
    if (shape.splits > 1) {
      if (!meet_rows(shape, part, barrier, stopped + 1, step + 1, step, kRowShared)) return;
      for (int item = part.member; item < part.items; item += shape.team) {
        block.advance(RowPart(shape, part.first_row, item), step);
      }
    }
    const bool last = step + 1 == shape.T;
    if (shape.reset_after && last) return;
    if (!barrier.wait(step, kAttended)) return;
    if (shape.reset_after) continue;
    block.template finish<TILES>(step);
    if (last) return;
    if (!barrier.wait(step, kCandidate)) return;
  }
}

}  // namespace rnnsearch::cuda
