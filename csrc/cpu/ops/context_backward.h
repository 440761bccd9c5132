// The way back from the gates' inputs to the context, its weight C and the memory, in either form (see scan_forms.h).
#pragma once

#include <memory>

#include "gru_backward.h"
#include "memory_gates.h"

namespace rnnsearch {

// What of a decoder_scan and of its results' gradients the context has to do with; all contiguous but the memory.
struct ContextCall {
  Memory memory;
  Tensor weight, contexts, attn_weights, grad_contexts, grad_attn_weights;

  // attn_weightsᵀ rows (B, T, features): a sum over the steps for every position.
  template <class S>
  Tensor over_steps(const Tensor& rows) const {
    const Tensor sums = empty({rows.size(0), attn_weights.size(2), rows.size(2)}, scalar_type<S>);
    library_bmm(torch::stable::transpose(to_type<S>(attn_weights), 1, 2), to_type<S>(rows), sums);
    return sums;
  }
};

template <class S>
class ContextBackward {
 public:
  using T = Accumulate<S>;
  virtual ~ContextBackward() = default;

  // What the loop sums: the gradient of attn_weights at a position is grad_sums · its values, plus grad_attn_weights.
  virtual const Memory& summed() const = 0;
  virtual const T* grad_attn_weights() const = 0;
  // Of step t's rows, when the gradients of their gates are there.
  virtual const T* const* grad_sums(int64_t t, const GruBackward<S>& gru) = 0;
  // After the loop, in this order. grad_input_gates (B, T, 3H).
  virtual void store_grad_weight(const Tensor& grad_input_gates, const Tensor& grad_weight) = 0;
  virtual Tensor grad_memory() const = 0;
};

// dcontext_t = grad_context_t + Cᵀ dg_t in the loop; dC = Σ_t dg_tᵀ context_t, dmemory = αᵀ dcontext.
template <class S>
class ThroughContexts : public ContextBackward<S> {
 public:
  using T = Accumulate<S>;

  ThroughContexts(const Schedule& rows, const ContextCall& call, int64_t H)
      : rows_(rows),
        call_(call),
        M_(call.memory.values.size(2)),
        to_context_(std::in_place, M_, 3 * H),
        products_(rows.batch() * M_),
        grad_contexts_(empty({rows.batch(), rows.steps(), M_}, scalar_type<T>)),
        grad_sums_(static_cast<size_t>(rows.batch())) {
    const Matrix<S> C = matrix<S>(call.weight);
    to_context_->inputs({C.data + 2 * H * C.stride, C.stride}, 0, H).inputs(C, H, 2 * H);
    rows.zero_rest(pointer<T>(grad_contexts_), M_);
  }

  const Memory& summed() const override { return call_.memory; }
  const T* grad_attn_weights() const override { return pointer<T>(call_.grad_attn_weights); }

  const T* const* grad_sums(int64_t t, const GruBackward<S>& gru) override {
    const int64_t N = rows_.running(t);
    to_context_->product(gru.grads(rows_.offset(t)), gru.stride(), N, nullptr, products_.data(), M_);
    parallel(N, 4 * M_, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t place = rows_.place(rows_.row(n), t);
        T* grad = pointer<T>(grad_contexts_) + place * M_;
        kernels<S>().scan.add_rows({products_.data() + n * M_, pointer<S>(call_.grad_contexts) + place * M_, M_, grad});
        grad_sums_[static_cast<size_t>(n)] = grad;
      }
    });
    return grad_sums_.data();
  }

  void store_grad_weight(const Tensor& grad_input_gates, const Tensor& grad_weight) override {
    to_context_.reset();
    // Both are zero past the lengths.
    library_mm(torch::stable::transpose(rows_of_steps(to_type<S>(grad_input_gates)), 0, 1),
               rows_of_steps(call_.contexts), grad_weight);
  }
  Tensor grad_memory() const override { return call_.template over_steps<S>(grad_contexts_); }

 private:
  static Tensor rows_of_steps(const Tensor& tensor) { return torch::stable::flatten(tensor, 0, 1); }

  const Schedule& rows_;
  ContextCall call_;
  int64_t M_;
  std::optional<PackedWeight<S>> to_context_;
  Scratch<T> products_;
  Tensor grad_contexts_;
  std::vector<const T*> grad_sums_;
};

// dmemory_gates = αᵀ dg after the loop; dC = dmemory_gatesᵀ memory, dmemory = αᵀ grad_context + dmemory_gates C.
template <class S>
class ThroughMemoryGates : public ContextBackward<S> {
 public:
  using T = Accumulate<S>;

  ThroughMemoryGates(const Schedule& rows, const ContextCall& call, int64_t H)
      : rows_(rows), call_(call), summed_(call.memory), grad_sums_(static_cast<size_t>(rows.batch())) {
    // In the order of the gradients that they meet: n, r, z.
    PackedWeight<S> weight(3 * H, call.memory.values.size(2));
    const Matrix<S> C = matrix<S>(call.weight);
    weight.outputs({C.data + 2 * H * C.stride, C.stride}, 0, H).outputs(C, H, 2 * H);
    summed_.values = memory_gates(call.memory.values, weight);

    // What comes from outside, through the contexts too.
    const Tensor memory = torch::stable::transpose(to_type<T>(call.memory.values), 1, 2);
    const Tensor through_contexts = empty({rows.batch(), rows.steps(), memory.size(2)}, scalar_type<T>);
    library_bmm(to_type<T>(call.grad_contexts), memory, through_contexts);
    grad_attn_weights_ = sum<T>(through_contexts, call.grad_attn_weights);
  }

  const Memory& summed() const override { return summed_; }
  const T* grad_attn_weights() const override { return pointer<T>(grad_attn_weights_); }

  const T* const* grad_sums(int64_t t, const GruBackward<S>& gru) override {
    for (int64_t n = 0; n < rows_.running(t); ++n) grad_sums_[static_cast<size_t>(n)] = gru.grads(rows_.offset(t) + n);
    return grad_sums_.data();
  }

  void store_grad_weight(const Tensor& grad_input_gates, const Tensor& grad_weight) override {
    grad_memory_gates_ = torch::stable::flatten(call_.template over_steps<S>(grad_input_gates), 0, 1);
    library_mm(torch::stable::transpose(*grad_memory_gates_, 0, 1), torch::stable::flatten(real_memory(), 0, 1),
               grad_weight);
  }

  Tensor grad_memory() const override {
    const Tensor through_contexts = call_.template over_steps<S>(real_grad_contexts());
    const Tensor through_gates =
        empty({through_contexts.size(0), through_contexts.size(1), through_contexts.size(2)}, scalar_type<S>);
    library_mm(*grad_memory_gates_, call_.weight, torch::stable::flatten(through_gates, 0, 1));
    return sum<S>(to_type<T>(through_contexts), through_gates);
  }

 private:
  // left + right in the type of right; left is written over.
  template <class R>
  static Tensor sum(const Tensor& left, const Tensor& right) {
    const int64_t rows = left.size(0), each = left.size(1) * left.size(2);
    parallel(rows, each, [&](int64_t begin, int64_t end) {
      T* from = pointer<T>(left) + begin * each;
      kernels<R>().scan.add_rows({from, pointer<R>(right) + begin * each, (end - begin) * each, from});
    });
    return to_type<R>(left);
  }

  // Zeros where nothing that stands there may count, be it a NaN.
  Tensor real_memory() const {
    const Memory& memory = call_.memory;
    if (!memory.ignore.has_value()) return torch::stable::contiguous(memory.values);
    const Tensor real = torch::stable::clone(torch::stable::contiguous(memory.values));
    const int64_t positions = real.size(1), M = real.size(2);
    for (int64_t b = 0; b < real.size(0); ++b)
      for (int64_t j = 0; j < positions; ++j)
        if (pointer<bool>(memory.ignore)[b * memory.ignore->stride(0) + j])
          std::fill_n(pointer<S>(real) + (b * positions + j) * M, M, S{});
    return real;
  }
  Tensor real_grad_contexts() const {
    if (rows_.total() == rows_.batch() * rows_.steps()) return call_.grad_contexts;
    const Tensor real = torch::stable::clone(call_.grad_contexts);
    rows_.zero_rest(pointer<S>(real), real.size(2));
    return real;
  }

  const Schedule& rows_;
  ContextCall call_;
  Memory summed_;
  Tensor grad_attn_weights_;
  OptionalTensor grad_memory_gates_;
  std::vector<const T*> grad_sums_;
};
}  // namespace rnnsearch
