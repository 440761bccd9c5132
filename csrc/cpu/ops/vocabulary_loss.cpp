// vocabulary_loss: Σ_n of the cross-entropy of softmax(weight readout_n + bias) with a smoothed target, and its
// gradients. The logits of so many rows at a time become the loss's derivative in place, and two products go on from
// there. No result depends on how many threads there are, but for what the library's products make of it.
#include <algorithm>
#include <cmath>
#include <vector>

#include "library.h"
#include "packed_weight.h"

namespace rnnsearch {
namespace {

// Logits of a piece, 128 MB in float32. Every piece reads and writes the whole weight gradient.
constexpr int64_t kPiece = 1 << 25;
// Tokens that so many rows of a piece meet before the next ones in grad_readout's product, while both and the rows'
// sums stay in the second-level cache; and those after which grad_weight's takes its turn: 13 MB of a piece of 1,118
// rows, and strips enough for 16 threads.
constexpr int64_t kBlock = 512, kRows = 192, kSpan = 3072;
// Tokens that go through grad_weight's product together: they stay in the second-level cache with all rows of a piece;
// beside few rows it is their gradients that take the time, and few of those are written in longer runs.
int64_t strip_of(int64_t rows) { return rows < 256 ? 48 : 192; }

template <class S>
class VocabularyLoss {
 public:
  using T = Accumulate<S>;

  VocabularyLoss(const Tensor& weight, const OptionalTensor& bias, double label_smoothing, const Tensor& grad_weight,
                 const Tensor& grad_bias)
      : weight_tensor_(weight),
        weight_(matrix<S>(weight)),
        bias_(pointer<S>(bias)),
        V_(weight.size(0)),
        L_(weight.size(1)),
        label_smoothing_(label_smoothing),
        grad_weight_(pointer<T>(grad_weight)),
        grad_bias_(pointer<T>(grad_bias)) {
    std::fill_n(grad_bias_, V_, T(0));
  }

  // Rows x (count, L) with their targets, one at least; their losses' sum.
  double add(const Tensor& x, const std::vector<int64_t>& target, const Tensor& grad_x) {
    const int64_t count = x.size(0), pieces = blocks(count, std::max<int64_t>(1, kPiece / V_));
    const Scratch<T> logits(blocks(count, pieces) * V_);
    double loss = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t begin = piece * count / pieces, rows = (piece + 1) * count / pieces - begin;
      const S* from = pointer<S>(x) + begin * L_;
      PackedRows<S>({from, L_, true}, rows, L_).product(weight_, bias_, V_, logits.data(), V_);
      loss += differentiate(logits.data(), target.data() + begin, rows);
      if (has_units()) {
        multiply_with_units(logits.data(), rows_part(x, begin, rows), rows_part(grad_x, begin, rows), piece > 0);
      } else {
        multiply(logits.data(), from, rows, pointer<S>(grad_x) + begin * L_, piece > 0);
      }
    }
    return loss;
  }

 private:
  double differentiate(T* logits, const int64_t* target, int64_t rows) const {
    std::vector<LossRow<S>> results(static_cast<size_t>(rows));
    parallel(rows, 16 * V_, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        kernels<S>().loss_row(
            {logits + n * V_, V_, target[n], static_cast<T>(label_smoothing_), &results[static_cast<size_t>(n)]});
    });
    double loss = 0;
    for (const LossRow<S>& row : results) {
      const double log_total = row.maximum + std::log(static_cast<double>(row.sum));
      loss += (1 - label_smoothing_) * (log_total - row.target_logit);
      if (label_smoothing_ != 0) loss += label_smoothing_ * (log_total - static_cast<double>(row.logit_sum) / V_);
    }
    return loss;
  }

  // grad_x = difference weight, grad_weight (+)= differenceᵀ x, grad_bias += Σ_n difference_n: a span of the vocabulary
  // goes through both products while the cache holds it.
  void multiply(const T* difference, const S* x, int64_t rows, S* grad_x, bool on_top) const {
    const Unrounded<S> result(grad_x, rows * L_);
    PackedWeight<S> inputs(L_, rows);
    inputs.inputs({x, L_}, 0, rows);
    for (int64_t v = 0; v < V_; v += kSpan) {
      const int64_t end = std::min(v + kSpan, V_);
      multiply_into_readout(difference, v, end, rows, result.data());
      multiply_into_weight(difference, v, end, inputs, rows, on_top);
    }
    result.store();
  }

  // The share of tokens [begin, end).
  void multiply_into_readout(const T* difference, int64_t begin, int64_t end, int64_t rows, T* grad_x) const {
    std::vector<PackedWeight<S>> packed;
    for (int64_t v = begin; v < end; v += kBlock) {
      const int64_t inputs = std::min(kBlock, end - v);
      packed.emplace_back(L_, inputs).inputs({weight_.data + v * weight_.stride, weight_.stride}, 0, inputs);
    }
    parallel(rows, L_ * (end - begin), [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; n += kRows)
        for (int64_t v = begin; v < end; v += kBlock) {
          const PackedWeight<S>& block = packed[static_cast<size_t>((v - begin) / kBlock)];
          const T* from = difference + n * V_ + v;
          const int64_t count = std::min(kRows, last - n);
          if (v == 0)
            block.product(from, V_, count, nullptr, grad_x + n * L_, L_);
          else
            block.add_product(from, V_, count, grad_x + n * L_, L_);
        }
    });
  }

  // Tokens [begin, end), strip after strip.
  void multiply_into_weight(const T* difference, int64_t begin, int64_t end, const PackedWeight<S>& inputs,
                            int64_t rows, bool on_top) const {
    const int64_t strip = strip_of(rows);
    parallel(blocks(end - begin, strip), strip * L_ * rows, [&](int64_t from, int64_t to) {
      const Scratch<T> turned(strip * rows), sums(strip);
      for (int64_t v = begin + from * strip; v < std::min(begin + to * strip, end); v += strip) {
        const int64_t outputs = std::min(strip, end - v);
        kernels<S>().transpose_and_sum({difference + v, V_, rows, outputs, turned.data(), rows, sums.data()});
        for (int64_t i = 0; i < outputs; ++i) grad_bias_[v + i] += sums.data()[i];
        if (on_top)
          inputs.add_product(turned.data(), rows, outputs, grad_weight_ + v * L_, L_);
        else
          inputs.product(turned.data(), rows, outputs, nullptr, grad_weight_ + v * L_, L_);
      }
    });
  }

  // Whether the processor multiplies the storage type itself. Then the difference is rounded to it, and the products
  // are the library's, which has kernels of its own for every such unit.
  static bool has_units() { return kernels<S>().products.matrix_unit || kernels<S>().scan.packed.pair_rows != nullptr; }

  void multiply_with_units(const T* difference, const Tensor& x, const Tensor& grad_x, bool on_top) const {
    const int64_t rows = x.size(0);
    const Tensor rounded = empty({rows, V_}, scalar_type<S>), part = empty({V_, L_}, scalar_type<S>);
    parallel(rows, V_, [&](int64_t begin, int64_t end) {
      kernels<S>().to_storage(difference + begin * V_, pointer<S>(rounded) + begin * V_, (end - begin) * V_);
    });
    library_mm(rounded, weight_tensor_, grad_x);
    library_mm(torch::stable::transpose(rounded, 0, 1), x, part);
    const Tensor wide = to_type<T>(part);
    const Scratch<T> sums(V_);
    parallel(V_, rows + L_, [&](int64_t begin, int64_t end) {
      kernels<S>().scan.column_sums({difference, V_, rows, begin, end, sums.data()});
      for (int64_t v = begin; v < end; ++v) grad_bias_[v] += sums.data()[v];
      const T* from = pointer<T>(wide);
      for (int64_t i = begin * L_; i < end * L_; ++i) grad_weight_[i] = on_top ? grad_weight_[i] + from[i] : from[i];
    });
  }

  Tensor weight_tensor_;
  Matrix<S> weight_;
  const S* bias_;
  int64_t V_, L_;
  double label_smoothing_;
  T* grad_weight_;
  T* grad_bias_;
};
}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> vocabulary_loss(const Tensor& readout_, const Tensor& weight_,
                                                           const OptionalTensor& bias_, const Tensor& target_,
                                                           double label_smoothing) {
  Signature call("weight", weight_, kStorageTypes);
  const Tensor readout = call.check("readout", readout_, {"N", "L"}, Role::storage);
  const Tensor weight = call.check("weight", weight_, {"V", "L"}, Role::storage);
  const OptionalTensor bias = call.check("bias", bias_, {"V"}, Role::storage);
  const Tensor target = call.check("target", target_, {"N"}, Role::index);
  const int64_t N = call['N'], V = call['V'], L = call['L'];
  call.check_range("target", target, -1, V, "-1..V-1 = -1.." + std::to_string(V - 1));
  if (!(label_smoothing >= 0 && label_smoothing <= 1))
    throw std::runtime_error("`label_smoothing` must lie in 0..1; got " + std::to_string(label_smoothing));
  const Tensor loss = empty({}, call.accumulate()), grad_readout = empty({N, L}, call.storage());
  const Tensor grad_weight = empty({V, L}, call.accumulate()), grad_bias = empty({V}, call.accumulate());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    // The rows that have a target, side by side.
    std::vector<int64_t> rows, tokens;
    for (int64_t n = 0; n < N; ++n)
      if (const int64_t token = pointer<int64_t>(target)[n]; token >= 0) rows.push_back(n), tokens.push_back(token);
    const int64_t count = static_cast<int64_t>(rows.size());
    const Tensor x = empty({count, L}, call.storage()), grad_x = empty({count, L}, call.storage());
    const auto copy_rows = [&](auto&& f) {
      for (int64_t i = 0; i < count; ++i) f(i * L, rows[static_cast<size_t>(i)]);
    };
    copy_rows([&](int64_t at, int64_t row) {
      std::copy_n(pointer<S>(readout) + row * readout.stride(0), L, pointer<S>(x) + at);
    });
    VocabularyLoss<S> sum(weight, bias, label_smoothing, grad_weight, grad_bias);
    *pointer<T>(loss) = count == 0 ? T(0) : static_cast<T>(sum.add(x, tokens, grad_x));
    if (count == 0) std::fill_n(pointer<T>(grad_weight), V * L, T(0));
    std::fill_n(pointer<S>(grad_readout), N * L, S{});
    copy_rows(
        [&](int64_t at, int64_t row) { std::copy_n(pointer<S>(grad_x) + at, L, pointer<S>(grad_readout) + row * L); });
  });
  return {loss, grad_readout, grad_weight, grad_bias};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) { m.impl("vocabulary_loss.cpu", TORCH_BOX(&rnnsearch::vocabulary_loss)); }
