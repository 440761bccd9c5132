// The gradients of a persistent decoder scan's attention: one block, one part of a row's source.
#pragma once

#include "decoder_attention.h"

namespace rnnsearch::cuda {

// grad_alpha_j = outside_j + grad_output · values_j, 0 where alpha is: a warp a position, several under way. `outside`
// from the first of the part on; `grad_output` in shared memory.
template <typename Storage>
RNNSEARCH_DEVICE void grad_alphas_of_part(const RowPart& at, const PartRows<Storage>& values, const float* grad_output,
                                          const float* outside, const float* alphas, float* grad_alphas) {
  constexpr int kMany = kTogether / 2;
  const int warp = thread_index() / kWarp, warps = thread_count() / kWarp, lane = thread_index() % kWarp;
  for (int base = warp; base < at.count; base += kMany * warps) {
    bool real[kMany];
    float sum[kMany];
    RNNSEARCH_UNROLL()
    for (int i = 0; i < kMany; ++i) {
      const int j = base + i * warps;
      real[i] = j < at.count && alphas[j] != 0;
      sum[i] = 0;
    }
    for (int c = kFour * lane; c < values.width; c += kWarpValues) {
      Floats4 v[kMany];
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kMany; ++i) v[i] = real[i] ? values.four(base + i * warps, c) : Floats4{0, 0, 0, 0};
      const Floats4 g = load_shared(reinterpret_cast<const Floats4*>(grad_output + c));
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kMany; ++i) sum[i] += g.x * v[i].x + g.y * v[i].y + g.z * v[i].z + g.w * v[i].w;
    }
    RNNSEARCH_UNROLL()
    for (int i = 0; i < kMany; ++i) {
      const float total = warp_sum(sum[i]);
      const int j = base + i * warps;
      if (lane == 0 && j < at.count) grad_alphas[j] = real[i] ? total + outside[j] : 0;
    }
  }
}

// Of the part's j, X_j = 1 - tanh²(query + keys_j): Σ_j alpha_j (grad_alpha_j - centre) X_j, then Σ_j alpha_j X_j, each
// as sum_values leaves its sums. No key whose alpha is 0 is read.
template <typename Storage>
RNNSEARCH_DEVICE void sum_slopes(const RowPart& at, const float* query, const PartRows<Storage>& keys,
                                 const float* alphas, const float* grad_alphas, float centre, float* sums) {
  const int A = keys.width, width = round_up_to_four(A), groups = width / 4, lanes = sum_lanes(A, thread_count());
  const bool query_aligned = fours_aligned(query, A);
  for (int item = thread_index(); item < lanes * groups; item += thread_count()) {
    const int lane = item / groups, column = item % groups * 4;
    const Floats4 q = four_of_row(query, column, A, query_aligned);
    Floats4 sum{0, 0, 0, 0}, plain{0, 0, 0, 0};
    for (int base = lane; base < at.count; base += kTogether * lanes) {
      Floats4 key[kTogether];
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kTogether; ++i) {
        const int j = base + i * lanes;
        const bool real = j < at.count && alphas[j] != 0;
        key[i] = real ? keys.four(j, column) : Floats4{0, 0, 0, 0};
      }
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kTogether; ++i) {
        const int j = base + i * lanes;
        if (j >= at.count || alphas[j] == 0) continue;
        const float alpha = alphas[j], grad = alpha * (grad_alphas[j] - centre);
        const float x = tanh_of(q.x + key[i].x), y = tanh_of(q.y + key[i].y), z = tanh_of(q.z + key[i].z),
                    w = tanh_of(q.w + key[i].w);
        sum.x += grad * (1 - x * x);
        sum.y += grad * (1 - y * y);
        sum.z += grad * (1 - z * z);
        sum.w += grad * (1 - w * w);
        plain.x += alpha * (1 - x * x);
        plain.y += alpha * (1 - y * y);
        plain.z += alpha * (1 - z * z);
        plain.w += alpha * (1 - w * w);
      }
    }
    *reinterpret_cast<Floats4*>(sums + size_t(lane) * width + column) = sum;
    *reinterpret_cast<Floats4*>(sums + size_t(lanes + lane) * width + column) = plain;
  }
}

}  // namespace rnnsearch::cuda
