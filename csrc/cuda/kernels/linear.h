// output = input weightᵀ + bias for few rows: what decoding multiplies. A row's sum is made in the same order whatever
// the number of rows, so a sentence decodes alike alone and in a batch.
//
// A block takes 16 rows and 16 columns; its warps share out k, and their parts are added in the order of the warps. The
// factors are rounded to the storage type, by `mma` m16n8k16; float32 is plain multiply-adds.
#pragma once

#include <cstring>

#include "attention.h"
#include "row_products.h"

namespace rnnsearch::cuda {

constexpr int kLinearThreads = 256, kLinearWarps = kLinearThreads / kWarp;
constexpr int kLinearRows = 16, kLinearTiles = 2, kLinearColumns = 8 * kLinearTiles;

// Some columns of the output: a weight (columns, K) with rows `stride` apart, a bias (columns,) or null.
template <typename Storage>
struct LinearPart {
  const Storage* weight;
  const Storage* bias;
  int columns;
  int stride;
};

template <typename Storage>
struct LinearArguments {
  int N, K;
  const void* input;  // (N, K), Storage or float
  bool input_is_storage;
  const float* mask;   // (N, K) or null: factors of the input
  const float* reset;  // (N, ·), rows `reset_stride` apart, or null: more of them
  int reset_stride;
  LinearPart<Storage> first, second;  // the second may have no columns
  float* output;                      // (N, first.columns + second.columns)

  RNNSEARCH_BOTH int columns() const { return first.columns + second.columns; }
  LaunchShape launch() const {
    const int blocks = (N + kLinearRows - 1) / kLinearRows * ((columns() + kLinearColumns - 1) / kLinearColumns);
    return {blocks, kLinearThreads, size_t(kLinearWarps) * kLinearRows * kLinearColumns * sizeof(float)};
  }
};

template <typename Storage>
RNNSEARCH_DEVICE Words2 words_of(const Floats4& values) {
  const Storage rounded[4] = {from_float<Storage>(values.x), from_float<Storage>(values.y),
                              from_float<Storage>(values.z), from_float<Storage>(values.w)};
  Words2 words;
  memcpy(&words, rounded, sizeof words);
  return words;
}

// One block's share of the input and the weights, four values at a time; zero where there is none.
template <typename Storage>
struct LinearBlock {
  const LinearArguments<Storage>& a;
  int first_row, first_column;
  bool input_aligned, mask_aligned, weights_aligned;

  RNNSEARCH_DEVICE LinearBlock(const LinearArguments<Storage>& arguments) : a(arguments) {
    const int chunks = (a.columns() + kLinearColumns - 1) / kLinearColumns;
    first_row = block_index() / chunks * kLinearRows;
    first_column = block_index() % chunks * kLinearColumns;
    input_aligned = a.input_is_storage ? fours_aligned(static_cast<const Storage*>(a.input), a.K)
                                       : fours_aligned(static_cast<const float*>(a.input), a.K);
    mask_aligned = a.mask && fours_aligned(a.mask, a.K);
    weights_aligned = aligned(a.first) && (a.second.columns == 0 || aligned(a.second));
  }
  RNNSEARCH_DEVICE bool aligned(const LinearPart<Storage>& part) const {
    return a.K % 4 == 0 && fours_aligned(part.weight, part.stride);
  }

  RNNSEARCH_DEVICE Floats4 input(int row, int k) const {
    row += first_row;
    if (row >= a.N || k >= a.K) return {0, 0, 0, 0};
    Floats4 v = a.input_is_storage
                    ? four_of_row(static_cast<const Storage*>(a.input) + size_t(row) * a.K, k, a.K, input_aligned)
                    : four_of_row(static_cast<const float*>(a.input) + size_t(row) * a.K, k, a.K, input_aligned);
    if (a.mask) v = times(v, four_of_row(a.mask + size_t(row) * a.K, k, a.K, mask_aligned));
    if (a.reset) v = times(v, four_of_row(a.reset + size_t(row) * a.reset_stride, k, a.K, false));
    return v;
  }
  RNNSEARCH_DEVICE static Floats4 times(const Floats4& v, const Floats4& w) {
    return {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
  }

  RNNSEARCH_DEVICE Floats4 weight(int column, int k) const {
    column += first_column;
    const bool in_first = column < a.first.columns;
    if (column >= a.columns() || k >= a.K) return {0, 0, 0, 0};
    // Each member by itself: a choice between the two structures would copy both to the stack.
    const Storage* const weights = in_first ? a.first.weight : a.second.weight;
    const int at = in_first ? column : column - a.first.columns, stride = in_first ? a.first.stride : a.second.stride;
    return four_of_row(weights + size_t(at) * stride, k, a.K, weights_aligned);
  }
};

// sums += the 16 values of k from `k` on.
RNNSEARCH_DEVICE void linear_multiply(float (&sums)[kLinearTiles][4], const LinearBlock<float>& block, int k) {
  const int lane = thread_index() % kWarp, row = lane / 4, pair = 2 * (lane % 4);
  RNNSEARCH_UNROLL()
  for (int i = 0; i < kDepth; i += 4) {
    const Floats4 upper = block.input(row, k + i), lower = block.input(row + 8, k + i);
    RNNSEARCH_UNROLL()
    for (int tile = 0; tile < kLinearTiles; ++tile) {
      RNNSEARCH_UNROLL()
      for (int j = 0; j < 2; ++j) {
        const Floats4 w = block.weight(8 * tile + pair + j, k + i);
        sums[tile][j] += upper.x * w.x + upper.y * w.y + upper.z * w.z + upper.w * w.w;
        sums[tile][2 + j] += lower.x * w.x + lower.y * w.y + lower.z * w.z + lower.w * w.w;
      }
    }
  }
}

template <typename Storage>
RNNSEARCH_DEVICE void linear_multiply(float (&sums)[kLinearTiles][4], const LinearBlock<Storage>& block, int k) {
  const int lane = thread_index() % kWarp, row = lane / 4, first = k + 4 * (lane % 4);
  const Words2 upper = words_of<Storage>(block.input(row, first));
  const Words2 lower = words_of<Storage>(block.input(row + 8, first));
  const uint32_t left[4] = {upper.x, lower.x, upper.y, lower.y};
  RNNSEARCH_UNROLL()
  for (int tile = 0; tile < kLinearTiles; ++tile) {
    const Words2 w = words_of<Storage>(block.weight(8 * tile + row, first));
    const uint32_t right[2] = {w.x, w.y};
    mma_m16n8k16<Storage>(sums[tile], left, right);
  }
}

template <typename Storage>
RNNSEARCH_KERNEL void linear(LinearArguments<Storage> a) {
  const LinearBlock<Storage> block(a);
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  float sums[kLinearTiles][4] = {};
  for (int k = kDepth * warp; k < a.K; k += kDepth * kLinearWarps) linear_multiply(sums, block, k);
  float* const parts = reinterpret_cast<float*>(shared_memory());
  RNNSEARCH_UNROLL()
  for (int tile = 0; tile < kLinearTiles; ++tile) {
    RNNSEARCH_UNROLL()
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 8 * tile + 2 * (lane % 4) + i % 2;
      parts[(warp * kLinearRows + row) * kLinearColumns + column] = sums[tile][i];
    }
  }
  block_barrier();
  const int row = thread_index() / kLinearColumns, column = thread_index() % kLinearColumns;
  const int n = block.first_row + row, o = block.first_column + column;
  if (n >= a.N || o >= a.columns()) return;
  float sum = product_at(parts, kLinearRows, kLinearColumns, row, column);
  const bool in_first = o < a.first.columns;
  const Storage* const bias = in_first ? a.first.bias : a.second.bias;
  if (bias) sum += to_float(bias[in_first ? o : o - a.first.columns]);
  a.output[size_t(n) * a.columns() + o] = sum;
}
static_assert(kLinearThreads == kLinearRows * kLinearColumns, "a thread an entry of the result");

}  // namespace rnnsearch::cuda
