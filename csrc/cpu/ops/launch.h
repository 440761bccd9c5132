// Launchers: the kernels of one storage type over threads. The pieces never decide a result, only who computes it.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>

#include "tensors.h"

namespace rnnsearch {

// f(begin, end) over [0, count), split so that a thread gets at least some ten microseconds of work.
template <class F>
void parallel(int64_t count, int64_t operations_each, const F& f) {
  constexpr int64_t worthwhile = 1 << 18;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, worthwhile / std::max<int64_t>(1, operations_each)), f);
}

inline int64_t blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

// out = state_mask ∘ state, a row.
template <class T>
void mask_row(const T* state_mask, const T* state, int64_t count, T* out) {
  for (int64_t h = 0; h < count; ++h) out[h] = state_mask[h] * state[h];
}

// A result in the accumulate type until `store` rounds it to the storage type; in place where the two are one.
template <class S>
class Unrounded {
 public:
  using T = Accumulate<S>;

  Unrounded(S* result, int64_t count) : result_(result), count_(count), own_(in_place ? 0 : count) {}
  T* data() const {
    if constexpr (in_place)
      return result_;
    else
      return own_.data();
  }
  void store() const {
    if constexpr (!in_place) kernels<S>().to_storage(own_.data(), result_, count_);
  }

 private:
  static constexpr bool in_place = std::is_same_v<S, T>;
  S* result_;
  int64_t count_;
  Scratch<T> own_;
};

// Rows made ready for products with one weight after another.
template <class S>
class PackedRows {
 public:
  using T = Accumulate<S>;

  PackedRows(const Rows& rows, int64_t count, int64_t inputs)
      : kernels_(kernels<S>().products), count_(count), inputs_(inputs), packed_(kernels_.packed_bytes(count, inputs)) {
    const int64_t block = kernels_.row_block;
    parallel(blocks(count, block), block * inputs, [&](int64_t begin, int64_t end) {
      kernels_.pack(rows, inputs, begin * block, std::min(end * block, count), packed_.data());
    });
  }

  // y (count, outputs) = rows weightᵀ + bias.
  void product(const Matrix<S>& weight, const S* bias, int64_t outputs, T* y, int64_t y_stride) const {
    constexpr int64_t strip = 64;
    const int64_t block = kernels_.row_block, strips = blocks(outputs, strip);
    const int64_t rows = std::min(count_, block);
    parallel(blocks(count_, block) * strips, strip * inputs_ * (rows + 4), [&](int64_t begin, int64_t end) {
      // Neighbouring strips of the same rows are one walk through the weights.
      while (begin < end) {
        const int64_t row = begin / strips * block, first = begin % strips;
        const int64_t last = std::min(strips, first + end - begin);
        product_part(weight, bias, row, std::min(row + block, count_), first * strip, std::min(last * strip, outputs),
                     y + row * y_stride + first * strip, y_stride);
        begin += last - first;
      }
    });
  }

  // The same for rows [row_begin, row_end) and outputs [begin, end), on this thread; y[0] is the first of both.
  void product_part(const Matrix<S>& weight, const S* bias, int64_t row_begin, int64_t row_end, int64_t begin,
                    int64_t end, T* y, int64_t y_stride) const {
    std::optional<Scratch<unsigned char>> panel;
    if (kernels_.panel_bytes != nullptr)
      if (const int64_t bytes = kernels_.panel_bytes(row_end - row_begin, inputs_); bytes > 0) panel.emplace(bytes);
    kernels_.linear({packed_.data(), inputs_, weight, bias, y, y_stride, row_begin, row_end, begin, end,
                     panel.has_value() ? panel->data() : nullptr});
  }

  int64_t block() const { return kernels_.row_block; }
  int64_t inputs() const { return inputs_; }

 private:
  const ProductKernels<S>& kernels_;
  int64_t count_, inputs_;
  Scratch<unsigned char> packed_;
};
}  // namespace rnnsearch
