// The gradients of additive attention; the tanh is computed again, and no sum uses atomics.
//
//   grad_weights_j    = outside_j + grad_output · values_j         outside: the gradient of attn_weights from elsewhere
//   grad_scores       = attn_weights ∘ (grad_weights - Σ_j attn_weights_j grad_weights_j)
//   grad_query        = score_weight ∘ Σ_j grad_scores_j (1 - tanh²(query + keys_j))
//   grad_keys_j       = score_weight ∘ Σ_t grad_scores_tj (1 - tanh²(query_t + keys_j))
//   grad_score_weight = Σ_tj grad_scores_tj tanh(query_t + keys_j)                       summed over sentences at last
//   grad_values_j     = attn_weights_j grad_output
//
// Three launches: grad_weights (and grad_values) over positions, grad_scores and grad_query over features, grad_keys
// over both. The last takes T queries a sentence: a scan's backward pass calls it once, after its loop.
#pragma once

#include "additive_attention.h"

namespace rnnsearch::cuda {

constexpr int kGradKeysPositions = 2;  // of a warp, in registers

template <typename Storage>
struct GradWeightsArguments {
  AttentionShape shape;  // no index: a row is a sentence
  int W;
  const float* outside;        // (B, S)
  const Storage* grad_output;  // (B, W)
  const Storage* values;       // (B, S, W)
  const float* attn_weights;   // (B, S)
  float* grad_weights;         // (B, S), 0 where padded
  Storage* grad_values;        // (B, S, W)

  LaunchShape launch() const {
    return {shape.N * blocks_for(shape.S, kScorePositions), kAttentionThreads,
            size_t(round_up_to_four(W)) * sizeof(float)};
  }
};

template <typename Storage>
RNNSEARCH_KERNEL void attention_grad_weights(GradWeightsArguments<Storage> a) {
  const int S = a.shape.S, chunks = blocks_for(S, kScorePositions);
  const int row = block_index() / chunks, first = block_index() % chunks * kScorePositions;
  const int last = first + kScorePositions < S ? first + kScorePositions : S;
  float* const grad_output = reinterpret_cast<float*>(shared_memory());
  copy_row(grad_output, a.grad_output + size_t(row) * a.W, a.W);
  block_barrier();
  const bool aligned = fours_aligned(a.values, a.W);
  for (int position = first + thread_index() / kWarp; position < last; position += kAttentionWarps) {
    const size_t at = size_t(row) * S + position;
    float grad = 0;
    if (a.shape.real(row, position)) {
      grad = a.outside[at] + dot_with_row(grad_output, a.values + at * a.W, a.W, aligned);
    }
    if (thread_index() % kWarp == 0) a.grad_weights[at] = grad;
    const float weight = a.attn_weights[at];
    for (int i = thread_index() % kWarp; i < a.W; i += kWarp) {
      a.grad_values[at * a.W + i] = from_float<Storage>(weight * grad_output[i]);
    }
  }
}

template <typename Storage>
struct GradQueryArguments {
  AttentionShape shape;
  int A;
  const float* grad_weights;  // (B, S)
  const float* attn_weights;  // (B, S)
  const void* query;          // (B, A), Storage or float
  bool query_is_storage;
  const Storage* keys;          // (B, S, A)
  const Storage* score_weight;  // (A,)
  float* grad_scores;           // (B, S)
  void* grad_query;             // as query

  LaunchShape launch() const {
    return {shape.N * blocks_for(A, kWarpValues), kAttentionThreads, kAttentionWarps * kMergePitch * sizeof(float)};
  }
};

// Four values of a tensor that is Storage or float.
template <typename Storage>
RNNSEARCH_DEVICE Floats4 four_of_either(const void* values, bool storage, size_t row, int at, int size) {
  if (storage) {
    const Storage* const p = static_cast<const Storage*>(values);
    return four_of_row(p + row * size, at, size, fours_aligned(p, size));
  }
  const float* const p = static_cast<const float*>(values);
  return four_of_row(p + row * size, at, size, fours_aligned(p, size));
}

template <typename Storage>
RNNSEARCH_KERNEL void attention_grad_query(GradQueryArguments<Storage> a) {
  const int S = a.shape.S, chunks = blocks_for(a.A, kWarpValues);
  const int row = block_index() / chunks, first = block_index() % chunks * kWarpValues;
  const float* const grad_weights = a.grad_weights + size_t(row) * S;
  const float* const attn_weights = a.attn_weights + size_t(row) * S;
  float mean = 0;
  for (int j = thread_index() % kWarp; j < S; j += kWarp) mean += attn_weights[j] * grad_weights[j];
  mean = warp_sum(mean);
  if (first == 0) {
    for (int j = thread_index(); j < S; j += thread_count()) {
      a.grad_scores[size_t(row) * S + j] = attn_weights[j] * (grad_weights[j] - mean);
    }
  }
  const int feature = first + kFour * (thread_index() % kWarp);
  const Floats4 query = four_of_either<Storage>(a.query, a.query_is_storage, row, feature, a.A);
  const bool aligned = fours_aligned(a.keys, a.A);
  Floats4 sum{0, 0, 0, 0};
  RNNSEARCH_UNROLL(2)
  for (int j = thread_index() / kWarp; j < S; j += kAttentionWarps) {
    if (!a.shape.real(row, j)) continue;
    const float grad = attn_weights[j] * (grad_weights[j] - mean);
    const Floats4 k = four_of_row(a.keys + (size_t(row) * S + j) * a.A, feature, a.A, aligned);
    const float x = tanh_of(query.x + k.x), y = tanh_of(query.y + k.y), z = tanh_of(query.z + k.z),
                w = tanh_of(query.w + k.w);
    sum.x += grad * (1 - x * x);
    sum.y += grad * (1 - y * y);
    sum.z += grad * (1 - z * z);
    sum.w += grad * (1 - w * w);
  }
  const float total = merge_columns(reinterpret_cast<float*>(shared_memory()), sum);
  const int mine = first + thread_index();
  if (thread_index() >= kWarpValues || mine >= a.A) return;
  const float grad = total * to_float(a.score_weight[mine]);
  const size_t at = size_t(row) * a.A + mine;
  if (a.query_is_storage) {
    static_cast<Storage*>(a.grad_query)[at] = from_float<Storage>(grad);
  } else {
    static_cast<float*>(a.grad_query)[at] = grad;
  }
}

template <typename Storage>
struct GradKeysArguments {
  AttentionShape shape;  // N sentences
  int T, A;
  const float* grad_scores;  // (B, T, S), 0 where padded
  const void* queries;       // (B, T, A), Storage or float
  bool queries_are_storage;
  const Storage* keys;          // (B, S, A)
  const Storage* score_weight;  // (A,)
  Storage* grad_keys;           // (B, S, A)
  float* grad_score_weight;     // (B, position_chunks, A): what each block of positions adds

  static constexpr int kPositions = kAttentionWarps * kGradKeysPositions;  // of a block
  static int position_chunks(int S) { return blocks_for(S, kPositions); }
  LaunchShape launch() const {
    return {shape.N * position_chunks(shape.S) * blocks_for(A, kWarpValues), kAttentionThreads,
            kAttentionWarps * kMergePitch * sizeof(float)};
  }
};

RNNSEARCH_DEVICE void add_grad_of_key(Floats4& grad_key, Floats4& grad_weight, float grad_score, const Floats4& query,
                                      const Floats4& key) {
  const float x = tanh_of(query.x + key.x), y = tanh_of(query.y + key.y), z = tanh_of(query.z + key.z),
              w = tanh_of(query.w + key.w);
  grad_key.x += grad_score * (1 - x * x);
  grad_key.y += grad_score * (1 - y * y);
  grad_key.z += grad_score * (1 - z * z);
  grad_key.w += grad_score * (1 - w * w);
  grad_weight.x += grad_score * x;
  grad_weight.y += grad_score * y;
  grad_weight.z += grad_score * z;
  grad_weight.w += grad_score * w;
}

template <typename Storage>
RNNSEARCH_KERNEL void attention_grad_keys(GradKeysArguments<Storage> a) {
  constexpr int P = kGradKeysPositions;
  const int S = a.shape.S, feature_chunks = blocks_for(a.A, kWarpValues);
  const int position_chunks = blocks_for(S, kAttentionWarps * P);
  const int chunk = block_index() / feature_chunks;  // of positions, of all sentences
  const int sentence = chunk / position_chunks, first = block_index() % feature_chunks * kWarpValues;
  const int position = chunk % position_chunks * kAttentionWarps * P + thread_index() / kWarp * P;
  const int feature = first + kFour * (thread_index() % kWarp);
  const bool aligned = fours_aligned(a.keys, a.A);
  Floats4 keys[P], grad_keys[P], grad_weight{0, 0, 0, 0};
  bool real[P];
  RNNSEARCH_UNROLL()
  for (int p = 0; p < P; ++p) {
    const int j = position + p;
    real[p] = j < S && a.shape.real(sentence, j);
    keys[p] = grad_keys[p] = Floats4{0, 0, 0, 0};
    if (real[p]) keys[p] = four_of_row(a.keys + (size_t(sentence) * S + j) * a.A, feature, a.A, aligned);
  }
  for (int t = 0; t < a.T; ++t) {
    const size_t cell = size_t(sentence) * a.T + t;
    const Floats4 query = four_of_either<Storage>(a.queries, a.queries_are_storage, cell, feature, a.A);
    RNNSEARCH_UNROLL()
    for (int p = 0; p < P; ++p) {
      const float grad = real[p] ? a.grad_scores[cell * S + position + p] : 0;
      add_grad_of_key(grad_keys[p], grad_weight, grad, query, keys[p]);
    }
  }
  const Floats4 weight = four_of_either<Storage>(a.score_weight, true, 0, feature, a.A);
  RNNSEARCH_UNROLL()
  for (int p = 0; p < P; ++p) {
    if (position + p >= S) continue;
    Storage* const out = a.grad_keys + (size_t(sentence) * S + position + p) * a.A;
    const Floats4 grad = real[p] ? grad_keys[p] : Floats4{0, 0, 0, 0};
    const float grads[kFour] = {grad.x * weight.x, grad.y * weight.y, grad.z * weight.z, grad.w * weight.w};
    RNNSEARCH_UNROLL()
    for (int i = 0; i < kFour; ++i) {
      if (feature + i < a.A) out[feature + i] = from_float<Storage>(grads[i]);
    }
  }
  const float total = merge_columns(reinterpret_cast<float*>(shared_memory()), grad_weight);
  if (thread_index() < kWarpValues && first + thread_index() < a.A) {
    a.grad_score_weight[size_t(chunk) * a.A + first + thread_index()] = total;
  }
}

}  // namespace rnnsearch::cuda
