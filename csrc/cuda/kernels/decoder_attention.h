// The attention of a persistent decoder scan: one block, one part of a row's source.
#pragma once

#include "decoder.h"

namespace rnnsearch::cuda {

constexpr int kTogether = 8;  // loads that a thread has under way

// Scores of the part's positions, -inf where padded: a warp a position. `query` and `score_weight` in shared memory.
template <typename Storage>
RNNSEARCH_DEVICE void score_part(const DecoderShape& shape, const RowPart& at, const PartRows<Storage>& keys,
                                 const float* query, const float* score_weight, float* scores) {
  constexpr int kMany = kTogether / 2;  // positions at a time
  const int warp = thread_index() / kWarp, warps = thread_count() / kWarp, lane = thread_index() % kWarp, A = shape.A;
  for (int base = warp; base < at.count; base += kMany * warps) {
    bool real[kMany];
    float sum[kMany];
    RNNSEARCH_UNROLL()
    for (int i = 0; i < kMany; ++i) {
      const int position = base + i * warps;
      real[i] = position < at.count && shape.real(at.row, at.first + position);
      sum[i] = 0;
    }
    for (int c = kFour * lane; c < A; c += kWarpValues) {
      Floats4 k[kMany];
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kMany; ++i) k[i] = real[i] ? keys.four(base + i * warps, c) : Floats4{0, 0, 0, 0};
      const Floats4 q = load_shared(reinterpret_cast<const Floats4*>(query + c));
      const Floats4 w = load_shared(reinterpret_cast<const Floats4*>(score_weight + c));
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kMany; ++i) {
        if (!real[i]) continue;
        sum[i] += w.x * tanh_of(q.x + k[i].x) + w.y * tanh_of(q.y + k[i].y) + w.z * tanh_of(q.z + k[i].z) +
                  w.w * tanh_of(q.w + k[i].w);
      }
    }
    RNNSEARCH_UNROLL()
    for (int i = 0; i < kMany; ++i) {
      const float total = warp_sum(sum[i]);
      if (lane == 0 && base + i * warps < at.count) scores[base + i * warps] = real[i] ? total : -INFINITY;
    }
  }
}

// By each warp for itself, on every lane: the largest of the scores, 0 where all are padded.
RNNSEARCH_DEVICE float largest_of(const float* scores, int count) {
  float largest = -INFINITY;
  for (int i = thread_index() % kWarp; i < count; i += kWarp) largest = fmaxf(largest, scores[i]);
  largest = warp_max(largest);
  return largest == -INFINITY ? 0 : largest;
}

RNNSEARCH_DEVICE float total_of(const float* values, int count) {
  float total = 0;
  for (int i = thread_index() % kWarp; i < count; i += kWarp) total += values[i];
  return warp_sum(total);
}

// A sum over positions has four columns a thread, and as many lanes of positions as there are threads for.
RNNSEARCH_BOTH int sum_lanes(int columns, int threads) {
  const int lanes = threads / (round_up_to_four(columns) / 4);
  return lanes > 0 ? lanes : 1;
}

// sums[lane][column] = Σ_j alpha_j values_j, the part's j of one lane; no value that is padded is read.
template <typename Storage>
RNNSEARCH_DEVICE void sum_values(const RowPart& at, const PartRows<Storage>& values, const float* scores,
                                 const float* alphas, float* sums) {
  const int columns = values.width, width = round_up_to_four(columns), groups = width / 4,
            lanes = sum_lanes(columns, thread_count());
  for (int item = thread_index(); item < lanes * groups; item += thread_count()) {
    const int lane = item / groups, column = item % groups * 4;
    Floats4 sum{0, 0, 0, 0};
    for (int base = lane; base < at.count; base += kTogether * lanes) {
      Floats4 value[kTogether];
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kTogether; ++i) {
        const int j = base + i * lanes;
        const bool real = j < at.count && scores[j] != -INFINITY;
        value[i] = real ? values.four(j, column) : Floats4{0, 0, 0, 0};
      }
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kTogether; ++i) {
        const float alpha = base + i * lanes < at.count ? alphas[base + i * lanes] : 0;
        sum.x += alpha * value[i].x;
        sum.y += alpha * value[i].y;
        sum.z += alpha * value[i].z;
        sum.w += alpha * value[i].w;
      }
    }
    *reinterpret_cast<Floats4*>(sums + size_t(lane) * width + column) = sum;
  }
}

// The sum over the lanes of one column.
RNNSEARCH_DEVICE float sum_at(const float* sums, int columns, int column) {
  float sum = 0;
  for (int lane = 0; lane < sum_lanes(columns, thread_count()); ++lane) {
    sum += sums[size_t(lane) * round_up_to_four(columns) + column];
  }
  return sum;
}

}  // namespace rnnsearch::cuda
