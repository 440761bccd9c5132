#include "attend.h"

namespace rnnsearch {

Memory Memory::check(Signature& call, const Tensor& keys, const Tensor& memory, const Tensor& score_weight,
                     const OptionalTensor& key_padding_mask, const OptionalTensor& memory_index) {
  Memory checked{call.check("keys", keys, {"B", "S", "A"}, Role::storage),
                 call.check("memory", memory, {"B", "S", "M"}, Role::storage),
                 call.check("score_weight", score_weight, {"A"}, Role::storage),
                 call.check("key_padding_mask", key_padding_mask, {"B", "S"}, Role::mask),
                 call.check("memory_index", memory_index, {"N"}, Role::index)};
  const int64_t B = call['B'];
  if (checked.index.has_value()) {
    call.check_range("memory_index", *checked.index, 0, B,
                     "0..B-1 = 0.." + std::to_string(B - 1) + " (a sentence of `memory`)");
  } else if (call['N'] != B) {
    throw std::runtime_error("`query` or `state` has N = " + std::to_string(call['N']) + " rows and `memory` B = " +
                             std::to_string(B) + " sentences; rows that share a sentence need `memory_index` (N,)");
  }
  return checked;
}

Grouping::Grouping(const Memory& memory, int64_t N, int64_t B, int64_t S) : rows_(static_cast<size_t>(N)) {
  const int64_t* index = pointer<int64_t>(memory.index);
  const auto sentence_of = [&](int64_t row) { return index == nullptr ? row : index[row]; };
  // Rows in the order of their sentences: a counting sort.
  std::vector<int64_t> begin(static_cast<size_t>(B) + 1, 0);
  for (int64_t n = 0; n < N; ++n) ++begin[static_cast<size_t>(sentence_of(n)) + 1];
  for (int64_t b = 0; b < B; ++b) begin[static_cast<size_t>(b) + 1] += begin[static_cast<size_t>(b)];
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t n = 0; n < N; ++n) rows_[static_cast<size_t>(next[static_cast<size_t>(sentence_of(n))]++)] = n;

  const bool* ignore = pointer<bool>(memory.ignore);
  const int64_t stride = ignore == nullptr ? 0 : memory.ignore->stride(0);
  // Without a mask every sentence has the one list of all positions.
  positions_.resize(static_cast<size_t>(ignore == nullptr ? S : B * S));
  if (ignore == nullptr)
    for (int64_t s = 0; s < S; ++s) positions_[static_cast<size_t>(s)] = static_cast<int32_t>(s);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t first = begin[static_cast<size_t>(b)], count = begin[static_cast<size_t>(b) + 1] - first;
    if (count == 0) continue;
    int32_t* list = positions_.data() + (ignore == nullptr ? 0 : b * S);
    int64_t real = ignore == nullptr ? S : 0;
    if (ignore != nullptr)
      for (int64_t s = 0; s < S; ++s)
        if (!ignore[b * stride + s]) list[real++] = static_cast<int32_t>(s);
    sentences_.push_back({b, rows_.data() + first, count, list, real});
  }
}
}  // namespace rnnsearch
