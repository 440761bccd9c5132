// What kernels that attend have in common: the tanh, rows of four values a lane, a position's score, the softmax.
//
//   score_j = score_weight · tanh(query + keys_j)        attn_weights = softmax over the real j of score
//
// A lane takes four values that lie together, 128 a warp, so a sum's order depends on the row's size alone.
#pragma once

#include <cmath>

#include "../platform.h"

namespace rnnsearch::cuda {

constexpr int kWarp = 32, kFour = 4, kWarpValues = kWarp * kFour;

RNNSEARCH_BOTH constexpr int round_up_to_four(int size) { return (size + 3) / 4 * 4; }

// tanh(x) = 1 - 2 / (1 + exp(2 x)): at most 1.5e-7 off; ±1 far out, NaN for NaN.
RNNSEARCH_DEVICE float tanh_of(float x) {
  constexpr float kTwoLog2E = 2.885390081777927f;
  return 1 - 2 * reciprocal(1 + exp2_of(kTwoLog2E * x));
}

// exp(x), and 0 for -inf.
RNNSEARCH_DEVICE float exp_of(float x) { return exp2_of(1.4426950408889634f * x); }

// Whether a row of `size` values, and every row after it, may be read by load_four.
template <typename T>
RNNSEARCH_DEVICE bool fours_aligned(const T* rows, int size) {
  return size % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % (4 * sizeof(T)) == 0;
}

// Values [at, at + 4) of a row, zero past its end.
template <typename T>
RNNSEARCH_DEVICE Floats4 four_of_row(const T* row, int at, int size, bool aligned) {
  if (aligned) return at < size ? load_four(row + at) : Floats4{0, 0, 0, 0};
  return {at < size ? to_float(row[at]) : 0, at + 1 < size ? to_float(row[at + 1]) : 0,
          at + 2 < size ? to_float(row[at + 2]) : 0, at + 3 < size ? to_float(row[at + 3]) : 0};
}

// A row of global memory as floats in shared memory, zero up to a multiple of four: by all threads of the block, seen
// after the next block barrier.
template <typename T>
RNNSEARCH_DEVICE void copy_row(float* to, const T* row, int size) {
  for (int i = thread_index(); i < round_up_to_four(size); i += thread_count()) to[i] = i < size ? to_float(row[i]) : 0;
}

// score_weight · tanh(query + key) by a warp, on every lane. `query` and `score_weight` in shared memory (copy_row).
template <typename Storage>
RNNSEARCH_DEVICE float score_of(const float* query, const float* score_weight, const Storage* key, int A,
                                bool aligned) {
  float sum = 0;
  RNNSEARCH_UNROLL(2)
  for (int a = kFour * (thread_index() % kWarp); a < A; a += kWarpValues) {
    const Floats4 k = four_of_row(key, a, A, aligned);
    const Floats4 q = load_shared(reinterpret_cast<const Floats4*>(query + a));
    const Floats4 w = load_shared(reinterpret_cast<const Floats4*>(score_weight + a));
    sum += w.x * tanh_of(q.x + k.x) + w.y * tanh_of(q.y + k.y) + w.z * tanh_of(q.z + k.z) + w.w * tanh_of(q.w + k.w);
  }
  return warp_sum(sum);
}

// left · row by a warp, on every lane. `left` in shared memory (copy_row).
template <typename Storage>
RNNSEARCH_DEVICE float dot_with_row(const float* left, const Storage* row, int size, bool aligned) {
  float sum = 0;
  RNNSEARCH_UNROLL(4)
  for (int i = kFour * (thread_index() % kWarp); i < size; i += kWarpValues) {
    const Floats4 v = four_of_row(row, i, size, aligned);
    const Floats4 l = load_shared(reinterpret_cast<const Floats4*>(left + i));
    sum += l.x * v.x + l.y * v.y + l.z * v.z + l.w * v.w;
  }
  return warp_sum(sum);
}

// The softmax of scores that are -inf where padded: exp(score - largest) / total.
struct Softmax {
  float largest;  // 0 where all are padded
  float scale;    // 1 / total, and 1 where all are padded

  RNNSEARCH_DEVICE float operator()(float score) const { return exp_of(score - largest) * scale; }
};

// Of S scores, by each warp for itself, on every lane.
RNNSEARCH_DEVICE Softmax softmax_of(const float* scores, int S) {
  const int lane = thread_index() % kWarp;
  float largest = -INFINITY;
  for (int j = lane; j < S; j += kWarp) largest = fmaxf(largest, scores[j]);
  largest = warp_max(largest);
  if (largest == -INFINITY) largest = 0;
  float total = 0;
  for (int j = lane; j < S; j += kWarp) total += exp_of(scores[j] - largest);
  total = warp_sum(total);
  return {largest, total == 0 ? 1 : 1 / total};
}

}  // namespace rnnsearch::cuda
