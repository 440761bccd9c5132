// The attention and the gates of a scan, where a sentence's keys meet one query after another: e^{2 keys} is computed
// once and kept. Where |query| or |keys| exceed 9 (see attention.h) the keys are read and e^{2(query + keys)} computed.
// With e that exponential and r = 1 / (1 + e):   tanh = 1 - 2 r = e r - r,   1 - tanh² = 4 e r r.
#pragma once

#include "attention.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// Tiles [begin, end) of positions.
template <class S>
void prepare_keys(const PreparedKeys<S>& keys, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  for (int64_t tile = begin; tile < end; ++tile) {
    Vec<T> most = {};
    for (int64_t p = tile * kPositionTile; p < keys.count && p < (tile + 1) * kPositionTile; ++p) {
      const S* key = keys.keys + keys.positions[p] * keys.key_stride;
      for (int64_t a = 0; a < keys.A; a += lanes<T>) {
        const Vec<T> k = load(key + a, keys.A - a);
        most = larger<T>(magnitude<T>(k), most);
        store(keys.exponential + p * keys.padded + a, exp<T>(k + k));
      }
    }
    keys.is_small[tile] = largest<T>(most) <= static_cast<T>(kSmall);
  }
}

// e^{2(query + key)} of position p at feature a.
template <class S>
INLINE Vec<Accumulate<S>> exact_exponential(const PreparedKeys<S>& keys, Vec<Accumulate<S>> query, int64_t p,
                                            int64_t a) {
  using T = Accumulate<S>;
  const Vec<T> x = query + load(keys.keys + keys.positions[p] * keys.key_stride + a, keys.A - a);
  return exp<T>(x + x);
}

template <class S, int positions>
INLINE void score_tile(const ScanScoreArgs<S>& args, int64_t p) {
  using T = Accumulate<S>;
  const PreparedKeys<S>& keys = args.keys;
  Vec<T> total[4] = {};
  if (keys.is_small[p / kPositionTile] && args.query.is_small) {
    const T* key = keys.exponential + p * keys.padded;
    for (int64_t a = 0; a < keys.padded; a += lanes<T>) {
      const Vec<T> v = load(args.score_weight + a), query = load(args.query.exponential + a);
      for (int i = 0; i < positions; ++i) total[i] += v * reciprocal(query * load(key + i * keys.padded + a) + 1);
    }
  } else {
    for (int64_t a = 0; a < keys.A; a += lanes<T>) {
      const Vec<T> v = load(args.score_weight + a), query = load(args.query.query + a);
      for (int i = 0; i < positions; ++i) total[i] += v / (exact_exponential<S>(keys, query, p + i, a) + 1);
    }
  }
  T sums[4];
  sum4<T>(total[0], total[1], total[2], total[3], sums);
  for (int i = 0; i < positions; ++i) args.scores[p + i] = -2 * sums[i];
}

template <class S>
void scan_scores(const ScanScoreArgs<S>& args) {
  static_assert(kPositionTile == 4);
  int64_t p = args.begin;
  for (; p + kPositionTile <= args.end; p += kPositionTile) score_tile<S, kPositionTile>(args, p);
  if (p < args.end)
    choose<kPositionTile - 1>(args.end - p, [&](auto rest) { score_tile<S, decltype(rest)::value>(args, p); });
}

template <class S, int positions>
INLINE void dot_positions(const DotArgs<S>& args, int64_t p) {
  using T = Accumulate<S>;
  const S* values[positions];
  for (int i = 0; i < positions; ++i) values[i] = args.values + args.positions[p + i] * args.stride;
  Vec<T> total[(positions + 3) / 4 * 4] = {};
  int64_t m = 0;
  for (; m + lanes<T> <= args.features; m += lanes<T>) {
    const Vec<T> x = load(args.vector + m);
    for (int i = 0; i < positions; ++i) total[i] += x * load(values[i] + m);
  }
  if (m < args.features) {
    const Vec<T> x = load(args.vector + m, args.features - m);
    for (int i = 0; i < positions; ++i) total[i] += x * load(values[i] + m, args.features - m);
  }
  for (int i = 0; i < positions; i += 4) {
    T sums[4];
    sum4<T>(total[i], total[i + 1], total[i + 2], total[i + 3], sums);
    for (int j = 0; j < 4 && i + j < positions; ++j) args.out[p + i + j] = sums[j];
  }
}

template <class S>
void dot(const DotArgs<S>& args) {
  constexpr int together = 8;
  for (int64_t p = args.begin; p < args.end; p += together)
    choose<together>(args.end - p < together ? args.end - p : together,
                     [&](auto count) { dot_positions<S, decltype(count)::value>(args, p); });
}

template <class S, int positions>
INLINE void grad_query_tile(const GradQueryArgs<S>& args, int64_t p) {
  using T = Accumulate<S>;
  const PreparedKeys<S>& keys = args.keys;
  Vec<T> grad[positions];
  for (int i = 0; i < positions; ++i) grad[i] = broadcast(args.grad_scores[p + i]);
  const bool small = keys.is_small[p / kPositionTile] && args.query.is_small;
  const T* key = keys.exponential + p * keys.padded;
  const auto pass = [&](auto exponential) {
    for (int64_t a = args.begin; a < args.end; a += lanes<T>) {
      Vec<T> total = p > 0 ? load(args.grad_query + a) : Vec<T>{};
      for (int i = 0; i < positions; ++i) {
        const Vec<T> e = exponential(i, a), r = reciprocal(e + 1);
        total += grad[i] * ((e * r) * r);
      }
      store(args.grad_query + a, total);
    }
  };
  if (small)
    pass([&](int i, int64_t a) { return load(args.query.exponential + a) * load(key + i * keys.padded + a); });
  else
    pass([&](int i, int64_t a) { return exact_exponential<S>(keys, load(args.query.query + a), p + i, a); });
}

template <class S>
void grad_query(const GradQueryArgs<S>& args) {
  using T = Accumulate<S>;
  for (int64_t p = 0; p < args.keys.count; p += kPositionTile)
    choose<kPositionTile>(args.keys.count - p < kPositionTile ? args.keys.count - p : kPositionTile,
                          [&](auto count) { grad_query_tile<S, decltype(count)::value>(args, p); });
  for (int64_t a = args.begin; a < args.end; a += lanes<T>) {
    const Vec<T> sum = args.keys.count > 0 ? load(args.grad_query + a) : Vec<T>{};
    store(args.grad_query + a, 4 * load(args.score_weight + a) * sum);
  }
}

template <class S, int positions>
INLINE void grad_keys_tile(const GradKeysArgs<S>& args, int64_t p, int64_t a, const Accumulate<S>* queries,
                           const Accumulate<S>* grads, Vec<Accumulate<S>>& grad_weight, bool small) {
  using T = Accumulate<S>;
  constexpr int n = lanes<T>;
  const PreparedKeys<S>& keys = args.keys;
  // Summed over the steps here, and over the tiles by the caller: errors grow with each count alone.
  Vec<T> total[positions] = {}, key[positions], shares = {};
  if (small)
    for (int i = 0; i < positions; ++i) key[i] = load(keys.exponential + (p + i) * keys.padded + a);
  const auto pass = [&](auto exponential) {
    for (int64_t t = 0; t < args.steps; ++t) {
      const Vec<T> query = load(queries + t * n);
      for (int i = 0; i < positions; ++i) {
        const Vec<T> e = exponential(i, query), r = reciprocal(e + 1);
        const Vec<T> share = broadcast(grads[t * kPositionTile + i]) * r, scaled = share * e;
        total[i] += scaled * r;
        shares += scaled - share;
      }
    }
  };
  if (small)
    pass([&](int i, Vec<T> query) { return query * key[i]; });
  else
    pass([&](int i, Vec<T> query) { return exact_exponential<S>(keys, query, p + i, a); });
  grad_weight += shares;
  const Vec<T> scale = 4 * load(args.score_weight + a);
  for (int i = 0; i < positions; ++i)
    store(args.grad_keys + keys.positions[p + i] * keys.A + a, scale * total[i], keys.A - a);
}

template <class S>
void grad_keys(const GradKeysArgs<S>& args) {
  using T = Accumulate<S>;
  constexpr int n = lanes<T>;
  T* queries = args.scratch;
  // The whole sentence takes one form: its queries are laid out once for all positions.
  bool small = args.queries_are_small;
  for (int64_t p = 0; p < args.keys.count; p += kPositionTile) small = small && args.keys.is_small[p / kPositionTile];
  for (int64_t a = args.begin; a < args.end; a += n) {
    // This vector of every step's query, side by side.
    for (int64_t t = 0; t < args.steps; ++t) {
      const Vec<T> q = load(args.queries + args.query_rows[t] * args.query_stride + a, args.keys.A - a);
      store(queries + t * n, small ? exp<T>(q + q) : q);
    }
    Vec<T> grad_weight = {};
    for (int64_t p = 0; p < args.keys.count; p += kPositionTile) {
      const int64_t take = args.keys.count - p < kPositionTile ? args.keys.count - p : kPositionTile;
      const T* grads = args.grad_scores + p * args.steps;
      choose<kPositionTile>(take, [&](auto count) {
        grad_keys_tile<S, decltype(count)::value>(args, p, a, queries, grads, grad_weight, small);
      });
    }
    store(args.grad_score_weight + a, grad_weight, args.keys.A - a);
  }
}

template <class S>
void add_rows(const AddRowsArgs<S>& args) {
  for (int64_t i = 0; i < args.count; i += lanes<Accumulate<S>>) {
    const int64_t left = args.count - i;
    store(args.out + i, load(args.left + i, left) + load(args.right + i, left), left);
  }
}

template <class T>
void column_sums(const ColumnSumArgs<T>& args) {
  for (int64_t i = args.begin; i < args.end; i += lanes<T>) store(args.sums + i, Vec<T>{}, args.end - i);
  for (int64_t row = 0; row < args.rows; ++row) {
    const T* values = args.values + row * args.stride;
    for (int64_t i = args.begin; i < args.end; i += lanes<T>) {
      const int64_t left = args.end - i;
      store(args.sums + i, load(args.sums + i, left) + load(values + i, left), left);
    }
  }
}

template <class T>
void gates_backward(const GateBackwardArgs<T>& args) {
  const int64_t H = args.H;
  for (int64_t h = 0; h < H; h += lanes<T>) {
    const int64_t left = H - h;
    const Vec<T> r = load(args.gates + h, left), z = load(args.gates + H + h, left);
    const Vec<T> n = load(args.gates + 2 * H + h, left), u = load(args.gates + 3 * H + h, left);
    const Vec<T> grad = load(args.grad_state + h, left) + load(args.grad_new_state + h, left);
    const Vec<T> grad_n = grad * (1 - z) * (1 - n * n);
    store(args.grads + h, grad_n, left);
    store(args.grads + 2 * H + h, grad * (load(args.state + h, left) - n) * (z * (1 - z)), left);
    store(args.grad_old_state + h, grad * z, left);
    if (args.reset_after) {
      store(args.grads + H + h, grad_n * u * (r * (1 - r)), left);
      store(args.grads + 3 * H + h, grad_n * r, left);
    }
  }
}

// The rest where the reset comes before the product, with the gradient of r ∘ state at hand.
template <class T>
void reset_backward(const GateBackwardArgs<T>& args) {
  const int64_t H = args.H;
  for (int64_t h = 0; h < H; h += lanes<T>) {
    const int64_t left = H - h;
    const Vec<T> r = load(args.gates + h, left), grad = load(args.grad_reset_state + h, left);
    const Vec<T> s = load(args.state + h, left);
    store(args.grads + H + h, grad * s * (r * (1 - r)), left);
    store(args.reset_state + h, r * s, left);
    store(args.grad_old_state + h, load(args.grad_old_state + h, left) + grad * r, left);
  }
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
