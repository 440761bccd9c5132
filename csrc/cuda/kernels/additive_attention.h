// Additive attention; its gradients are in additive_attention_backward.h.
//
//   score_j      = score_weight · tanh(query + keys_j)
//   attn_weights = softmax over the real j of score
//   output       = Σ_j attn_weights_j values_j              values: memory, or memory_gates
//
// Two launches. The scores are split over positions; then the sum is split over columns, and each of its blocks takes
// the softmax's statistics of its row anew: S numbers that are at hand, in place of partial results to merge. So a long
// source and a small batch fill the machine alike, and the order of every sum depends on the row alone.
#pragma once

#include "attention.h"

namespace rnnsearch::cuda {

constexpr int kAttentionThreads = 256;
constexpr int kAttentionWarps = kAttentionThreads / kWarp;
constexpr int kScorePositions = 32;  // of a block
constexpr int kMergePitch = kWarpValues + 4;

// N rows attend to B sentences of S positions; row n to sentence index[n], or n where there is no index.
struct AttentionShape {
  int N, S;
  const bool* key_padding_mask;  // (B, S) or null
  const int64_t* memory_index;   // (N,) or null

  RNNSEARCH_DEVICE size_t sentence(int row) const { return memory_index ? memory_index[row] : row; }
  RNNSEARCH_DEVICE bool real(size_t sentence, int position) const {
    return !key_padding_mask || !key_padding_mask[sentence * S + position];
  }
};

RNNSEARCH_BOTH constexpr int blocks_for(int size, int block) { return (size + block - 1) / block; }

template <typename Storage>
struct ScoreArguments {
  AttentionShape shape;
  int A;
  const void* query;  // (N, A), Storage or float, rows `query_stride` apart
  bool query_is_storage;
  int query_stride;
  const Storage* keys;          // (B, S, A)
  const Storage* score_weight;  // (A,)
  float* scores;                // (N, S), -inf where padded

  LaunchShape launch() const {
    return {shape.N * blocks_for(shape.S, kScorePositions), kAttentionThreads,
            size_t(2) * round_up_to_four(A) * sizeof(float)};
  }
};

template <typename Storage>
RNNSEARCH_KERNEL void attention_scores(ScoreArguments<Storage> a) {
  const int chunks = blocks_for(a.shape.S, kScorePositions);
  const int row = block_index() / chunks, first = block_index() % chunks * kScorePositions;
  const int last = first + kScorePositions < a.shape.S ? first + kScorePositions : a.shape.S;
  const size_t sentence = a.shape.sentence(row), query_at = size_t(row) * a.query_stride;
  float* const query = reinterpret_cast<float*>(shared_memory());
  float* const weight = query + round_up_to_four(a.A);
  if (a.query_is_storage) {
    copy_row(query, static_cast<const Storage*>(a.query) + query_at, a.A);
  } else {
    copy_row(query, static_cast<const float*>(a.query) + query_at, a.A);
  }
  copy_row(weight, a.score_weight, a.A);
  block_barrier();
  const bool aligned = fours_aligned(a.keys, a.A);
  for (int position = first + thread_index() / kWarp; position < last; position += kAttentionWarps) {
    float score = -INFINITY;
    if (a.shape.real(sentence, position)) {
      score = score_of(query, weight, a.keys + (sentence * a.shape.S + position) * a.A, a.A, aligned);
    }
    if (thread_index() % kWarp == 0) a.scores[size_t(row) * a.shape.S + position] = score;
  }
}

template <typename Storage>
struct AttendArguments {
  AttentionShape shape;
  int W;
  const float* scores;    // (N, S), -inf where padded
  const Storage* values;  // (B, S, W)
  float* attn_weights;    // (N, S)
  void* output;           // (N, W), Storage or float
  bool output_is_storage;

  LaunchShape launch() const {
    return {shape.N * blocks_for(W, kWarpValues), kAttentionThreads, kAttentionWarps * kMergePitch * sizeof(float)};
  }
};

// The warps' parts of 128 columns to their sum: `part` is a lane's four columns. Thread i < 128 gets column i.
RNNSEARCH_DEVICE float merge_columns(float* parts, const Floats4& part) {
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  *reinterpret_cast<Floats4*>(parts + warp * kMergePitch + kFour * lane) = part;
  block_barrier();
  float sum = 0;
  if (thread_index() < kWarpValues) {
    for (int i = 0; i < kAttentionWarps; ++i) sum += parts[i * kMergePitch + thread_index()];
  }
  return sum;
}

template <typename Storage>
RNNSEARCH_KERNEL void attention_output(AttendArguments<Storage> a) {
  const int S = a.shape.S, chunks = blocks_for(a.W, kWarpValues);
  const int row = block_index() / chunks, first = block_index() % chunks * kWarpValues;
  const float* const scores = a.scores + size_t(row) * S;
  const Softmax softmax = softmax_of(scores, S);
  if (first == 0) {
    for (int j = thread_index(); j < S; j += thread_count()) {
      a.attn_weights[size_t(row) * S + j] = scores[j] == -INFINITY ? 0 : softmax(scores[j]);
    }
  }
  const int column = first + kFour * (thread_index() % kWarp);
  const bool aligned = fours_aligned(a.values, a.W);
  const Storage* const values = a.values + a.shape.sentence(row) * S * a.W;
  Floats4 sum{0, 0, 0, 0};
  RNNSEARCH_UNROLL(4)
  for (int j = thread_index() / kWarp; j < S; j += kAttentionWarps) {
    if (scores[j] == -INFINITY) continue;  // what is padded may be NaN
    const float weight = softmax(scores[j]);
    const Floats4 v = four_of_row(values + size_t(j) * a.W, column, a.W, aligned);
    sum.x += weight * v.x;
    sum.y += weight * v.y;
    sum.z += weight * v.z;
    sum.w += weight * v.w;
  }
  const float total = merge_columns(reinterpret_cast<float*>(shared_memory()), sum);
  const int mine = first + thread_index();
  if (thread_index() >= kWarpValues || mine >= a.W) return;
  const size_t at = size_t(row) * a.W + mine;
  if (a.output_is_storage) {
    static_cast<Storage*>(a.output)[at] = from_float<Storage>(total);
  } else {
    static_cast<float*>(a.output)[at] = total;
  }
}

// A copy with zeros in the rows that are padded or past their sentence's length, whatever they hold.
template <typename Storage>
struct ZeroRowsArguments {
  const Storage* from;  // (rows / positions, positions, width)
  Storage* to;
  int rows, positions, width;
  const bool* key_padding_mask;  // (rows / positions, positions) or null
  const int64_t* lengths;        // (rows / positions,) or null

  LaunchShape launch() const { return {rows, kAttentionThreads, 0}; }
};

template <typename Storage>
RNNSEARCH_KERNEL void zero_rows(ZeroRowsArguments<Storage> a) {
  const int row = block_index(), position = row % a.positions;
  const bool real =
      !(a.key_padding_mask && a.key_padding_mask[row]) && !(a.lengths && position >= a.lengths[row / a.positions]);
  for (size_t i = thread_index(); i < size_t(a.width); i += thread_count()) {
    const size_t at = size_t(row) * a.width + i;
    a.to[at] = real ? a.from[at] : from_float<Storage>(0);
  }
}

}  // namespace rnnsearch::cuda
