// y = x weightᵀ + bias in dot form, for instructions that themselves add neighbouring inputs, which is why all others
// take linear.h: each (row, output) has one vector accumulator that runs along the inputs, and one sum across lanes at
// the end. The weights are read where they lie, in torch's (O, I) layout. Since no accumulator is shared, a row's
// result does not depend on which rows stand beside it. How a vector of inputs meets one of weights is a Dot's
// business.
#pragma once

#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// Accumulators that the registers hold beside the operands.
inline constexpr int kOutputTile = 4;
inline constexpr int kRowTile = RNNSEARCH_REGISTERS == 32 ? 6 : 3;
// Rows that share a walk through the weights: their inputs stay in the second-level cache.
inline constexpr int64_t kRowBlock = 48;

// One vector of inputs of a tile; `load_weight(o)` is output o's part of them.
template <class Dot, int rows, int outputs, class Load>
INLINE void dot_inputs(Vec<typename Dot::T> (&total)[rows][outputs], const typename Dot::Packed* x, int64_t row_size,
                       const Load& load_weight) {
  typename Dot::Weight w[outputs];
  RNNSEARCH_UNROLL
  for (int o = 0; o < outputs; ++o) w[o] = load_weight(o);
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    const typename Dot::Input v = Dot::input(x + r * row_size);
    RNNSEARCH_UNROLL
    for (int o = 0; o < outputs; ++o) Dot::add(total[r][o], v, w[o]);
  }
}

// y = four sums a row, plus the bias, for `rows` rows. v[i] holds as many rows, each of four items of `segment` lanes;
// the vectors are folded into one another until an item is one lane.
template <class T, int rows, int segment, int vectors>
INLINE void store_sums(const Vec<T> (&v)[vectors], const T* bias, T* y, int64_t y_stride) {
  if constexpr (segment > 1) {
    Vec<T> folded[(vectors + 1) / 2];
    RNNSEARCH_UNROLL
    for (int i = 0; i < vectors; i += 2) folded[i / 2] = fold<T, Sum, segment>(v[i], v[i + 1 < vectors ? i + 1 : i]);
    store_sums<T, rows, segment / 2>(folded, bias, y, y_stride);
  } else {
    constexpr int each = lanes<T> / kOutputTile;
    RNNSEARCH_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Vec<T> biased = v[r / each] + load(bias);
      memcpy(y + r * y_stride, reinterpret_cast<const T*>(&biased) + r % each * kOutputTile, kOutputTile * sizeof(T));
    }
  }
}

// Meanwhile `fetched` rows from `ahead` on are brought into the second-level cache.
template <class Dot, int rows, int outputs, int fetched>
INLINE void dot_tile(const typename Dot::Packed* x, const typename Dot::Storage* weight, int64_t weight_stride,
                     int64_t I, const typename Dot::Storage* ahead, typename Dot::T* y, int64_t y_stride,
                     const typename Dot::T* bias) {
  using T = typename Dot::T;
  constexpr int64_t n = Dot::width;
  const int64_t row_size = Dot::row_size(I);
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
    dot_inputs<Dot>(total, x + i, row_size, [&](int o) { return Dot::weight(weight + o * weight_stride + i); });
  }
  if (i < I)
    dot_inputs<Dot>(total, x + i, row_size, [&](int o) { return Dot::weight(weight + o * weight_stride + i, I - i); });
  if constexpr (outputs == kOutputTile && lanes<T> >= kOutputTile) {
    Vec<T> sums[rows];
    RNNSEARCH_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Vec<T> first = fold<T, Sum, lanes<T>>(total[r][0], total[r][1]);
      const Vec<T> second = fold<T, Sum, lanes<T>>(total[r][2], total[r][3]);
      sums[r] = fold<T, Sum, lanes<T> / 2>(first, second);
    }
    store_sums<T, rows, lanes<T> / kOutputTile>(sums, bias, y, y_stride);
  } else {
    RNNSEARCH_UNROLL
    for (int r = 0; r < rows; ++r) {
      RNNSEARCH_UNROLL
      for (int o = 0; o < outputs; ++o) y[r * y_stride + o] = sum<T>(total[r][o]) + bias[o];
    }
  }
}

template <class Dot, int outputs>
void dot_rows(int64_t rows, const typename Dot::Packed* x, const typename Dot::Storage* weight, int64_t weight_stride,
              int64_t I, const typename Dot::Storage* next, typename Dot::T* y, int64_t y_stride,
              const typename Dot::T* bias) {
  const int64_t tiles = (rows + kRowTile - 1) / kRowTile;
  for (int64_t tile = 0, r = 0; tile < tiles; ++tile) {
    // As even as whole rows allow: 8 are 4 + 4, not 6 + 2.
    const int64_t take = rows / tiles + (tile < rows % tiles);
    choose<kRowTile>(take, [&](auto count) {
      const auto run = [&](auto fetched, const typename Dot::Storage* ahead) {
        dot_tile<Dot, decltype(count)::value, outputs, decltype(fetched)::value>(
            x + r * Dot::row_size(I), weight, weight_stride, I, ahead, y + r * y_stride, y_stride, bias);
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

template <class Dot>
int64_t packed_bytes(int64_t rows, int64_t inputs) {
  return rows * Dot::row_size(inputs) * static_cast<int64_t>(sizeof(typename Dot::Packed));
}

template <class Dot>
void pack(const Rows& rows, int64_t inputs, int64_t begin, int64_t end, void* packed) {
  for (int64_t r = begin; r < end; ++r)
    Dot::pack_row(rows, r, inputs, static_cast<typename Dot::Packed*>(packed) + r * Dot::row_size(inputs));
}

template <class Dot>
void linear(const LinearArgs<typename Dot::Storage>& args) {
  using T = typename Dot::T;
  using S = typename Dot::Storage;
  const int64_t rows = args.row_end - args.row_begin, stride = args.weight.stride;
  const auto* x = static_cast<const typename Dot::Packed*>(args.packed) + args.row_begin * Dot::row_size(args.I);
  for (int64_t o = args.output_begin; o < args.output_end;) {
    const bool whole = o + kOutputTile <= args.output_end;
    const int64_t take = whole ? kOutputTile : 1;
    const S* weight = args.weight.data + o * stride;
    const S* next = o + take + kOutputTile <= args.output_end ? weight + take * stride : nullptr;
    // Again and again, as many as a vector holds.
    T bias[lanes<T> > kOutputTile ? lanes<T> : kOutputTile] = {};
    if (args.bias != nullptr)
      for (int64_t b = 0; b < static_cast<int64_t>(sizeof bias / sizeof *bias); ++b)
        bias[b] = scalar(args.bias[o + b % take]);
    T* y = args.y + (o - args.output_begin);
    if (whole)
      dot_rows<Dot, kOutputTile>(rows, x, weight, stride, args.I, next, y, args.y_stride, bias);
    else
      dot_rows<Dot, 1>(rows, x, weight, stride, args.I, next, y, args.y_stride, bias);
    o += take;
  }
}

template <class Dot>
constexpr ProductKernels<typename Dot::Storage> products() {
  return {kRowBlock, packed_bytes<Dot>, pack<Dot>, linear<Dot>};
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
