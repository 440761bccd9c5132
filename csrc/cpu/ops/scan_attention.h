// The attention of a scan: every sentence meets one query a step.
#pragma once

#include <cstring>
#include <vector>

#include "attend.h"
#include "schedule.h"

namespace rnnsearch {

inline Memory check_memory(Signature& call, const Tensor& keys, const Tensor& memory, const Tensor& score_weight,
                           const OptionalTensor& key_padding_mask) {
  return {call.check("keys", keys, {"B", "S", "A"}, Role::storage),
          call.check("memory", memory, {"B", "S", "M"}, Role::storage),
          call.check("score_weight", score_weight, {"A"}, Role::storage),
          call.check("key_padding_mask", key_padding_mask, {"B", "S"}, Role::mask), std::nullopt};
}

// The queries of one step, prepared.
template <class S>
class QueryRows {
 public:
  using T = Accumulate<S>;

  QueryRows(int64_t N, int64_t A)
      : A_(A), width_(kernels<S>().padded(A)), padded_(N * width_), exponential_(N * width_), is_small_(N) {}

  template <class F>
  void prepare(int64_t N, const F& query) const {
    parallel(N, 16 * A_, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        kernels<S>().prepare_query(query(n), false, A_, padded_.data() + n * width_, exponential_.data() + n * width_,
                                   is_small_.data() + n);
    });
  }
  PreparedQuery<T> operator()(int64_t n) const {
    return {padded_.data() + n * width_, exponential_.data() + n * width_, is_small_.data()[n] != 0};
  }

 private:
  int64_t A_, width_;
  Scratch<T> padded_, exponential_;
  Scratch<uint8_t> is_small_;
};

template <class S>
class ScanAttention {
 public:
  using T = Accumulate<S>;

  ScanAttention(const Memory& memory, int64_t B, int64_t source)
      : kernels_(kernels<S>()),
        memory_(memory),
        groups_(memory, B, B, source),
        source_(source),
        A_(memory.score_weight.size(0)),
        features_(memory.values.size(2)),
        padded_(kernels_.padded(A_)),
        tiles_(blocks(source, kPositionTile)),
        exponential_(B * tiles_ * kPositionTile * padded_),
        is_small_(B * tiles_),
        score_weight_(padded_) {
    kernels_.prepare_score_weight(pointer<S>(memory.score_weight), A_, score_weight_.data());
    parallel(B * tiles_, kPositionTile * 16 * A_, [&](int64_t begin, int64_t end) {
      for_sentences(begin, end, tiles_, [&](int64_t b, int64_t first, int64_t last) {
        kernels_.scan.prepare_keys(keys(b), first, std::min(last, blocks(count(b), kPositionTile)));
      });
    });
  }

  int64_t source() const { return source_; }
  int64_t features() const { return features_; }
  int64_t padded() const { return padded_; }
  int64_t tiles() const { return tiles_; }
  int64_t count(int64_t b) const { return sentence(b).position_count; }
  const int32_t* positions(int64_t b) const { return sentence(b).positions; }
  const T* score_weight() const { return score_weight_.data(); }

  PreparedKeys<S> keys(int64_t b) const {
    return {pointer<S>(memory_.keys) + b * memory_.keys.stride(0),
            memory_.keys.stride(1),
            positions(b),
            count(b),
            A_,
            exponential_.data() + b * tiles_ * kPositionTile * padded_,
            is_small_.data() + b * tiles_,
            padded_};
  }
  const S* values(int64_t b) const { return pointer<S>(memory_.values) + b * memory_.values.stride(0); }
  int64_t value_stride() const { return memory_.values.stride(1); }

  // For rows n of [0, N), each against sentence b = rows.row(n): weights[n, p], and attn_weights_of(b) with zeros where
  // padded, and sums[n] = Σ_p weights[n, p] values[positions[p]].
  template <class F>
  void attend(const Schedule& rows, int64_t N, const QueryRows<S>& queries, T* weights, const F& attn_weights_of,
              T* sums) const {
    constexpr int64_t strip = 16;  // tiles
    each_piece(N, blocks(tiles_, strip), strip * kPositionTile * A_ * 8, [&](int64_t n, int64_t first, int64_t last) {
      const int64_t b = rows.row(n), most = count(b);
      kernels_.scan.scores({keys(b), queries(n), score_weight_.data(), std::min(first * strip * kPositionTile, most),
                            std::min(last * strip * kPositionTile, most), weights + n * source_});
    });
    each_piece(N, 1, 16 * source_, [&](int64_t n, int64_t, int64_t) {
      const int64_t b = rows.row(n), most = count(b);
      T* real = weights + n * source_;
      T* row = attn_weights_of(b);
      kernels_.softmax(real, most);
      if (most == source_) {
        std::memcpy(row, real, static_cast<size_t>(most) * sizeof(T));
      } else {
        std::fill(row, row + source_, T(0));
        for (int64_t p = 0; p < most; ++p) row[positions(b)[p]] = real[p];
      }
    });
    constexpr int64_t features = 512;
    each_piece(N, blocks(features_, features), features * source_, [&](int64_t n, int64_t first, int64_t last) {
      const int64_t b = rows.row(n);
      kernels_.weighted_sum({&n, 1, weights, source_, positions(b), count(b), values(b), value_stride(),
                             first * features, std::min(last * features, features_), sums, features_});
    });
  }

  // With grad_sums[n] at hand: grad_scores[n, p], and grad_query_of(n).
  template <class G, class F>
  void attend_backward(const Schedule& rows, int64_t N, const QueryRows<S>& queries, const T* const* grad_sums,
                       const G& prepare_scores, T* grad_scores, const F& grad_query_of) const {
    constexpr int64_t strip = 64;  // positions
    each_piece(N, blocks(source_, strip), strip * features_ * 4, [&](int64_t n, int64_t first, int64_t last) {
      const int64_t b = rows.row(n), most = count(b);
      kernels_.scan.dot({grad_sums[n], values(b), value_stride(), features_, positions(b),
                         std::min(first * strip, most), std::min(last * strip, most), grad_scores + n * source_});
    });
    each_piece(N, 1, 16 * source_, [&](int64_t n, int64_t, int64_t) { prepare_scores(n, grad_scores + n * source_); });
    const int64_t features = padded_ / kernels_.padded(1) >= 16 ? 16 * kernels_.padded(1) : padded_;
    each_piece(N, blocks(padded_, features), features * source_ * 8, [&](int64_t n, int64_t first, int64_t last) {
      kernels_.scan.grad_query({keys(rows.row(n)), queries(n), score_weight_.data(), grad_scores + n * source_,
                                first * features, std::min(last * features, padded_), grad_query_of(n)});
    });
  }

 private:
  const Grouping::Sentence& sentence(int64_t b) const { return groups_.sentences()[static_cast<size_t>(b)]; }

  template <class F>
  static void for_sentences(int64_t begin, int64_t end, int64_t pieces, const F& f) {
    while (begin < end) {
      const int64_t first = begin % pieces, last = std::min(pieces, first + end - begin);
      f(begin / pieces, first, last);
      begin += last - first;
    }
  }
  // f(n, first, last) over N rows and `pieces` pieces of each.
  template <class F>
  static void each_piece(int64_t N, int64_t pieces, int64_t operations, const F& f) {
    parallel(N * pieces, operations, [&](int64_t begin, int64_t end) { for_sentences(begin, end, pieces, f); });
  }

  const KernelTable<S>& kernels_;
  const Memory& memory_;
  Grouping groups_;
  int64_t source_, A_, features_, padded_, tiles_;
  Scratch<T> exponential_;
  Scratch<uint8_t> is_small_;
  Scratch<T> score_weight_;
};
}  // namespace rnnsearch
