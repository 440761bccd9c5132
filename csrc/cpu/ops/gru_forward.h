// The GRU of a scan, step by step: its weights packed once, its rows those of the schedule.
#pragma once

#include "packed_weight.h"
#include "schedule.h"

namespace rnnsearch {

template <class S>
class GruForward {
 public:
  using T = Accumulate<S>;

  // state_mask (B, H) or nothing. extra: that many more features that are read off the old state, extra_weight
  // (extra, H) and its bias or null.
  GruForward(const Schedule& rows, const Matrix<S>& hidden_weight, const S* hidden_bias, int64_t H, bool reset_after,
             const Tensor& state, const OptionalTensor& state_mask, const Matrix<S>& extra_weight, const S* extra_bias,
             int64_t extra)
      : kernels_(kernels<S>()),
        rows_(rows),
        H_(H),
        extra_(extra),
        direct_(reset_after ? 3 * H : 2 * H),
        reset_after_(reset_after),
        from_state_(extra + direct_, H),
        from_reset_(reset_after ? 0 : H, H),
        bias_({{extra_bias, extra}, {hidden_bias, direct_}}),
        reset_bias_({{hidden_bias == nullptr ? nullptr : hidden_bias + 2 * H, H}}),
        state_mask_(state_mask),
        carried_(rows.batch() * H),
        masked_(state_mask.has_value() ? rows.batch() * H : 0),
        products_(rows.batch() * (extra + direct_)),
        reset_states_(reset_after ? 0 : rows.batch() * H),
        candidates_(reset_after ? 0 : rows.batch() * H) {
    if (extra > 0) from_state_.outputs(extra_weight, 0, extra);
    from_state_.outputs(hidden_weight, extra, direct_);
    if (!reset_after)
      from_reset_.outputs({hidden_weight.data + 2 * H * hidden_weight.stride, hidden_weight.stride}, 0, H);
    for (int64_t n = 0; n < rows.batch(); ++n) carry(n, pointer<T>(state) + rows.row(n) * state.stride(0));
  }

  // Everything that reads the old state of step t's rows.
  void products(int64_t t) const {
    from_state_.product(entering(0), H_, rows_.running(t), &bias_, products_.data(), extra_ + direct_);
  }
  // The extra features of row n, after `products`.
  const T* extra(int64_t n) const { return products_.data() + n * (extra_ + direct_); }

  // The gates of step t and the new state. input_gates (B, T, 3H); context_gates: 3H of every row, or null.
  void advance(int64_t t, const Tensor& input_gates, const T* context_gates, T* states, T* gates) const {
    const int64_t N = rows_.running(t), H = H_;
    const bool is_storage = input_gates.scalar_type() == scalar_type<S>;
    const int64_t item = is_storage ? sizeof(S) : sizeof(T);
    const auto for_rows = [&](void (*kernel)(const GateArgs<S>&), const T* old_states, bool last) {
      parallel(N, 40 * H, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t b = rows_.row(n), place = rows_.place(b, t);
          const int64_t offset = b * input_gates.stride(0) + (place - b * rows_.steps()) * input_gates.stride(1);
          const T* u = extra(n) + extra_;
          const T* candidate = reset_after_ ? u + 2 * H : candidates_.data() + n * H;
          const T* context = context_gates == nullptr ? nullptr : context_gates + n * 3 * H;
          kernel({static_cast<const char*>(input_gates.data_ptr()) + offset * item, is_storage, context, u, candidate,
                  old_states + n * H, reset_states_.data() + (reset_after_ ? 0 : n * H), states + place * H,
                  gates + place * 4 * H, H, reset_after_});
          if (last) carry(n, states + place * H);
        }
      });
    };
    if (!reset_after_) {
      for_rows(kernels_.reset_row, entering(0), false);
      from_reset_.product(reset_states_.data(), H, N, &reset_bias_, candidates_.data(), H);
    }
    for_rows(kernels_.gru_row, carried_.data(), true);
  }

 private:
  // Row n's state as it goes on, and as the next products read it.
  void carry(int64_t n, const T* state) const {
    std::copy_n(state, H_, carried_.data() + n * H_);
    if (state_mask_.has_value())
      mask_row(pointer<T>(state_mask_) + rows_.row(n) * state_mask_->stride(0), state, H_, masked_.data() + n * H_);
  }
  const T* entering(int64_t n) const { return (state_mask_.has_value() ? masked_ : carried_).data() + n * H_; }

  const KernelTable<S>& kernels_;
  const Schedule& rows_;
  int64_t H_, extra_, direct_;
  bool reset_after_;
  PackedWeight<S> from_state_, from_reset_;
  JoinedBias<S> bias_, reset_bias_;
  OptionalTensor state_mask_;
  Scratch<T> carried_, masked_, products_, reset_states_, candidates_;
};
}  // namespace rnnsearch
