// y = x weightᵀ + bias for few rows, in dot form: each (row, output) has one vector accumulator that runs along the
// inputs, and one sum across lanes at the end. The weights are read where they lie, in torch's (O, I) layout: a packed
// copy reads no faster, and would be a second copy to keep in step. Since no accumulator is shared, a row's result
// does not depend on which rows stand beside it.
#pragma once

#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// Accumulators that the registers hold beside the operands.
inline constexpr int kOutputTile = 4;
inline constexpr int kRowTile = RNNSEARCH_REGISTERS == 32 ? 6 : 3;
// Rows that share a walk through the weights: their inputs stay in the second-level cache.
inline constexpr int64_t kRowBlock = 48;

// The arrays of a tile live in registers only where every loop over them is unrolled from the start.
#define RNNSEARCH_UNROLL _Pragma("GCC unroll 8")

// Inputs [i, i + n) of one tile; `load_weight(o)` is output o's part of them.
template <class S, int rows, int outputs, class Load>
INLINE void dot_inputs(Vec<Accumulate<S>> (&total)[rows][outputs], const Accumulate<S>* x, int64_t x_stride,
                       const Load& load_weight) {
  Vec<Accumulate<S>> w[outputs];
  RNNSEARCH_UNROLL
  for (int o = 0; o < outputs; ++o) w[o] = load_weight(o);
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    const Vec<Accumulate<S>> v = load(x + r * x_stride);
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) total[r][o] += v * w[o];
  }
}

// Meanwhile `fetched` rows from `ahead` on are brought into the second-level cache.
template <class S, int rows, int outputs, int fetched>
INLINE void dot_tile(const Accumulate<S>* x, int64_t x_stride, const S* weight, int64_t weight_stride, int64_t I,
                     const S* ahead, Accumulate<S>* y, int64_t y_stride, const Accumulate<S>* bias) {
  using T = Accumulate<S>;
  constexpr int n = lanes<T>;
  const Vec<T> zero = {};
  Vec<T> total[rows][outputs];
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) total[r][o] = zero;
  }
  int64_t i = 0;
  for (; i + n <= I; i += n) {
    RNNSEARCH_UNROLL
    for (int o = 0; o < fetched; ++o) __builtin_prefetch(ahead + o * weight_stride + i, 0, 2);
    dot_inputs<S>(total, x + i, x_stride, [&](int o) { return load(weight + o * weight_stride + i); });
  }
  if (i < I) dot_inputs<S>(total, x + i, x_stride, [&](int o) { return load(weight + o * weight_stride + i, I - i); });
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    T sums[kOutputTile];
    if constexpr (outputs == kOutputTile) {
      sum4<T>(total[r][0], total[r][1], total[r][2], total[r][3], sums);
    } else {
      sum4<T>(total[r][0], zero, zero, zero, sums);
    }
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) y[r * y_stride + o] = sums[o] + bias[o];
  }
}

template <class S, int outputs>
void dot_rows(int64_t rows, const Accumulate<S>* x, int64_t x_stride, const S* weight, int64_t weight_stride, int64_t I,
              const S* next, Accumulate<S>* y, int64_t y_stride, const Accumulate<S>* bias) {
  const int64_t tiles = (rows + kRowTile - 1) / kRowTile;
  for (int64_t tile = 0, r = 0; tile < tiles; ++tile) {
    // As even as whole rows allow: 8 are 4 + 4, not 6 + 2.
    const int64_t take = rows / tiles + (tile < rows % tiles);
    choose<kRowTile>(take, [&](auto count) {
      const auto run = [&](auto fetched, const S* ahead) {
        dot_tile<S, decltype(count)::value, outputs, decltype(fetched)::value>(
            x + r * x_stride, x_stride, weight, weight_stride, I, ahead, y + r * y_stride, y_stride, bias);
      };
      // Every tile of rows fetches its share, so that memory is busy all the time; with many, compute is what counts.
      if (next == nullptr || tile >= kOutputTile)
        run(Count<0>{}, nullptr);
      else if (tiles == 1)
        run(Count<kOutputTile>{}, next);
      else if (tiles == 2)
        run(Count<kOutputTile / 2>{}, next + tile * (kOutputTile / 2) * weight_stride);
      else
        run(Count<1>{}, next + tile * weight_stride);
    });
    r += take;
  }
}

template <class S>
int64_t packed_bytes(int64_t rows, int64_t inputs) {
  return rows * padded<Accumulate<S>>(inputs) * static_cast<int64_t>(sizeof(Accumulate<S>));
}

template <class S>
void pack(const Rows& rows, int64_t inputs, int64_t begin, int64_t end, void* packed) {
  using T = Accumulate<S>;
  const int64_t width = padded<T>(inputs);
  for (int64_t r = begin; r < end; ++r)
    for (int64_t i = 0; i < width; i += lanes<T>)
      store(static_cast<T*>(packed) + r * width + i,
            load_either<S>(rows.data, rows.is_storage, r * rows.stride + i, inputs - i));
}

template <class S>
void linear(const LinearArgs<S>& args) {
  using T = Accumulate<S>;
  const int64_t x_stride = padded<T>(args.I), rows = args.row_end - args.row_begin;
  const T* x = static_cast<const T*>(args.packed) + args.row_begin * x_stride;
  const int64_t stride = args.weight.stride;
  for (int64_t o = args.output_begin; o < args.output_end;) {
    const bool whole = o + kOutputTile <= args.output_end;
    const int64_t take = whole ? kOutputTile : 1;
    const S* weight = args.weight.data + o * stride;
    const S* next = o + take + kOutputTile <= args.output_end ? weight + take * stride : nullptr;
    T bias[kOutputTile] = {};
    if (args.bias != nullptr)
      for (int64_t b = 0; b < take; ++b) bias[b] = scalar(args.bias[o + b]);
    T* y = args.y + (o - args.output_begin);
    if (whole)
      dot_rows<S, kOutputTile>(rows, x, x_stride, weight, stride, args.I, next, y, args.y_stride, bias);
    else
      dot_rows<S, 1>(rows, x, x_stride, weight, stride, args.I, next, y, args.y_stride, bias);
    o += take;
  }
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
