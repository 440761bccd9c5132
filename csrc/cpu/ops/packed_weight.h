// A weight packed once for the products of many steps.
#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "launch.h"

namespace rnnsearch {

// Biases side by side in both types, zeros where one is absent.
template <class S>
class JoinedBias {
 public:
  using T = Accumulate<S>;
  explicit JoinedBias(std::initializer_list<std::pair<const S*, int64_t>> parts) {
    for (const auto& [bias, count] : parts)
      for (int64_t i = 0; i < count; ++i) {
        stored_.push_back(bias == nullptr ? S{} : bias[i]);
        values_.push_back(widened(stored_.back()));
      }
  }
  const T* data() const { return values_.data(); }
  const S* stored() const { return stored_.data(); }

 private:
  static T widened(T value) { return value; }
  static float widened(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
  std::vector<T> values_;
  std::vector<S> stored_;
};

// W (outputs, inputs), put together from parts; y = x Wᵀ + bias. A row's result does not depend on the rows beside it.
// Packed into panels of the accumulate type, or of pairs of the storage type where the processor multiplies those; for
// a matrix unit kept in the storage type, row after row.
template <class S>
class PackedWeight {
 public:
  using T = Accumulate<S>;

  PackedWeight(int64_t outputs, int64_t inputs)
      : kernels_(kernels<S>().scan),
        matrix_unit_(kernels<S>().products.matrix_unit),
        outputs_(outputs),
        inputs_(inputs),
        slots_(kernels_.packed.pair_rows == nullptr ? inputs : blocks(inputs, 2)),
        panels_(blocks(outputs, kernels_.panel_width)),
        packed_(matrix_unit_ ? 0 : panels_ * kernels_.panel_width * slots_),
        stored_(matrix_unit_ ? outputs * inputs : 0) {
    if (matrix_unit_) return;
    // The last panel's outputs beyond the last are computed and thrown away; half a slot beyond the last input counts
    // 0.
    const int64_t panel = kernels_.panel_width * slots_;
    if (kernels_.packed.pair_rows != nullptr && inputs % 2 != 0)
      std::fill_n(packed_.data(), panels_ * panel, T(0));
    else if (panels_ * kernels_.panel_width > outputs)
      std::fill_n(packed_.data() + (panels_ - 1) * panel, panel, T(0));
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

  int64_t outputs() const { return outputs_; }

  void product(const T* x, int64_t x_stride, int64_t rows, const JoinedBias<S>* bias, T* y, int64_t y_stride) const {
    if (matrix_unit_)
      PackedRows<S>({x, x_stride, false}, rows, inputs_)
          .product({stored_.data(), inputs_}, bias == nullptr ? nullptr : bias->stored(), outputs_, y, y_stride);
    else
      run({x, x_stride, rows, slots_, outputs_, packed_.data(), bias == nullptr ? nullptr : bias->data(), false, y,
           y_stride, 0, 0});
  }
  // y += x Wᵀ
  void add_product(const T* x, int64_t x_stride, int64_t rows, T* y, int64_t y_stride) const {
    if (!matrix_unit_)
      return run({x, x_stride, rows, slots_, outputs_, packed_.data(), nullptr, true, y, y_stride, 0, 0});
    const Scratch<T> sum(rows * outputs_);
    product(x, x_stride, rows, nullptr, sum.data(), outputs_);
    parallel(rows, outputs_, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t o = 0; o < outputs_; ++o) y[row * y_stride + o] += sum.data()[row * outputs_ + o];
    });
  }

 private:
  void pack(const Matrix<S>& weight, bool transposed, int64_t begin, int64_t end, int64_t input_begin,
            int64_t input_end) {
    if (matrix_unit_) return store(weight, transposed, begin, end, input_begin, input_end);
    const int64_t width = kernels_.panel_width, first = begin / width;
    parallel(blocks(end, width) - first, 2 * width * (input_end - input_begin), [&](int64_t from, int64_t to) {
      const int64_t low = std::max(begin, (first + from) * width), high = std::min(end, (first + to) * width);
      const S* data = weight.data + (low - begin) * (transposed ? 1 : weight.stride);
      kernels_.packed.pack_weight(
          {data, weight.stride, transposed, inputs_, low, high, input_begin, input_end, packed_.data()});
    });
  }

  void store(const Matrix<S>& weight, bool transposed, int64_t begin, int64_t end, int64_t input_begin,
             int64_t input_end) {
    constexpr int64_t tile = 32;  // a line of either side
    parallel(blocks(end - begin, tile), 4 * tile * (input_end - input_begin), [&](int64_t from, int64_t to) {
      const int64_t low = begin + from * tile, high = std::min(end, begin + to * tile);
      if (!transposed) {
        for (int64_t o = low; o < high; ++o)
          std::copy_n(weight.data + (o - begin) * weight.stride, input_end - input_begin,
                      stored_.data() + o * inputs_ + input_begin);
        return;
      }
      for (int64_t first = low; first < high; first += tile)
        for (int64_t i = input_begin; i < input_end; ++i)
          for (int64_t o = first; o < std::min(first + tile, high); ++o)
            stored_.data()[o * inputs_ + i] = weight.data[(i - input_begin) * weight.stride + o - begin];
    });
  }

  void run(PanelArgs<T> all) const {
    const Scratch<T> pairs(kernels_.packed.pair_rows == nullptr ? 0 : all.rows * slots_);
    if (kernels_.packed.pair_rows != nullptr) {
      parallel(all.rows, inputs_, [&](int64_t begin, int64_t end) {
        kernels_.packed.pair_rows({all.x, all.x_stride, begin, end, inputs_, pairs.data()});
      });
      all.x = pairs.data();
      all.x_stride = slots_;
    }
    // Rows that pass one panel together stay in the second-level cache.
    constexpr int64_t most = 192;
    const int64_t x_step = all.x_stride, y_step = all.y_stride, rows = all.rows;
    for (int64_t begin = 0; begin < rows; begin += most) {
      all.rows = std::min(most, rows - begin);
      parallel(panels_, 2 * kernels_.panel_width * inputs_ * all.rows / 16, [&](int64_t from, int64_t to) {
        PanelArgs<T> args = all;
        args.panel_begin = from;
        args.panel_end = to;
        kernels_.packed.panels(args);
      });
      all.x += most * x_step;
      all.y += most * y_step;
    }
  }

  const ScanKernels<S>& kernels_;
  bool matrix_unit_;
  int64_t outputs_, inputs_, slots_, panels_;
  Scratch<T> packed_;
  Scratch<S> stored_;
};
}  // namespace rnnsearch
