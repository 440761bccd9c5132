// vocabulary_topk: the K most probable tokens of log_softmax(readout weightᵀ + bias). Logits exist for one tile of the
// vocabulary at a time; the tiles are the same whatever the rows and the threads.
#include <cmath>
#include <limits>
#include <vector>

#include "launch.h"

namespace rnnsearch {
namespace {

constexpr int64_t kTile = 512;

template <class S>
struct Candidates {
  using T = Accumulate<S>;
  std::vector<T> values;
  std::vector<int64_t> ids;
  std::vector<int64_t> counts;

  // Lists of k for each row.
  void resize(int64_t rows, int64_t k) {
    values.resize(static_cast<size_t>(rows * k));
    ids.resize(static_cast<size_t>(rows * k));
    counts.assign(static_cast<size_t>(rows), 0);
  }
  bool empty() const { return counts.empty(); }
  TopK<S> row(int64_t n, int64_t k) {
    return {values.data() + n * k, ids.data() + n * k, counts[static_cast<size_t>(n)]};
  }
};

// Better first: larger, then lower id.
template <class T>
bool before(T value, int64_t id, T other, int64_t other_id) {
  return value > other || (value == other && id < other_id);
}
}  // namespace

template <class S>
void vocabulary_topk_rows(const PackedRows<S>& rows, int64_t row_begin, int64_t N, const Matrix<S>& weight,
                          const S* bias, int64_t V, const int64_t* banned, int64_t banned_stride, int64_t banned_count,
                          int64_t k, Accumulate<S>* log_probs, int64_t* token_ids) {
  using T = Accumulate<S>;
  const int64_t tiles = blocks(V, kTile);
  const Scratch<T> maxima(tiles * N), sums(tiles * N);
  // One list for each piece that a thread takes, found by its first tile.
  std::vector<Candidates<S>> pieces(static_cast<size_t>(tiles));
  parallel(tiles, kTile * rows.inputs() * (N + 4), [&](int64_t begin, int64_t end) {
    Candidates<S>& mine = pieces[static_cast<size_t>(begin)];
    mine.resize(N, k);
    std::vector<T> logits(static_cast<size_t>(N * kTile));
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile, count = std::min(kTile, V - first);
      rows.product_part(weight, bias, row_begin, row_begin + N, first, first + count, logits.data(), kTile);
      for (int64_t n = 0; n < N; ++n) {
        TopK<S> best = mine.row(n, k);
        kernels<S>().top_k({logits.data() + n * kTile, first, count, k, banned + n * banned_stride, banned_count,
                            maxima.data() + tile * N + n, sums.data() + tile * N + n},
                           best);
        mine.counts[static_cast<size_t>(n)] = best.count;
      }
    }
  });

  std::vector<int64_t> taken;
  for (int64_t n = 0; n < N; ++n) {
    T* out = log_probs + n * k;
    int64_t* ids = token_ids + n * k;
    // log Σ e^{logit} in the order of the tiles.
    T most = -std::numeric_limits<T>::infinity();
    for (int64_t tile = 0; tile < tiles; ++tile)
      if (sums.data()[tile * N + n] != 0) most = std::max(most, maxima.data()[tile * N + n]);
    double total = 0;
    for (int64_t tile = 0; tile < tiles; ++tile)
      if (const T sum = sums.data()[tile * N + n]; sum != 0)
        total += static_cast<double>(sum) * std::exp(static_cast<double>(maxima.data()[tile * N + n]) - most);
    // A NaN among the logits, or none above -inf: there is no distribution to choose from.
    if (!(total > 0)) {
      for (int64_t i = 0; i < k; ++i) out[i] = std::numeric_limits<T>::quiet_NaN(), ids[i] = i;
      continue;
    }
    const double log_total = std::log(total);
    // Merge the pieces' lists, each best first.
    int64_t count = 0;
    for (Candidates<S>& piece : pieces) {
      if (piece.empty()) continue;
      const TopK<S> list = piece.row(n, k);
      for (int64_t i = 0; i < list.count; ++i) {
        if (count == k && !before(list.values[i], list.ids[i], out[k - 1], ids[k - 1])) break;
        int64_t at = count < k ? count++ : k - 1;
        for (; at > 0 && before(list.values[i], list.ids[i], out[at - 1], ids[at - 1]); --at)
          out[at] = out[at - 1], ids[at] = ids[at - 1];
        out[at] = list.values[i], ids[at] = list.ids[i];
      }
    }
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>((static_cast<double>(out[i]) - most) - log_total);
    // Too few to choose from: the lowest ids that are not listed, with probability zero.
    taken.assign(ids, ids + count);
    std::sort(taken.begin(), taken.end());
    for (int64_t id = 0; count < k; ++id)
      if (!std::binary_search(taken.begin(), taken.end(), id))
        out[count] = -std::numeric_limits<T>::infinity(), ids[count++] = id;
  }
}

std::tuple<Tensor, Tensor> vocabulary_topk(const Tensor& readout_, const Tensor& weight_, const OptionalTensor& bias_,
                                           const OptionalTensor& banned_ids_, int64_t k) {
  Signature call("weight", weight_, kStorageTypes);
  const Tensor readout = call.check("readout", readout_, {"N", "L"}, Role::either);
  const Tensor weight = call.check("weight", weight_, {"V", "L"}, Role::storage);
  const OptionalTensor bias = call.check("bias", bias_, {"V"}, Role::storage);
  const OptionalTensor banned = call.check("banned_ids", banned_ids_, {"N", "R"}, Role::index);
  const int64_t N = call['N'], V = call['V'];
  if (k < 1 || k > V)
    throw std::runtime_error("`k` must lie in 1..V = 1.." + std::to_string(V) + "; got " + std::to_string(k));
  const Tensor log_probs = empty({N, k}, call.accumulate());
  const Tensor token_ids = empty({N, k}, ScalarType::Long);
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    const PackedRows<S> rows(rows_of(readout, call), N, call['L']);
    const int64_t banned_count = banned.has_value() ? call['R'] : 0;
    const int64_t banned_stride = banned.has_value() ? banned->stride(0) : 0;
    for (int64_t n = 0; n < N; n += rows.block())
      vocabulary_topk_rows<S>(rows, n, std::min(rows.block(), N - n), matrix<S>(weight), pointer<S>(bias), V,
                              pointer<int64_t>(banned) + n * banned_stride, banned_stride, banned_count, k,
                              pointer<Accumulate<S>>(log_probs) + n * k, pointer<int64_t>(token_ids) + n * k);
  });
  return {log_probs, token_ids};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) { m.impl("vocabulary_topk.cpu", TORCH_BOX(&rnnsearch::vocabulary_topk)); }
