// Attention over the sentences' memory for rows of queries, as additive_attention and decoder_step use it.
#pragma once

#include <vector>

#include "launch.h"

namespace rnnsearch {

// The tensors of an attention call after their checks.
struct Memory {
  Tensor keys, values, score_weight;
  OptionalTensor ignore, index;  // (B, S) bool, (N,) int64

  static Memory check(Signature& call, const Tensor& keys, const Tensor& memory, const Tensor& score_weight,
                      const OptionalTensor& key_padding_mask, const OptionalTensor& memory_index);
};

// The rows of each sentence and its real positions. A row's results depend on the list of its own sentence alone.
class Grouping {
 public:
  Grouping(const Memory& memory, int64_t N, int64_t B, int64_t S);

  struct Sentence {
    int64_t id;
    const int64_t* rows;
    int64_t row_count;
    const int32_t* positions;
    int64_t position_count;
  };
  // Those that any row attends to.
  const std::vector<Sentence>& sentences() const { return sentences_; }

 private:
  std::vector<int64_t> rows_;
  std::vector<int32_t> positions_;
  std::vector<Sentence> sentences_;
};

template <class S>
class Attention {
 public:
  using T = Accumulate<S>;
  // out (N, features) = Σ_j attn_weights_j values_j for each row; values (B, S, features).
  struct Sum {
    const Tensor& values;
    T* out;
  };

  Attention(const Memory& memory, int64_t N, int64_t B, int64_t S_)
      : memory_(memory),
        groups_(memory, N, B, S_),
        N_(N),
        source_(S_),
        A_(memory.score_weight.size(0)),
        width_(kernel_.padded(A_)),
        query_(N * width_),
        exp_query_(N * width_),
        score_weight_(width_),
        weights_(N * S_),
        query_is_small_(N) {}

  // attn_weights (N, S) of the N x A rows of `query`, and the sums under them.
  void attend(const Rows& query, T* attn_weights, std::initializer_list<Sum> sums) const {
    const auto& all = groups_.sentences();
    const int64_t count = static_cast<int64_t>(all.size()), threads = torch::stable::get_num_threads();
    if (count == 0) return;
    prepare(query);
    if (threads > 1 && count < 4 * threads) {
      // Few sentences for the threads: they are cut in pieces.
      constexpr int64_t positions = 8, features = 192;
      for_each_piece(blocks(source_, positions), positions * A_ * 16,
                     [&](const Grouping::Sentence& sentence, int64_t first, int64_t last) {
                       score(sentence, first * positions, last * positions, nullptr);
                     });
      for_each_piece(1, 16 * source_,
                     [&](const Grouping::Sentence& sentence, int64_t, int64_t) { normalize(sentence, attn_weights); });
      for (const Sum& sum : sums)
        for_each_piece(blocks(sum.values.size(2), features), features * source_,
                       [&](const Grouping::Sentence& sentence, int64_t first, int64_t last) {
                         gather(sentence, sum, first * features, last * features);
                       });
      return;
    }
    // Sentence by sentence: where the cache has room, its values travel there while its scores are computed.
    constexpr int64_t room = 1 << 19;
    const Sentences<S> values = sentences<S>(sums.begin()->values);
    const bool fits = source_ * values.features * static_cast<int64_t>(sizeof(S)) <= room;
    parallel(count, blocks(N_, count) * source_ * A_ * 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Grouping::Sentence& sentence = all[static_cast<size_t>(i)];
        score(sentence, 0, source_, fits ? &values : nullptr);
        normalize(sentence, attn_weights);
        for (const Sum& sum : sums) gather(sentence, sum, 0, sum.values.size(2));
      }
    });
  }

 private:
  void prepare(const Rows& query) const {
    kernel_.prepare_score_weight(pointer<S>(memory_.score_weight), A_, score_weight_.data());
    parallel(N_, 16 * A_, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        kernel_.prepare_query(row<S>(query, n), query.is_storage, A_, query_.data() + n * width_,
                              exp_query_.data() + n * width_, query_is_small_.data() + n);
    });
  }

  // The scores of positions [first, last) of the real ones.
  void score(const Grouping::Sentence& sentence, int64_t first, int64_t last, const Sentences<S>* ahead) const {
    const Sentences<S> keys = sentences<S>(memory_.keys);
    ScoreArgs<S> args = {};
    args.rows = sentence.rows;
    args.row_count = sentence.row_count;
    args.query = query_.data();
    args.exp_query = exp_query_.data();
    args.query_is_small = query_is_small_.data();
    args.score_weight = score_weight_.data();
    args.padded = width_;
    args.keys = keys.data + sentence.id * keys.sentence_stride;
    args.position_stride = keys.position_stride;
    args.A = A_;
    args.positions = sentence.positions;
    args.begin = std::min(first, sentence.position_count);
    args.end = std::min(last, sentence.position_count);
    args.scores = weights_.data();
    args.score_stride = source_;
    if (ahead != nullptr) {
      args.ahead = ahead->data + sentence.id * ahead->sentence_stride;
      args.ahead_stride = ahead->position_stride;
      args.ahead_share = ahead->features / blocks(A_, kernel_.padded(1));
    }
    kernel_.scores(args);
  }

  void normalize(const Grouping::Sentence& sentence, T* attn_weights) const {
    for (int64_t r = 0; r < sentence.row_count; ++r) {
      T* weights = weights_.data() + sentence.rows[r] * source_;
      T* row = attn_weights + sentence.rows[r] * source_;
      kernel_.softmax(weights, sentence.position_count);
      if (sentence.position_count < source_) std::fill(row, row + source_, T(0));
      for (int64_t p = 0; p < sentence.position_count; ++p) row[sentence.positions[p]] = weights[p];
    }
  }

  void gather(const Grouping::Sentence& sentence, const Sum& sum, int64_t begin, int64_t end) const {
    const Sentences<S> values = sentences<S>(sum.values);
    kernel_.weighted_sum({sentence.rows, sentence.row_count, weights_.data(), source_, sentence.positions,
                          sentence.position_count, values.data + sentence.id * values.sentence_stride,
                          values.position_stride, begin, std::min(end, values.features), sum.out, values.features});
  }

  // f(sentence, first, last) over all sentences and `pieces` pieces of each.
  template <class F>
  void for_each_piece(int64_t pieces, int64_t operations_each_row, const F& f) const {
    const auto& all = groups_.sentences();
    const int64_t count = static_cast<int64_t>(all.size());
    parallel(count * pieces, operations_each_row * blocks(N_, count), [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t first = begin % pieces, last = std::min(pieces, first + end - begin);
        f(all[static_cast<size_t>(begin / pieces)], first, last);
        begin += last - first;
      }
    });
  }

  const KernelTable<S>& kernel_ = kernels<S>();
  const Memory& memory_;
  Grouping groups_;
  int64_t N_, source_, A_, width_;
  Scratch<T> query_, exp_query_, score_weight_;  // padded rows
  Scratch<T> weights_;                           // N x S, the real positions of each row side by side
  Scratch<uint8_t> query_is_small_;
};
}  // namespace rnnsearch
