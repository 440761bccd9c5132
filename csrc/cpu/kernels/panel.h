// Products with a weight that was packed once for many steps. A panel holds kPanelVectors vectors of outputs, side by
// side for one input after another, so that each (row, output) has a lane of its own: its sum runs along the inputs in
// their order, whatever rows and panels are computed beside it, and nothing is summed across lanes.
#pragma once

#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// Accumulators that the registers hold beside one vector of each of the panel's columns and one broadcast input.
inline constexpr int kPanelVectors = RNNSEARCH_REGISTERS == 32 ? 4 : 2;
inline constexpr int kPanelRows = 6;
// A panel's weights that all rows meet before the next ones: these, the next ones and the rows' inputs stay in the
// second-level cache.
inline constexpr int64_t kPanelBytes = 1 << 17;

template <class S>
void pack_weight(const PackWeightArgs<S>& args) {
  using T = Accumulate<S>;
  constexpr int64_t width = kPanelVectors * lanes<T>;
  constexpr int n = lanes<T>;
  for (int64_t o = args.begin; o < args.end;) {
    const int64_t lane = o % width, take = args.end - o < width - lane ? args.end - o : width - lane;
    T* panel = args.packed + o / width * args.I * width + lane;
    const int64_t from = o - args.begin;
    if (args.transposed) {
      for (int64_t i = args.input_begin; i < args.input_end; ++i) {
        const S* source = args.weight + (i - args.input_begin) * args.stride + from;
        for (int64_t l = 0; l < take; l += n) store(panel + i * width + l, load(source + l, take - l), take - l);
      }
    } else {
      for (int64_t i = args.input_begin; i < args.input_end; i += n)
        for (int64_t l = 0; l < take; l += n) {
          const S* source = args.weight + (from + l) * args.stride + (i - args.input_begin);
          T* target = panel + i * width + l;
          const int64_t outputs = take - l, inputs = args.input_end - i;
          Vec<T> v[n] = {};
          if (outputs >= n && inputs >= n) {
            RNNSEARCH_UNROLL
            for (int k = 0; k < n; ++k) v[k] = load(source + k * args.stride);
            turn<T>(v);
            RNNSEARCH_UNROLL
            for (int k = 0; k < n; ++k) store(target + k * width, v[k]);
          } else {
            for (int k = 0; k < n && k < outputs; ++k) v[k] = load(source + k * args.stride, inputs);
            turn<T>(v);
            for (int k = 0; k < n && k < inputs; ++k) store(target + k * width, v[k], outputs);
          }
        }
    }
    o += take;
  }
}

// How a slot of a panel, one output's share of one step along the inputs, meets that of x.
template <class T>
struct OneByOne {
  static INLINE Vec<T> slot(const T* x) { return broadcast(*x); }
  static INLINE Vec<T> add(Vec<T> total, Vec<T> x, Vec<T> weight) { return total + x * weight; }
};

// y = bias + the products with `inputs` inputs, or y += them where `on_top`: a long sum is made of shorter ones. Where
// `bias` is null it counts 0. `whole` panels have all their outputs. Meanwhile the weights from `ahead` on are brought
// into the second-level cache, `share` numbers with each input.
template <class T, class Product, int rows, bool whole>
INLINE void panel_tile(const PanelArgs<T>& args, const T* x, const T* panel, int64_t inputs, const T* bias, bool on_top,
                       T* y, int64_t outputs, const T* ahead, int64_t share) {
  constexpr int n = lanes<T>, width = kPanelVectors * n;
  const int64_t x_stride = args.x_stride, y_stride = args.y_stride;
  const auto left = [&](int v) { return whole ? n : outputs - v * n; };
  Vec<T> total[rows][kPanelVectors];
  RNNSEARCH_UNROLL
  for (int v = 0; v < kPanelVectors; ++v) {
    Vec<T> start = {};
    if (bias != nullptr && left(v) > 0) start = load(bias + v * n, left(v));
    RNNSEARCH_UNROLL
    for (int r = 0; r < rows; ++r) total[r][v] = start;
  }
  for (int64_t i = 0; i < inputs; ++i) {
    __builtin_prefetch(ahead + i * share, 0, 2);
    Vec<T> w[kPanelVectors];
    RNNSEARCH_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) w[v] = load(panel + i * width + v * n);
    RNNSEARCH_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Vec<T> input = Product::slot(x + r * x_stride + i);
      RNNSEARCH_UNROLL
      for (int v = 0; v < kPanelVectors; ++v) total[r][v] = Product::add(total[r][v], input, w[v]);
    }
  }
  const auto each = [&](const auto& f) {
    RNNSEARCH_UNROLL
    for (int v = 0; v < kPanelVectors; ++v) {
      if (left(v) <= 0) break;
      RNNSEARCH_UNROLL
      for (int r = 0; r < rows; ++r) f(total[r][v], y + r * y_stride + v * n, left(v));
    }
  };
  if (on_top) each([](Vec<T>& sum, const T* out, int64_t count) { sum = load(out, count) + sum; });
  each([](const Vec<T>& sum, T* out, int64_t count) { store(out, sum, count); });
}

template <class T, class Product = OneByOne<T>>
void panels(const PanelArgs<T>& args) {
  constexpr int64_t width = kPanelVectors * lanes<T>;
  constexpr int64_t most = kPanelBytes / (width * static_cast<int64_t>(sizeof(T)));
  const int64_t tiles = (args.rows + kPanelRows - 1) / kPanelRows;
  const int64_t blocks = args.I > most ? (args.I + most - 1) / most : 1;
  // The block that comes next is fetched by all tiles of this one, a line at most with each input.
  const int64_t even = (width + tiles - 1) / tiles, share = even < lanes<T> ? even : lanes<T>;
  for (int64_t b = args.panel_begin * blocks; b < args.panel_end * blocks; ++b) {
    const int64_t p = b / blocks, begin = b % blocks * args.I / blocks,
                  inputs = (b % blocks + 1) * args.I / blocks - begin;
    const T* panel = args.packed + (p * args.I + begin) * width;
    const T* next = b + 1 < args.panel_end * blocks ? panel + inputs * width : panel;
    const bool on_top = args.add || begin > 0;
    for (int64_t tile = 0, r = 0; tile < tiles; ++tile) {
      // As even as whole rows allow.
      const int64_t take = args.rows / tiles + (tile < args.rows % tiles);
      T* y = args.y + r * args.y_stride + p * width;
      const T* bias = on_top || args.bias == nullptr ? nullptr : args.bias + p * width;
      choose<kPanelRows>(take, [&](auto rows) {
        const auto tile_of = [&](auto whole) {
          panel_tile<T, Product, decltype(rows)::value, decltype(whole)::value>(
              args, args.x + r * args.x_stride + begin, panel, inputs, bias, on_top, y, args.O - p * width,
              next + tile * inputs * share, share);
        };
        if (args.O - p * width >= width)
          tile_of(Count<1>());
        else
          tile_of(Count<0>());
      });
      r += take;
    }
  }
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
