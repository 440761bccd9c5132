// The arguments of the gradients' persistent kernel, and how its blocks lay their shared memory.
#pragma once

#include "decoder_attention_backward.h"
#include "decoder_block.h"

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
  float* partial;         // (B, splits, grad_part_sums.width()), or null with one split
  uint32_t* barriers;     // (shape.barrier_words(),), zero; not read in clusters, like grad_gates and partial
  uint32_t spin_limit;
};

constexpr int kGradTiles = 4;

RNNSEARCH_BOTH int grad_depth(int A, int H) { return padded_depth(A) + 3 * padded_depth(H); }

// Of a part's j, X_j = 1 - tanh²(query + keys_j): Σ_j alpha_j (grad_alpha_j - centre) X_j and Σ_j alpha_j X_j, then
// Σ_j alpha_j grad_alpha_j and the part's centre. The mean of all parts is not known yet; what it is off is added
// later.
RNNSEARCH_BOTH PartSums grad_part_sums(const DecoderShape& shape) { return {2, {shape.A, shape.splits}}; }

template <typename Storage>
struct DecoderScanBackwardShared {
  int stride, parts;
  size_t score_weight, keys, gates, carry, inbox, scratch, grad_gates, grad_alphas, shifts, sums, verdict, bytes;
  int inbox_width, inbox_sums;  // of a part: grad_g of its row, what the parts leave

  RNNSEARCH_BOTH DecoderScanBackwardShared(const DecoderShape& shape, int threads) {
    stride = column_stride<Storage>(grad_depth(shape.A, shape.H));
    parts = product_parts(shape.rows, threads);
    const size_t columns = size_t(8) * shape.tiles, width = round_up_to_four(shape.A);
    score_weight = columns * stride * sizeof(Storage);
    keys = score_weight + width * sizeof(float);
    gates = keys + kept_bytes(shape.kept_keys, shape.A, sizeof(Storage));
    carry = gates + kept_bytes(shape.kept_gates, 3 * shape.H, sizeof(Storage));
    inbox = carry + shape.rows * columns * sizeof(float);
    inbox_sums = round_up_to_four(3 * shape.H);
    inbox_width = round_up_to_four(inbox_sums + grad_part_sums(shape).received());
    scratch = inbox + (shape.cluster ? shape.parts_of_block() * inbox_width * sizeof(float) : 0);
    // The products, and later the attention: they are never there together. A cluster has grad_g in the inbox.
    const size_t products = parts * shape.rows * columns * sizeof(float);
    grad_gates = scratch;
    grad_alphas = grad_gates + (shape.cluster ? 0 : round_up_to_four(3 * shape.H) * sizeof(float));
    shifts = grad_alphas + size_t(2) * round_up_to_four(shape.positions()) * sizeof(float);
    sums = shifts + round_up_to_four(shape.splits + 1) * sizeof(float);
    const size_t attention = sums + 2 * sum_lanes(shape.A, threads) * width * sizeof(float);
    verdict = scratch + products > attention ? scratch + products : attention;
    bytes = verdict + sizeof(uint32_t);
  }
};

}  // namespace rnnsearch::cuda
