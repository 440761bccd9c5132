// The cross-entropy of a row of logits and its derivative, and matrices turned over for the products that follow.
#pragma once

#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

template <class S>
void loss_row(const LossRowArgs<S>& args) {
  using T = Accumulate<S>;
  constexpr int n = lanes<T>, together = 4;
  T* x = args.logits;
  const int64_t whole = args.count / (together * n) * (together * n);
  const T lowest = -__builtin_inff();
  // f(index, vector, its lanes that are there), the lanes beyond holding `filling`.
  const auto each = [&](T filling, const auto& f) {
    int64_t i = 0;
    for (; i < whole; i += together * n) {
      RNNSEARCH_UNROLL
      for (int c = 0; c < together; ++c) f(c, i + c * n, load(x + i + c * n), int64_t{n});
    }
    for (; i < args.count; i += n) {
      T part[n];
      for (int l = 0; l < n; ++l) part[l] = i + l < args.count ? x[i + l] : filling;
      f(0, i, load(part), args.count - i);
    }
  };
  Vec<T> most[together], logits[together] = {}, exponentials[together] = {};
  for (Vec<T>& m : most) m = broadcast(lowest);
  each(lowest, [&](int c, int64_t, Vec<T> v, int64_t) { most[c] = larger<T>(v, most[c]); });
  const T maximum = largest<T>(larger<T>(larger<T>(most[0], most[1]), larger<T>(most[2], most[3])));
  const T target_logit = x[args.target];
  if (args.label_smoothing != 0) each(0, [&](int c, int64_t, Vec<T> v, int64_t) { logits[c] += v; });
  // Meanwhile the next row, which lies behind this one, is brought into the second-level cache.
  each(lowest, [&](int c, int64_t i, Vec<T> v, int64_t left) {
    __builtin_prefetch(x + args.count + i, 0, 2);
    const Vec<T> e = exp<T>(v - maximum);
    exponentials[c] += e;
    store(x + i, e, left);
  });
  const auto all = [](const Vec<T>(&v)[together]) { return sum<T>((v[0] + v[1]) + (v[2] + v[3])); };
  const T total = all(exponentials), scale = 1 / total, share = args.label_smoothing / static_cast<T>(args.count);
  each(0, [&](int, int64_t i, Vec<T> e, int64_t left) { store(x + i, e * scale - share, left); });
  x[args.target] -= 1 - args.label_smoothing;
  *args.result = {maximum, total, target_logit, all(logits)};
}

template <class T>
void transpose_and_sum(const TransposeArgs<T>& args) {
  constexpr int n = lanes<T>;
  for (int64_t c = 0; c < args.columns; c += n) store(args.sums + c, Vec<T>{}, args.columns - c);
  for (int64_t r = 0; r < args.rows; r += n)
    for (int64_t c = 0; c < args.columns; c += n) {
      const T* x = args.x + r * args.x_stride + c;
      T* out = args.out + c * args.out_stride + r;
      const int64_t rows = args.rows - r, columns = args.columns - c;
      Vec<T> v[n] = {}, total = load(args.sums + c, columns);
      if (rows >= n && columns >= n) {
        RNNSEARCH_UNROLL
        for (int i = 0; i < n; ++i) {
          __builtin_prefetch(x + (n + i) * args.x_stride, 0, 2);
          v[i] = load(x + i * args.x_stride);
          total += v[i];
        }
        turn<T>(v);
        RNNSEARCH_UNROLL
        for (int i = 0; i < n; ++i) store(out + i * args.out_stride, v[i]);
      } else {
        for (int i = 0; i < n && i < rows; ++i) {
          v[i] = load(x + i * args.x_stride, columns);
          total += v[i];
        }
        turn<T>(v);
        for (int i = 0; i < n && i < columns; ++i) store(out + i * args.out_stride, v[i], rows);
      }
      store(args.sums + c, total, columns);
    }
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
