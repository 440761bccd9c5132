// Additive attention: scores, softmax, weighted sums, and the backward pass.
//
//   tanh(q + k) = 1 - 2 / (1 + e^{2q} e^{2k})
//
// so that the rows of one sentence (a beam) share e^{2k}, and each (row, position, feature) costs a multiplication, an
// addition and a reciprocal. The product neither overflows nor loses anything while |q| and |k| stay within 9; where
// either does not, that row and position take e^{2(q + k)} instead. The choice hangs on the row and on its own
// sentence alone. A NaN fails neither test and passes through both forms.
#pragma once

#include "simd.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

inline constexpr int kScoreRows = RNNSEARCH_REGISTERS == 32 ? 8 : 4;
inline constexpr float kSmall = 9.0f;

template <class S>
void prepare_query(const void* query, bool is_storage, int64_t A, Accumulate<S>* out, Accumulate<S>* exponential,
                   uint8_t* is_small) {
  using T = Accumulate<S>;
  Vec<T> most = {};
  for (int64_t a = 0; a < A; a += lanes<T>) {
    const Vec<T> q = load_either<S>(query, is_storage, a, A - a);
    most = larger<T>(magnitude<T>(q), most);
    store(out + a, q);
    store(exponential + a, exp<T>(q + q));
  }
  *is_small = largest<T>(most) <= static_cast<T>(kSmall);
}

// The lanes beyond A are zero: they add nothing to any score.
template <class S>
void prepare_score_weight(const S* weight, int64_t A, Accumulate<S>* out) {
  using T = Accumulate<S>;
  for (int64_t a = 0; a < A; a += lanes<T>) store(out + a, load(weight + a, A - a));
}

// One position against `rows` rows through the shared e^{2k}; returns the largest |k|.
template <class S, int rows>
INLINE Accumulate<S> shared_scores(const ScoreArgs<S>& args, const int64_t* row, const S* key, Accumulate<S>* out) {
  using T = Accumulate<S>;
  Vec<T> total[rows] = {}, most = {};
  const T* factor[rows];
  for (int r = 0; r < rows; ++r) factor[r] = args.exp_query + row[r] * args.padded;
  const auto step = [&](int64_t a, Vec<T> k) {
    most = larger<T>(magnitude<T>(k), most);
    const Vec<T> e = exp<T>(k + k), v = load(args.score_weight + a);
    for (int r = 0; r < rows; ++r) total[r] += v * reciprocal(load(factor[r] + a) * e + 1);
  };
  int64_t a = 0;
  for (; a + lanes<T> <= args.A; a += lanes<T>) step(a, load(key + a));
  if (a < args.A) step(a, load(key + a, args.A - a));
  for (int r = 0; r < rows; ++r) out[r] = -2 * sum<T>(total[r]);
  return largest<T>(most);
}

template <class S>
Accumulate<S> exact_score(const ScoreArgs<S>& args, int64_t row, const S* key) {
  using T = Accumulate<S>;
  Vec<T> total = {};
  const T* query = args.query + row * args.padded;
  for (int64_t a = 0; a < args.A; a += lanes<T>) {
    const Vec<T> x = load(query + a) + load(key + a, args.A - a);
    total += load(args.score_weight + a) / (exp<T>(x + x) + 1);
  }
  return -2 * sum<T>(total);
}

template <class S>
void scores(const ScoreArgs<S>& args) {
  using T = Accumulate<S>;
  for (int64_t p = args.begin; p < args.end; ++p) {
    const S* key = args.keys + args.positions[p] * args.position_stride;
    for (int64_t r = 0; r < args.row_count;) {
      const int64_t tiles = (args.row_count - r + kScoreRows - 1) / kScoreRows;
      const int64_t take = (args.row_count - r + tiles - 1) / tiles;
      const int64_t* row = args.rows + r;
      T out[kScoreRows], most = 0;
      choose<kScoreRows>(take,
                         [&](auto count) { most = shared_scores<S, decltype(count)::value>(args, row, key, out); });
      for (int64_t i = 0; i < take; ++i) {
        const bool small = most <= static_cast<T>(kSmall) && args.query_is_small[row[i]];
        args.scores[row[i] * args.score_stride + p] = small ? out[i] : exact_score(args, row[i], key);
      }
      r += take;
    }
  }
}

template <class S>
void softmax(Accumulate<S>* x, int64_t count) {
  using T = Accumulate<S>;
  if (count == 0) return;
  T most = x[0];
  for (int64_t i = 1; i < count; ++i) most = x[i] > most ? x[i] : most;
  Vec<T> total = {};
  int64_t i = 0;
  for (; i + lanes<T> <= count; i += lanes<T>) {
    const Vec<T> e = exp<T>(load(x + i) - most);
    total += e;
    store(x + i, e);
  }
  if (i < count) {
    Vec<T> e = exp<T>(load(x + i, count - i) - most);
    store(x + i, e, count - i);
    total += load(x + i, count - i);
  }
  const T scale = 1 / sum<T>(total);
  for (i = 0; i < count; ++i) x[i] *= scale;
}

template <class S, int rows, int vectors>
INLINE void weighted_tile(const WeightedSumArgs<S>& args, const int64_t* row, int64_t begin, int64_t last) {
  using T = Accumulate<S>;
  Vec<T> total[rows][vectors] = {};
  const T* weight[rows];
  for (int r = 0; r < rows; ++r) weight[r] = args.weights + row[r] * args.weight_stride;
  // Positions lie a whole feature row apart, which is beyond what the hardware fetches ahead.
  constexpr int64_t ahead = 6;
  for (int64_t p = 0; p < args.count; ++p) {
    const S* value = args.values + args.positions[p] * args.position_stride + begin;
    const S* later = args.values + args.positions[p + ahead < args.count ? p + ahead : p] * args.position_stride;
    Vec<T> v[vectors];
    for (int c = 0; c < vectors; ++c) {
      v[c] = c + 1 < vectors ? load(value + c * lanes<T>) : load(value + c * lanes<T>, last);
      __builtin_prefetch(later + begin + c * lanes<T>, 0, 2);
    }
    for (int r = 0; r < rows; ++r) {
      const Vec<T> w = broadcast(weight[r][p]);
      for (int c = 0; c < vectors; ++c) total[r][c] += w * v[c];
    }
  }
  for (int r = 0; r < rows; ++r) {
    T* out = args.out + row[r] * args.out_stride + begin;
    for (int c = 0; c + 1 < vectors; ++c) store(out + c * lanes<T>, total[r][c]);
    store(out + (vectors - 1) * lanes<T>, total[r][vectors - 1], last);
  }
}

template <class S>
void weighted_sum(const WeightedSumArgs<S>& args) {
  using T = Accumulate<S>;
  constexpr int most_rows = RNNSEARCH_REGISTERS == 32 ? 4 : 2, vectors = RNNSEARCH_REGISTERS == 32 ? 6 : 4;
  for (int64_t m = args.begin; m < args.end;) {
    const int64_t left = (args.end - m + lanes<T> - 1) / lanes<T>;
    const int64_t wide = left < vectors ? left : vectors;
    const int64_t last = args.end - m - (wide - 1) * lanes<T>;
    for (int64_t r = 0; r < args.row_count;) {
      const int64_t tiles = (args.row_count - r + most_rows - 1) / most_rows;
      const int64_t take = (args.row_count - r + tiles - 1) / tiles;
      choose<most_rows>(take, [&](auto rows) {
        choose<vectors>(wide, [&](auto columns) {
          weighted_tile<S, decltype(rows)::value, decltype(columns)::value>(args, args.rows + r, m, last);
        });
      });
      r += take;
    }
    m += wide * lanes<T>;
  }
}

template <class S>
void to_storage(const Accumulate<S>* from, S* to, int64_t count) {
  constexpr int n = lanes<Accumulate<S>>;
  for (int64_t i = 0; i < count; i += n) store(to + i, load(from + i, count - i), count - i);
}

// With α the weights, dα_j = grad_attn_weights_j + grad_context · memory_j, de_j = α_j (dα_j - Σ α dα):
//   grad_query = Σ_j de_j v (1 - tanh²),  grad_keys_j = de_j v (1 - tanh²),  grad_v = Σ_j de_j tanh,
//   grad_memory_j = α_j grad_context.   tanh is computed again: nothing of size S x A is stored.
template <class S>
void attention_backward(const AttentionBackwardArgs<S>& args) {
  using T = Accumulate<S>;
  constexpr int n = lanes<T>;
  const auto is_real = [&](int64_t j) { return args.ignore == nullptr || !args.ignore[j]; };
  T mean = 0;
  for (int64_t j = 0; j < args.S_; ++j) {
    S* grad_memory = args.grad_memory + j * args.M;
    if (!is_real(j)) {
      memset(grad_memory, 0, static_cast<size_t>(args.M) * sizeof(S));
      continue;
    }
    const S* memory = args.memory + j * args.memory_stride;
    Vec<T> total = {};
    for (int64_t m = 0; m < args.M; m += n) {
      const Vec<T> grad = load(args.grad_context + m, args.M - m);
      total += grad * load(memory + m, args.M - m);
      store(grad_memory + m, grad * args.attn_weights[j], args.M - m);
    }
    args.grad_scores[j] = args.grad_attn_weights[j] + sum<T>(total);
    mean += args.attn_weights[j] * args.grad_scores[j];
  }
  memset(args.grad_query, 0, static_cast<size_t>(args.A) * sizeof(T));
  memset(args.grad_score_weight, 0, static_cast<size_t>(args.A) * sizeof(T));
  for (int64_t j = 0; j < args.S_; ++j) {
    S* grad_keys = args.grad_keys + j * args.A;
    if (!is_real(j)) {
      memset(grad_keys, 0, static_cast<size_t>(args.A) * sizeof(S));
      continue;
    }
    const T grad_score = args.attn_weights[j] * (args.grad_scores[j] - mean);
    const S* keys = args.keys + j * args.key_stride;
    for (int64_t a = 0; a < args.A; a += n) {
      const int64_t left = args.A - a;
      const Vec<T> x = load(args.query + a) + load(keys + a, left);
      const Vec<T> e = exp<T>(x + x), r = 1 / (e + 1);
      // 1 - tanh² = 4 e / (1 + e)², without the cancellation of 1 - tanh².
      const Vec<T> grad = load(args.score_weight + a) * grad_score * (4 * (e * r) * r);
      store(grad_keys + a, grad, left);
      store(args.grad_query + a, load(args.grad_query + a, left) + grad, left);
      store(args.grad_score_weight + a, load(args.grad_score_weight + a, left) + grad_score * (1 - 2 * r), left);
    }
  }
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
