// The way back through the GRU of a scan, step by step, and the gradients of its weights after the loop.
//
// The gradients of what enters the gates are kept for all steps, row after row in the order of the schedule:
//   [n | r | z | r ∘ n | extra]    reset_after: u_n is multiplied by r before it enters n
//   [n | r | z | extra]            otherwise
// so that both the input's gates (the first three) and everything that reads the old state (all but the first, or
// [r | z | extra]) lie side by side. extra is the gradient of the decoder's query.
#pragma once

#include <optional>

#include "library.h"
#include "packed_weight.h"
#include "schedule.h"

namespace rnnsearch {

template <class S>
class GruBackward {
 public:
  using T = Accumulate<S>;

  // state_mask (B, H) or nothing. extra: that many more features that read the old state through extra_weight (extra,
  // H), padded to `extra_room`.
  GruBackward(const Schedule& rows, const Matrix<S>& hidden_weight, int64_t H, bool reset_after,
              const OptionalTensor& state_mask, const Matrix<S>& extra_weight, int64_t extra, int64_t extra_room)
      : kernels_(kernels<S>()),
        rows_(rows),
        H_(H),
        reset_after_(reset_after),
        extra_(extra),
        through_((reset_after ? 3 * H : 2 * H) + extra),
        stride_((reset_after ? 4 * H : 3 * H) + extra_room),
        state_mask_(state_mask),
        grads_(empty({rows.total(), stride_}, scalar_type<T>)),
        entering_(empty({rows.total(), H}, scalar_type<T>)),
        reset_states_(empty({reset_after ? 0 : rows.total(), H}, scalar_type<T>)),
        grads_data_(pointer<T>(grads_)),
        entering_data_(pointer<T>(entering_)),
        old_rows_(static_cast<size_t>(rows.total())),
        grad_state_(rows.batch() * H),
        grad_entering_(state_mask.has_value() ? rows.batch() * H : 0),
        grad_reset_(rows.batch() * H),
        to_state_(std::in_place, H, through_),
        to_reset_(std::in_place, reset_after ? 0 : H, H) {
    const int64_t direct = through_ - extra;
    to_state_->inputs(hidden_weight, 0, direct);
    if (extra > 0) to_state_->inputs(extra_weight, direct, extra);
    if (!reset_after)
      to_reset_->inputs({hidden_weight.data + 2 * H * hidden_weight.stride, hidden_weight.stride}, 0, H);
    std::fill_n(grad_state_.data(), rows.batch() * H, T(0));
  }

  // The old states in the order of the schedule: `state` and all but each row's last of `states` (B, T, H), which stay
  // where they are; and, side by side, as the products read them.
  void gather_states(const Tensor& state, const T* states) {
    parallel(rows_.steps(), rows_.batch() * H_, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t n = 0; n < rows_.running(t); ++n) {
          const int64_t b = rows_.row(n);
          const T* from = t == 0 ? pointer<T>(state) + b * state.stride(0) : states + rows_.place(b, t - 1) * H_;
          old_rows_[static_cast<size_t>(rows_.offset(t) + n)] = from;
          if (state_mask_.has_value())
            mask_row(mask_of(n), from, H_, entering(rows_.offset(t) + n));
          else
            std::copy_n(from, H_, entering(rows_.offset(t) + n));
        }
    });
  }

  T* grads(int64_t row) const { return grads_data_ + row * stride_; }
  T* extra(int64_t row) const { return grads(row) + (reset_after_ ? 4 : 3) * H_; }
  T* entering(int64_t row) const { return entering_data_ + row * H_; }
  int64_t stride() const { return stride_; }

  // Step t up to the gates: fills n, r, z (and r ∘ n) of its rows.
  template <class F>
  void gates(int64_t t, const F& results_of) const {
    const int64_t N = rows_.running(t), first = rows_.offset(t);
    const auto for_rows = [&](void (*kernel)(const GateBackwardArgs<T>&), bool masked, T* grad_old_states) {
      parallel(N, 40 * H_, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const auto [grad_new_state, gates] = results_of(n);
          const T* old_state = masked ? entering(first + n) : old_rows_[static_cast<size_t>(first + n)];
          kernel({grad_state_.data() + n * H_, grad_new_state, gates, old_state, grad_reset_.data() + n * H_,
                  grads(first + n), grad_old_states + n * H_, pointer<T>(reset_states_) + (first + n) * H_, H_,
                  reset_after_});
        }
      });
    };
    for_rows(kernels_.scan.gates_backward, false, grad_state_.data());
    if (state_mask_.has_value()) std::fill_n(grad_entering_.data(), N * H_, T(0));
    if (!reset_after_) {
      to_reset_->product(grads(first), stride_, N, nullptr, grad_reset_.data(), H_);
      for_rows(kernels_.scan.reset_backward, true, grad_entering());
    }
  }

  // The rest of step t, when extra is there: the gradient of the old state.
  void state(int64_t t) const {
    const int64_t N = rows_.running(t);
    to_state_->add_product(grads(rows_.offset(t)) + H_, stride_, N, grad_entering(), H_);
    for (int64_t n = 0; state_mask_.has_value() && n < N; ++n)
      for (int64_t h = 0; h < H_; ++h) grad_state_.data()[n * H_ + h] += mask_of(n)[h] * grad_entering()[n * H_ + h];
  }

  // After the loop ----

  // The packed weights have served.
  void store_grad_state(T* grad_state) {
    to_state_.reset();
    to_reset_.reset();
    for (int64_t n = 0; n < rows_.batch(); ++n)
      std::copy_n(grad_state_.data() + n * H_, H_, grad_state + rows_.row(n) * H_);
  }

  // grad_input_gates (B, T, 3H) in r, z, n.
  template <class V>
  void store_grad_input(V* out) const {
    rows_.zero_rest(out, 3 * H_);
    parallel(rows_.steps(), rows_.batch() * 3 * H_, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t n = 0; n < rows_.running(t); ++n) {
          const T* from = grads(rows_.offset(t) + n);
          V* to = out + rows_.place(rows_.row(n), t) * 3 * H_;
          store(from + H_, to, 2 * H_);
          store(from, to + 2 * H_, H_);
        }
    });
  }

  // Sums over all rows, in their order: of r, z and the n part of u; and of extra.
  void store_grad_biases(S* grad_hidden_bias, S* grad_extra_bias) const {
    const Scratch<T> sums(stride_);
    parallel(stride_, rows_.total(), [&](int64_t begin, int64_t end) {
      kernels_.scan.column_sums({grads_data_, stride_, rows_.total(), begin, end, sums.data()});
    });
    kernels_.to_storage(sums.data() + H_, grad_hidden_bias, 2 * H_);
    kernels_.to_storage(sums.data() + (reset_after_ ? 3 * H_ : 0), grad_hidden_bias + 2 * H_, H_);
    if (extra_ > 0) kernels_.to_storage(sums.data() + (reset_after_ ? 4 : 3) * H_, grad_extra_bias, extra_);
  }

  // Every weight's gradient is one product over all steps.
  struct WeightGrads {
    Tensor hidden_weight;
    OptionalTensor extra_weight;
  };
  void store_grad_weights(const WeightGrads& out) const {
    const Tensor grads = to_type<S>(grads_), old = to_type<S>(entering_);
    const auto of = [&](int64_t begin, int64_t count) {
      return torch::stable::transpose(columns_part(grads, begin, count), 0, 1);
    };
    const int64_t direct = through_ - extra_;
    library_mm(of(H_, direct), old, rows_part(out.hidden_weight, 0, direct));
    if (!reset_after_) library_mm(of(0, H_), to_type<S>(reset_states_), rows_part(out.hidden_weight, direct, H_));
    if (extra_ > 0) library_mm(of((reset_after_ ? 4 : 3) * H_, extra_), old, *out.extra_weight);
  }

 private:
  const T* mask_of(int64_t n) const { return pointer<T>(state_mask_) + rows_.row(n) * state_mask_->stride(0); }
  // Where the gradient of what the products read is summed: without a mask that is the old state itself.
  T* grad_entering() const { return (state_mask_.has_value() ? grad_entering_ : grad_state_).data(); }

  static void store(const T* from, T* to, int64_t count) { std::copy_n(from, count, to); }
  template <class V>
  void store(const T* from, V* to, int64_t count) const {
    kernels_.to_storage(from, to, count);
  }

  const KernelTable<S>& kernels_;
  const Schedule& rows_;
  int64_t H_;
  bool reset_after_;
  int64_t extra_, through_, stride_;
  OptionalTensor state_mask_;
  Tensor grads_, entering_, reset_states_;
  T* grads_data_;
  T* entering_data_;
  std::vector<const T*> old_rows_;
  Scratch<T> grad_state_, grad_entering_, grad_reset_;
  std::optional<PackedWeight<S>> to_state_, to_reset_;
};
}  // namespace rnnsearch
