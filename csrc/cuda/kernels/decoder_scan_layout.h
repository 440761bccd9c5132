// The arguments of the persistent decoder_scan, and how its blocks lay their shared memory.
#pragma once

#include "decoder_attention.h"
#include "decoder_block.h"

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
  float* partial;                // (B, splits, part_sums.width()), or null with one split
  uint32_t* barriers;            // (shape.barrier_words(),), zero; not read in clusters, like exchange and partial
  uint32_t spin_limit;
};

// Σ_j exp(score_j - largest) memory_gates_j, three gates a unit, then largest and Σ_j exp(score_j - largest), of a
// part's j.
RNNSEARCH_BOTH PartSums part_sums(const DecoderShape& shape) { return {3, {shape.H, shape.splits}}; }

template <typename Storage>
struct DecoderScanShared {
  int stride, parts;
  size_t score_weight, keys, gates, handed, inbox, scratch, query, scores, scales, sums, verdict,
      bytes;                                 // offsets; the weights come first
  int inbox_width, query_width, inbox_sums;  // of a part: the query, u, what the parts leave

  RNNSEARCH_BOTH DecoderScanShared(const DecoderShape& shape, int threads) {
    const int tiles = shape.tiles > shape.candidate_tiles ? shape.tiles : shape.candidate_tiles;
    const int together = tiles_together(tiles, sizeof(Storage));
    stride = column_stride<Storage>(padded_depth(shape.H));
    parts = product_parts(shape.rows, threads, (tiles + together - 1) / together);
    score_weight = size_t(8) * (shape.tiles + shape.candidate_tiles) * stride * sizeof(Storage);
    keys = score_weight + round_up_to_four(shape.A) * sizeof(float);
    gates = keys + kept_bytes(shape.kept_keys, shape.A, sizeof(Storage));
    handed = gates + kept_bytes(shape.kept_gates, 3 * shape.H, sizeof(Storage));
    // A cluster's exchange: d, and r ∘ d; eight rows fall on different banks.
    const size_t rows_handed = shape.cluster ? (shape.reset_after ? 1 : 2) * shape.rows : 0;
    inbox = handed + rows_handed * stride * sizeof(Storage);
    query_width = round_up_to_four(shape.A);
    inbox_sums = query_width + part_sums(shape).of_split();
    inbox_width = round_up_to_four(inbox_sums + part_sums(shape).received());
    scratch = inbox + (shape.cluster ? shape.parts_of_block() * inbox_width * sizeof(float) : 0);
    // The products, and later the attention: they are never there together. A cluster has the query in the inbox.
    const size_t products = size_t(parts) * shape.rows * 8 * tiles * sizeof(float);
    query = scratch;
    scores = query + (shape.cluster ? 0 : query_width * sizeof(float));
    scales = scores + size_t(2) * round_up_to_four(shape.positions()) * sizeof(float);
    sums = scales + round_up_to_four(shape.splits) * sizeof(float);
    const size_t width = round_up_to_four(3 * shape.H);
    const size_t attention = sums + sum_lanes(3 * shape.H, threads) * width * sizeof(float);
    verdict = scratch + products > attention ? scratch + products : attention;
    bytes = verdict + sizeof(uint32_t);
  }
};

}  // namespace rnnsearch::cuda
