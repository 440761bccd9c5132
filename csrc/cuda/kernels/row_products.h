// products[part][row][column] = Σ_k left[row][k] weights[column][k], the k of one part
//
// The recurrent product of a block: a few rows of `left`, which other blocks wrote, times the columns that the block
// keeps in shared memory for the whole sequence. The warps share out k in `parts`, and the rows where there are more
// warps than parts; what reads the result adds up the parts in their order, so a row's sum depends on the row alone.
// Within 16 values of k a lane takes four that lie together (for both operands the same four), so that a load is 8
// bytes and a sector of 32 is read once.
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
                               int stride, int tiles) {
  const int pair = 2 * (thread_index() % 4);
  RNNSEARCH_UNROLL()
  for (int k = 0; k < kDepth; k += 4) {
    const Floats4 none{0, 0, 0, 0};
    const Floats4 a = upper ? load_fresh(reinterpret_cast<const Floats4*>(upper + k)) : none;
    const Floats4 b = lower ? load_fresh(reinterpret_cast<const Floats4*>(lower + k)) : none;
    RNNSEARCH_UNROLL()
    for (int tile = 0; tile < TILES; ++tile) {
      if (tile >= tiles) continue;
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
                               const Storage* weights, int stride, int tiles) {
  const int lane = thread_index() % 32, first = 4 * (lane % 4);
  const Words2 none{0, 0};
  const Words2 a = upper ? load_fresh(reinterpret_cast<const Words2*>(upper + first)) : none;
  const Words2 b = lower ? load_fresh(reinterpret_cast<const Words2*>(lower + first)) : none;
  const uint32_t left[4] = {a.x, b.x, a.y, b.y};
  RNNSEARCH_UNROLL()
  for (int tile = 0; tile < TILES; ++tile) {
    if (tile >= tiles) continue;
    const Words2 w =
        load_shared(reinterpret_cast<const Words2*>(weights + size_t(8 * tile + lane / 4) * stride + first));
    const uint32_t right[2] = {w.x, w.y};
    mma_m16n8k16<Storage>(sums[tile], left, right);
  }
}

// How many parts of k: as many as leave a warp to every 16 rows.
RNNSEARCH_BOTH int product_parts(int rows, int threads) {
  const int parts = threads / 32 / ((rows + 15) / 16);
  return parts > 0 ? parts : 1;
}

// `depth` is a multiple of 16; what pads it is zero on both sides. `products` points at the first column wanted of
// the first part's first row; rows lie `columns` apart and parts `rows * columns`. Of TILES times 8 columns the first
// `tiles` times 8 are wanted.
template <int TILES, typename Storage>
RNNSEARCH_DEVICE void row_products(const Storage* left, int left_stride, int rows, int depth, const Storage* weights,
                                   int stride, float* products, int columns, int tiles = TILES,
                                   int parts = thread_count() / 32) {
  const int warp = thread_index() / 32, part = warp % parts, lane = thread_index() % 32;
  const int sharing = thread_count() / 32 / parts;  // warps that share out the rows
  if (warp >= sharing * parts) return;
  products += size_t(part) * rows * columns;
  for (int row = warp / parts * 16; row < rows; row += sharing * 16) {
    const int upper = row + lane / 4, lower = upper + 8;
    float sums[TILES][4] = {};
    [[maybe_unused]] constexpr int kAhead = sizeof(Storage) == 4 ? 1 : 2;  // a float's k are four loads of their own
    RNNSEARCH_UNROLL(kAhead)
    for (int k = kDepth * part; k < depth; k += kDepth * parts) {
      multiply<TILES>(sums, upper < rows ? left + size_t(upper) * left_stride + k : nullptr,
                      lower < rows ? left + size_t(lower) * left_stride + k : nullptr, weights + k, stride, tiles);
    }
    RNNSEARCH_UNROLL()
    for (int tile = 0; tile < TILES; ++tile) {
      if (tile >= tiles) continue;
      RNNSEARCH_UNROLL()
      for (int i = 0; i < 4; ++i) {
        const int to = i < 2 ? upper : lower;
        if (to < rows) products[size_t(to) * columns + 8 * tile + 2 * (lane % 4) + i % 2] = sums[tile][i];
      }
    }
  }
}

// The sum over the parts of one entry.
RNNSEARCH_DEVICE float product_at(const float* products, int rows, int columns, int row, int column,
                                  int parts = thread_count() / 32) {
  float sum = 0;
  for (int part = 0; part < parts; ++part) sum += products[(size_t(part) * rows + row) * columns + column];
  return sum;
}

}  // namespace rnnsearch::cuda
