// products[part][row][column] = Σ_k left[row][k] weights[column][k], the k of one part
//
// The recurrent product of a block: a few rows of `left`, which other blocks wrote (Team::read), times the columns that
// the block keeps in shared memory for the whole sequence. The warps share out k in `parts`, and where there are more
// warps than parts the rows and the columns; what reads the result adds up the parts in their order, so a row's sum
// depends on the row alone. Within 16 values of k a lane takes four that lie together (for both operands the same
// four), so that a load is 8 bytes and a sector of 32 is read once.
#pragma once

#include "../team.h"

namespace rnnsearch::cuda {

constexpr int kDepth = 16;  // k of one mma

RNNSEARCH_BOTH constexpr int padded_depth(int size) { return (size + kDepth - 1) / kDepth * kDepth; }

// Elements from one column to the next: eight columns fall on different banks.
template <typename Storage>
RNNSEARCH_BOTH constexpr int column_stride(int depth) {
  if (sizeof(Storage) == 4) return depth + 4;
  return depth / kDepth % 2 == 0 ? depth + kDepth : depth;
}

template <int TILES, typename Team>
RNNSEARCH_DEVICE void multiply(float (&sums)[TILES][4], const float* upper, const float* lower, const float* weights,
                               int stride, int tiles) {
  const int pair = 2 * (thread_index() % 4);
  RNNSEARCH_UNROLL()
  for (int k = 0; k < kDepth; k += 4) {
    const Floats4 none{0, 0, 0, 0};
    const Floats4 a = upper ? Team::read(reinterpret_cast<const Floats4*>(upper + k)) : none;
    const Floats4 b = lower ? Team::read(reinterpret_cast<const Floats4*>(lower + k)) : none;
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

template <int TILES, typename Team, typename Storage>
RNNSEARCH_DEVICE void multiply(float (&sums)[TILES][4], const Storage* upper, const Storage* lower,
                               const Storage* weights, int stride, int tiles) {
  const int lane = thread_index() % 32, first = 4 * (lane % 4);
  const Words2 none{0, 0};
  const Words2 a = upper ? Team::read(reinterpret_cast<const Words2*>(upper + first)) : none;
  const Words2 b = lower ? Team::read(reinterpret_cast<const Words2*>(lower + first)) : none;
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

// How many parts of k: as many as leave a warp to every 16 rows, of every `chunks` of the columns.
RNNSEARCH_BOTH int product_parts(int rows, int threads, int chunks = 1) {
  const int parts = threads / 32 / ((rows + 15) / 16 * chunks);
  return parts > 0 ? parts : 1;
}

// `depth` is a multiple of 16; what pads it is zero on both sides. `products` points at the first column wanted of
// the first part's first row; rows lie `columns` apart and parts `rows * columns`. There are `tiles` times 8 columns,
// of which a warp takes up to TILES times 8 together.
template <int TILES, typename Team, typename Storage>
RNNSEARCH_DEVICE void row_products(const Storage* left, int left_stride, int rows, int depth, const Storage* weights,
                                   int stride, float* products, int columns, int tiles = TILES,
                                   int parts = thread_count() / 32) {
  const int warp = thread_index() / 32, part = warp % parts, lane = thread_index() % 32;
  const int sharing = thread_count() / 32 / parts;  // warps that share out rows and columns
  const int chunks = (tiles + TILES - 1) / TILES, items = (rows + 15) / 16 * chunks;
  if (warp >= sharing * parts) return;
  products += size_t(part) * rows * columns;
  for (int item = warp / parts; item < items; item += sharing) {
    const int first = item % chunks * TILES, here = tiles - first < TILES ? tiles - first : TILES;
    const int upper = item / chunks * 16 + lane / 4, lower = upper + 8;
    float sums[TILES][4] = {};
    [[maybe_unused]] constexpr int kAhead = sizeof(Storage) == 4 ? 1 : 2;  // a float's k are four loads of their own
    RNNSEARCH_UNROLL(kAhead)
    for (int k = kDepth * part; k < depth; k += kDepth * parts) {
      multiply<TILES, Team>(sums, upper < rows ? left + size_t(upper) * left_stride + k : nullptr,
                            lower < rows ? left + size_t(lower) * left_stride + k : nullptr,
                            weights + size_t(8 * first) * stride + k, stride, here);
    }
    RNNSEARCH_UNROLL()
    for (int tile = 0; tile < TILES; ++tile) {
      if (tile >= here) continue;
      RNNSEARCH_UNROLL()
      for (int i = 0; i < 4; ++i) {
        const int to = i < 2 ? upper : lower;
        if (to < rows) products[size_t(to) * columns + 8 * (first + tile) + 2 * (lane % 4) + i % 2] = sums[tile][i];
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
