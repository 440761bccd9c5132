// A weight packed once for the products of many steps.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "launch.h"

namespace rnnsearch {

// W (outputs, inputs), put together from parts; y = x Wᵀ + bias. A row's result does not depend on the rows beside it.
template <class S>
class PackedWeight {
 public:
  using T = Accumulate<S>;

  PackedWeight(int64_t outputs, int64_t inputs)
      : kernels_(kernels<S>().scan),
        outputs_(outputs),
        inputs_(inputs),
        panels_(blocks(outputs, kernels_.panel_width)),
        packed_(panels_ * kernels_.panel_width * inputs) {
    // The last panel's outputs beyond the last are computed and thrown away.
    const int64_t tail = panels_ * kernels_.panel_width - outputs;
    if (tail > 0)
      std::fill_n(packed_.data() + (panels_ - 1) * kernels_.panel_width * inputs, kernels_.panel_width * inputs, T(0));
  }

  // Outputs from `output` on and all inputs: rows of `weight`.
  PackedWeight& outputs(const Matrix<S>& weight, int64_t output, int64_t count) {
    pack(weight, false, output, output + count, 0, inputs_);
    return *this;
  }
  // Inputs from `input` on and all outputs: rows of `weight`, which is thereby transposed.
  PackedWeight& inputs(const Matrix<S>& weight, int64_t input, int64_t count) {
    pack(weight, true, 0, outputs_, input, input + count);
    return *this;
  }

  void product(const T* x, int64_t x_stride, int64_t rows, const T* bias, T* y, int64_t y_stride) const {
    run({x, x_stride, rows, inputs_, outputs_, packed_.data(), bias, false, y, y_stride, 0, 0});
  }
  // y += x Wᵀ
  void add_product(const T* x, int64_t x_stride, int64_t rows, T* y, int64_t y_stride) const {
    run({x, x_stride, rows, inputs_, outputs_, packed_.data(), nullptr, true, y, y_stride, 0, 0});
  }

 private:
  void pack(const Matrix<S>& weight, bool transposed, int64_t begin, int64_t end, int64_t input_begin,
            int64_t input_end) {
    const int64_t width = kernels_.panel_width, first = begin / width;
    parallel(blocks(end, width) - first, 2 * width * (input_end - input_begin), [&](int64_t from, int64_t to) {
      const int64_t low = std::max(begin, (first + from) * width), high = std::min(end, (first + to) * width);
      const S* data = weight.data + (low - begin) * (transposed ? 1 : weight.stride);
      kernels_.pack_weight(
          {data, weight.stride, transposed, inputs_, low, high, input_begin, input_end, packed_.data()});
    });
  }

  void run(PanelArgs<T> all) const {
    // Rows that pass one panel together stay in the second-level cache.
    constexpr int64_t most = 192;
    const int64_t x_step = all.x_stride, y_step = all.y_stride, rows = all.rows;
    for (int64_t begin = 0; begin < rows; begin += most) {
      all.rows = std::min(most, rows - begin);
      parallel(panels_, 2 * kernels_.panel_width * inputs_ * all.rows / 16, [&](int64_t from, int64_t to) {
        PanelArgs<T> args = all;
        args.panel_begin = from;
        args.panel_end = to;
        kernels_.panels(args);
      });
      all.x += most * x_step;
      all.y += most * y_step;
    }
  }

  const ScanKernels<S>& kernels_;
  int64_t outputs_, inputs_, panels_;
  Scratch<T> packed_;
};

// Biases side by side in the accumulate type, zeros where one is absent.
template <class S>
class JoinedBias {
 public:
  using T = Accumulate<S>;
  explicit JoinedBias(std::initializer_list<std::pair<const S*, int64_t>> parts) {
    for (const auto& [bias, count] : parts)
      for (int64_t i = 0; i < count; ++i) values_.push_back(bias == nullptr ? T(0) : widened(bias[i]));
  }
  const T* data() const { return values_.data(); }

 private:
  static T widened(T value) { return value; }
  static float widened(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
  std::vector<T> values_;
};
}  // namespace rnnsearch
