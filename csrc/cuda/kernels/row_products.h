// products[warp][row][column] = Σ_k left[row][k] weights[column][k], the k of one warp
//
// The recurrent product of a block: a few rows of `left`, which other blocks wrote, times the columns that the block
// keeps in shared memory for the whole sequence. The warps share out k; what reads the result adds up their parts in
// the order of the warps, so a row's sum depends on the row alone. Within 16 values of k a lane takes four that lie
// together (for both operands the same four), so that a load is 8 bytes and a sector of 32 is read once.
#pragma once

#include "../platform.h"

namespace rnnsearch::cuda {

constexpr int kDepth = 16;  // k of one mma

RNNSEARCH_BOTH constexpr int padded_depth(int size) { return (size + kDepth - 1) / kDepth * kDepth; }

// Elements from one column to the next: eight columns fall on different banks.
template <typename Storage>
RNNSEARCH_BOTH constexpr int column_stride(int depth) {
  if (sizeof(Storage) == 4) return depth + 4;
  return depth / kDepth % 2 == 0 ? depth + kDepth : depth;
}

template <int TILES>
RNNSEARCH_DEVICE void multiply(float (&sums)[TILES][4], const float* upper, const float* lower, const float* weights,
                               int stride) {
  const int pair = 2 * (thread_index() % 4);
  RNNSEARCH_UNROLL()
  for (int k = 0; k < kDepth; k += 4) {
    const Floats4 none{0, 0, 0, 0};
    const Floats4 a = upper ? load_fresh(reinterpret_cast<const Floats4*>(upper + k)) : none;
    const Floats4 b = lower ? load_fresh(reinterpret_cast<const Floats4*>(lower + k)) : none;
    RNNSEARCH_UNROLL()
    for (int tile = 0; tile < TILES; ++tile) {
      RNNSEARCH_UNROLL()
      for (int i = 0; i < 2; ++i) {
        const Floats4 w =
            load_shared(reinterpret_cast<const Floats4*>(weights + size_t(8 * tile + pair + i) * stride + k));
        sums[tile][i] += a.x * w.x + a.y * w.y + a.z * w.z + a.w * w.w;
        sums[tile][2 + i] += b.x * w.x + b.y * w.y + b.z * w.z + b.w * w.w;
      }
    }
  }
}

template <int TILES, typename Storage>
RNNSEARCH_DEVICE void multiply(float (&sums)[TILES][4], const Storage* upper, const Storage* lower,
                               const Storage* weights, int stride) {
  const int lane = thread_index() % 32, first = 4 * (lane % 4);
  const Words2 none{0, 0};
  const Words2 a = upper ? load_fresh(reinterpret_cast<const Words2*>(upper + first)) : none;
  const Words2 b = lower ? load_fresh(reinterpret_cast<const Words2*>(lower + first)) : none;
  const uint32_t left[4] = {a.x, b.x, a.y, b.y};
  RNNSEARCH_UNROLL()
  for (int tile = 0; tile < TILES; ++tile) {
    const Words2 w =
        load_shared(reinterpret_cast<const Words2*>(weights + size_t(8 * tile + lane / 4) * stride + first));
    const uint32_t right[2] = {w.x, w.y};
    mma_m16n8k16<Storage>(sums[tile], left, right);
  }
}

// `depth` is a multiple of 16; what pads it is zero on both sides. `products` points at the first column wanted of
// the first warp's first row; rows lie `columns` apart and warps `rows * columns`.
template <int TILES, typename Storage>
RNNSEARCH_DEVICE void row_products(const Storage* left, int left_stride, int rows, int depth, const Storage* weights,
                                   int stride, float* products, int columns) {
  const int warp = thread_index() / 32, warps = thread_count() / 32, lane = thread_index() % 32;
  products += size_t(warp) * rows * columns;
  for (int row = 0; row < rows; row += 16) {
    const int upper = row + lane / 4, lower = upper + 8;
    float sums[TILES][4] = {};
    RNNSEARCH_UNROLL(2)
    for (int k = kDepth * warp; k < depth; k += kDepth * warps) {
      multiply<TILES>(sums, upper < rows ? left + size_t(upper) * left_stride + k : nullptr,
                      lower < rows ? left + size_t(lower) * left_stride + k : nullptr, weights + k, stride);
    }
    RNNSEARCH_UNROLL()
    for (int tile = 0; tile < TILES; ++tile) {
      RNNSEARCH_UNROLL()
      for (int i = 0; i < 4; ++i) {
        const int to = i < 2 ? upper : lower;
        if (to < rows) products[size_t(to) * columns + 8 * tile + 2 * (lane % 4) + i % 2] = sums[tile][i];
      }
    }
  }
}

// The sum over the warps of one entry.
RNNSEARCH_DEVICE float product_at(const float* products, int rows, int columns, int row, int column) {
  float sum = 0;
  for (int warp = 0; warp < thread_count() / 32; ++warp) {
    sum += products[(size_t(warp) * rows + row) * columns + column];
  }
  return sum;
}

}  // namespace rnnsearch::cuda
