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

  Attention(const Memory& memory, int64_t N, int64_t B, int64_t S_)
      : memory_(memory), groups_(memory, N, B, S_), N_(N), source_(S_), weights_(N * S_) {}

  // query: N x A rows. attn_weights: (N, S).
  void weigh(const Rows& query, T* attn_weights) const {
    const KernelTable<S>& k = kernels<S>();
    const int64_t A = memory_.score_weight.size(0), width = k.padded(A);
    const Scratch<T> padded(N_ * width), exponential(N_ * width), score_weight(width);
    const Scratch<uint8_t> is_small(N_);
    k.prepare_score_weight(pointer<S>(memory_.score_weight), A, score_weight.data());
    parallel(N_, 16 * A, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        k.prepare_query(row<S>(query, n), query.is_storage, A, padded.data() + n * width,
                        exponential.data() + n * width, is_small.data() + n);
    });
    const Sentences<S> keys = rnnsearch::sentences<S>(memory_.keys);
    constexpr int64_t strip = 8;
    const int64_t strips = blocks(source_, strip);
    for_each_piece(strips, strip * A * 16, [&](const Grouping::Sentence& sentence, int64_t first, int64_t last) {
      k.scores({sentence.rows, sentence.row_count, padded.data(), exponential.data(), is_small.data(),
                score_weight.data(), width, keys.data + sentence.id * keys.sentence_stride, keys.position_stride, A,
                sentence.positions, std::min(first * strip, sentence.position_count),
                std::min(last * strip, sentence.position_count), weights_.data(), source_});
    });
    for_each_piece(1, 16 * source_, [&](const Grouping::Sentence& sentence, int64_t, int64_t) {
      for (int64_t r = 0; r < sentence.row_count; ++r) {
        T* weights = weights_.data() + sentence.rows[r] * source_;
        T* row = attn_weights + sentence.rows[r] * source_;
        k.softmax(weights, sentence.position_count);
        if (sentence.position_count < source_) std::fill(row, row + source_, T(0));
        for (int64_t p = 0; p < sentence.position_count; ++p) row[sentence.positions[p]] = weights[p];
      }
    });
  }

  // out[row] = Σ_j attn_weights_j values_j after `weigh`; values (B, S, features).
  void gather(const Tensor& values_, T* out) const {
    const KernelTable<S>& k = kernels<S>();
    const Sentences<S> values = rnnsearch::sentences<S>(values_);
    constexpr int64_t strip = 192;
    for_each_piece(blocks(values.features, strip), strip * source_,
                   [&](const Grouping::Sentence& sentence, int64_t first, int64_t last) {
                     k.weighted_sum({sentence.rows, sentence.row_count, weights_.data(), source_, sentence.positions,
                                     sentence.position_count, values.data + sentence.id * values.sentence_stride,
                                     values.position_stride, first * strip, std::min(last * strip, values.features),
                                     out, values.features});
                   });
  }

  // Σ_j attn_weights_j memory_j in the storage type, and as it was summed.
  Scratch<T> store_context(S* context) const {
    Scratch<T> exact(N_ * memory_.values.size(2));
    gather(memory_.values, exact.data());
    kernels<S>().to_storage(exact.data(), context, N_ * memory_.values.size(2));
    return exact;
  }

 private:
  // f(sentence, first, last) over all sentences and `pieces` pieces of each.
  template <class F>
  void for_each_piece(int64_t pieces, int64_t operations_each_row, const F& f) const {
    const auto& all = groups_.sentences();
    const int64_t count = static_cast<int64_t>(all.size());
    if (count == 0) return;
    parallel(count * pieces, operations_each_row * blocks(N_, count), [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t first = begin % pieces, last = std::min(pieces, first + end - begin);
        f(all[static_cast<size_t>(begin / pieces)], first, last);
        begin += last - first;
      }
    });
  }

  const Memory& memory_;
  Grouping groups_;
  int64_t N_, source_;
  Scratch<T> weights_;  // N x S, the real positions of each row side by side
};
}  // namespace rnnsearch
