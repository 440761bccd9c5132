// The largest K logits of a row and what the row's log-sum-exp needs, over one tile of the vocabulary.
#pragma once

#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// Logits looked at together: only where one of them beats the K-th best so far are they taken one by one.
inline constexpr int kScan = 4;

template <class S>
INLINE void offer(const TopKArgs<S>& args, TopK<S>& best, Accumulate<S> value, int64_t id) {
  if (best.count == args.k && !(value > best.values[args.k - 1])) return;
  for (int64_t i = 0; i < args.banned_count; ++i)
    if (args.banned[i] == id) return;
  int64_t at = best.count < args.k ? best.count++ : args.k - 1;
  // Ids come in ascending order, so an equal value that was there first stays first.
  for (; at > 0 && value > best.values[at - 1]; --at) {
    best.values[at] = best.values[at - 1];
    best.ids[at] = best.ids[at - 1];
  }
  best.values[at] = value;
  best.ids[at] = id;
}

template <class S>
void top_k(const TopKArgs<S>& args, TopK<S>& best) {
  using T = Accumulate<S>;
  constexpr int n = lanes<T>;
  const T* logits = args.logits;
  const T lowest = -__builtin_inff();
  Vec<T> most = broadcast(lowest);
  int64_t i = 0;
  for (; i + kScan * n <= args.count; i += kScan * n) {
    Vec<T> here = load(logits + i);
    for (int c = 1; c < kScan; ++c) here = larger<T>(load(logits + i + c * n), here);
    most = larger<T>(here, most);
    if (largest<T>(here) > (best.count == args.k ? best.values[args.k - 1] : lowest))
      for (int64_t c = 0; c < kScan * n; ++c)
        if (logits[i + c] > lowest) offer(args, best, logits[i + c], args.first_id + i + c);
  }
  T maximum = largest<T>(most);
  for (int64_t c = i; c < args.count; ++c) {
    maximum = logits[c] > maximum ? logits[c] : maximum;
    if (logits[c] > lowest) offer(args, best, logits[c], args.first_id + c);
  }
  const T origin = maximum > lowest ? maximum : 0;
  Vec<T> total = {};
  for (i = 0; i + n <= args.count; i += n) total += exp<T>(load(logits + i) - origin);
  if (i < args.count) {
    T part[n];
    for (int c = 0; c < n; ++c) part[c] = i + c < args.count ? logits[i + c] : lowest;
    total += exp<T>(load(part) - origin);
  }
  const T all = sum<T>(total);
  *args.maximum = origin;
  // A tile of nothing but -inf has no share; a NaN anywhere reaches the sum.
  *args.sum = maximum > lowest || all != all ? all : 0;
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
