// Which rows run at which step of a scan. Rows are taken in the order of falling length, so that those still running
// are always the first ones; the steps of all rows together, time by time, are numbered from 0 to `total`.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "tensors.h"

namespace rnnsearch {

class Schedule {
 public:
  // lengths: B of them, or null where every row runs all the steps. reverse: from each row's own end to its start.
  Schedule(int64_t B, int64_t steps, const int64_t* lengths, bool reverse = false)
      : steps_(steps), reverse_(reverse), order_(static_cast<size_t>(B)), lengths_(static_cast<size_t>(B), steps) {
    std::iota(order_.begin(), order_.end(), int64_t{0});
    if (lengths != nullptr) {
      std::copy(lengths, lengths + B, lengths_.begin());
      std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    }
    offsets_.push_back(0);
    int64_t running = B;
    for (int64_t t = 0; t < steps; ++t) {
      while (running > 0 && length(order_[static_cast<size_t>(running - 1)]) <= t) --running;
      offsets_.push_back(offsets_.back() + running);
    }
  }

  int64_t batch() const { return static_cast<int64_t>(order_.size()); }
  int64_t steps() const { return steps_; }
  int64_t total() const { return offsets_.back(); }
  // Rows that run at step t, and the number of the first one's step.
  int64_t running(int64_t t) const { return offset(t + 1) - offset(t); }
  int64_t offset(int64_t t) const { return offsets_[static_cast<size_t>(t)]; }
  // The n-th row's place in the batch.
  int64_t row(int64_t n) const { return order_[static_cast<size_t>(n)]; }
  int64_t length(int64_t b) const { return lengths_[static_cast<size_t>(b)]; }
  // Where in (B, T) step t of row b stands.
  int64_t place(int64_t b, int64_t t) const { return b * steps_ + (reverse_ ? length(b) - 1 - t : t); }

  // Zeros from each row's length on in a result (B, T, features).
  template <class V>
  void zero_rest(V* values, int64_t features) const {
    for (int64_t b = 0; b < batch(); ++b)
      std::fill(values + (b * steps_ + length(b)) * features, values + (b + 1) * steps_ * features, V{});
  }

 private:
  int64_t steps_;
  bool reverse_;
  std::vector<int64_t> order_, lengths_, offsets_;
};
}  // namespace rnnsearch
