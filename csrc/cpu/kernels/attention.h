// Additive attention: scores, softmax, weighted sums, and the backward pass.
//
//   tanh(q + k) = 1 - 2 / (1 + e^{2q} e^{2k})
//
// so that the rows of one sentence (a beam) share e^{2k}, and each (row, position, feature) costs a multiplication, an
// addition and a reciprocal. The product neither overflows nor loses anything while |q| and |k| stay within 9; where
// either does not, that row and position take e^{2(q + k)} instead. The choice hangs on the row and on its own
// sentence alone. A NaN fails neither test and passes through both forms.
#pragma once

#include "arithmetic.h"

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

// `rows` rows against `positions` positions, one of the two being 1, through the shared e^{2k}. most: the largest |k|
// of each position. next: keys to fetch ahead of time; ahead: rows of values, `share` elements with each vector of
// keys.
template <class S, int rows, int positions>
INLINE void shared_scores(const ScoreArgs<S>& args, const int64_t* row, const S* const* key, const S* next,
                          const S* const* ahead, int64_t share, Accumulate<S>* out, Accumulate<S>* most) {
  using T = Accumulate<S>;
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(S));
  constexpr int count = rows * positions;
  Vec<T> total[(count + 3) / 4 * 4] = {}, magnitudes[4] = {};
  const T* factor[rows];
  for (int r = 0; r < rows; ++r) factor[r] = args.exp_query + row[r] * args.padded;
  const auto step = [&](int64_t a, auto load_key) {
    const Vec<T> v = load(args.score_weight + a);
    for (int p = 0; p < positions; ++p) {
      const Vec<T> k = load_key(key[p] + a);
      magnitudes[p] = larger<T>(magnitude<T>(k), magnitudes[p]);
      // Out of range where the sum is thrown away, so it is not clamped.
      const Vec<T> e = exp_twice<T>(k);
      for (int r = 0; r < rows; ++r) total[r + p] += v * reciprocal(load(factor[r] + a) * e + 1);
    }
  };
  int64_t a = 0;
  for (; a + lanes<T> <= args.A; a += lanes<T>) {
    for (int p = 0; p < positions; ++p) __builtin_prefetch(next + p * args.position_stride + a, 0, 2);
    for (int64_t l = 0; l < share; l += line)
      for (int p = 0; p < positions; ++p) __builtin_prefetch(ahead[p] + a / lanes<T> * share + l, 0, 2);
    step(a, [](const S* k) { return load(k); });
  }
  if (a < args.A) step(a, [&](const S* k) { return load(k, args.A - a); });
  for (int i = 0; i < count; i += 4) {
    T sums[4];
    sum4<T>(total[i], total[i + 1], total[i + 2], total[i + 3], sums);
    for (int j = 0; j < 4 && i + j < count; ++j) out[i + j] = -2 * sums[j];
  }
  T maxima[4];
  reduce4<T, Maximum>(magnitudes[0], magnitudes[1], magnitudes[2], magnitudes[3], maxima);
  for (int p = 0; p < positions; ++p) most[p] = maxima[p];
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
  constexpr int together = 4;
  const auto key_of = [&](int64_t p) { return args.keys + args.positions[p] * args.position_stride; };
  const auto ahead_of = [&](int64_t p) { return args.ahead + args.positions[p] * args.ahead_stride; };
  const auto keep = [&](int64_t row, int64_t p, T score, T most) {
    const bool small = most <= static_cast<T>(kSmall) && args.query_is_small[row];
    args.scores[row * args.score_stride + p] = small ? score : exact_score(args, row, key_of(p));
  };
  T out[together > kScoreRows ? together : kScoreRows], most[together];
  const S* ahead[together];
  int64_t p = args.begin;
  // A row that has its sentence to itself takes several positions at a time.
  if (args.row_count == 1)
    for (; p + together <= args.end; p += together) {
      const S* key[together];
      for (int i = 0; i < together; ++i) key[i] = key_of(p + i);
      for (int i = 0; i < together; ++i) ahead[i] = ahead_of(p + i);
      const int64_t later = p + 2 * together <= args.end ? p + together : p;
      shared_scores<S, 1, together>(args, args.rows, key, key_of(later), ahead, args.ahead_share, out, most);
      for (int i = 0; i < together; ++i) keep(args.rows[0], p + i, out[i], most[i]);
    }
  for (; p < args.end; ++p) {
    const S* key = key_of(p);
    const S* next = p + 1 < args.end ? key_of(p + 1) : key;
    ahead[0] = ahead_of(p);
    const int64_t tiles = (args.row_count + kScoreRows - 1) / kScoreRows;
    for (int64_t tile = 0, r = 0; tile < tiles; ++tile) {
      // As even as whole rows allow.
      const int64_t take = args.row_count / tiles + (tile < args.row_count % tiles);
      choose<kScoreRows>(take, [&](auto rows) {
        shared_scores<S, decltype(rows)::value, 1>(args, args.rows + r, &key, next, ahead,
                                                   tile == 0 ? args.ahead_share : 0, out, most);
      });
      for (int64_t i = 0; i < take; ++i) keep(args.rows[r + i], p, out[i], most[0]);
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

// Adds `positions` positions to each row's sum, in their order, `width` features at a time.
template <class S, class V, int positions>
INLINE void add_positions(const WeightedSumArgs<S>& args, const V* const* values, int64_t p, int64_t begin,
                          int64_t width) {
  using T = Accumulate<S>;
  constexpr int n = lanes<T>;
  for (int64_t r = 0; r < args.row_count; ++r) {
    const T* weights = args.weights + args.rows[r] * args.weight_stride + p;
    T* out = args.out + args.rows[r] * args.out_stride + begin;
    Vec<T> w[positions];
    for (int i = 0; i < positions; ++i) w[i] = broadcast(weights[i]);
    const auto step = [&](int64_t m, int64_t left) {
      Vec<T> total = {};
      if (p > 0) total = load(out + m, left);
      for (int i = 0; i < positions; ++i) total += w[i] * load(values[i] + m, left);
      store(out + m, total, left);
    };
    int64_t m = 0;
    for (; m + n <= width; m += n) step(m, n);
    if (m < width) step(m, width - m);
  }
}

// Eight positions at a time are read side by side, each in one long run, and stay in the first-level cache for all
// rows of the sentence.
template <class S>
void weighted_sum(const WeightedSumArgs<S>& args) {
  using T = Accumulate<S>;
  constexpr int64_t strip = 512;
  constexpr int together = 8;
  for (int64_t begin = args.begin; begin < args.end; begin += strip) {
    const int64_t width = args.end - begin < strip ? args.end - begin : strip;
    if (args.count == 0)
      for (int64_t r = 0; r < args.row_count; ++r)
        memset(args.out + args.rows[r] * args.out_stride + begin, 0, static_cast<size_t>(width) * sizeof(T));
    for (int64_t p = 0; p < args.count; p += together) {
      const int64_t take = args.count - p < together ? args.count - p : together;
      const S* values[together];
      for (int64_t i = 0; i < take; ++i) values[i] = args.values + args.positions[p + i] * args.position_stride + begin;
      if (sizeof(S) < sizeof(T) && args.row_count > 1) {
        // Widened once for all rows.
        T wide[together][strip];
        const T* widened[together];
        for (int64_t i = 0; i < take; ++i) {
          widened[i] = wide[i];
          for (int64_t m = 0; m < width; m += lanes<T>) store(wide[i] + m, load(values[i] + m, width - m));
        }
        choose<together>(
            take, [&](auto count) { add_positions<S, T, decltype(count)::value>(args, widened, p, begin, width); });
      } else {
        choose<together>(
            take, [&](auto count) { add_positions<S, S, decltype(count)::value>(args, values, p, begin, width); });
      }
    }
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
