// What the memory_gates form of a scan has outside its loop (see scan_forms.h): memory_gates before it, and the
// contexts after it, for all steps at once.
#pragma once

#include "packed_weight.h"
#include "scan_attention.h"
#include "scan_forms.h"

namespace rnnsearch {

// memory Cᵀ (B, S, outputs of C) in the storage type.
template <class S>
Tensor memory_gates(const Tensor& memory, const PackedWeight<S>& context_weight) {
  using T = Accumulate<S>;
  const int64_t B = memory.size(0), positions = memory.size(1), M = memory.size(2), outputs = context_weight.outputs();
  const Tensor rows = to_type<T>(torch::stable::contiguous(memory));
  const Tensor exact = empty({B, positions, outputs}, scalar_type<T>);
  context_weight.product(pointer<T>(rows), M, B * positions, nullptr, pointer<T>(exact), outputs);
  return to_type<S>(exact);
}

// contexts (B, T, M) = attn_weights memory, of the steps that each sentence runs.
template <class S>
void contexts_of_all_steps(const Schedule& rows, const ScanAttention<S>& attention, const Tensor& memory,
                           const Tensor& attn_weights, const Tensor& contexts) {
  using T = Accumulate<S>;
  const KernelTable<S>& k = kernels<S>();
  const Sentences<S> values = sentences<S>(memory);
  const int64_t M = values.features, steps = rows.steps(), source = attention.source();
  constexpr int64_t strip = 256;
  const int64_t strips = blocks(M, strip);
  std::vector<int64_t> every_step(static_cast<size_t>(steps));
  std::iota(every_step.begin(), every_step.end(), int64_t{0});
  parallel(rows.batch() * strips, strip * source * steps, [&](int64_t begin, int64_t end) {
    std::vector<T> weights(static_cast<size_t>(steps * source)), sums(static_cast<size_t>(steps * strip));
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t b = piece / strips, low = piece % strips * strip, width = std::min(strip, M - low);
      const int64_t count = attention.count(b), length = rows.length(b);
      const int32_t* positions = attention.positions(b);
      for (int64_t t = 0; t < length; ++t)
        for (int64_t p = 0; p < count; ++p)
          weights[static_cast<size_t>(t * count + p)] =
              pointer<T>(attn_weights)[rows.place(b, t) * source + positions[p]];
      k.weighted_sum({every_step.data(), length, weights.data(), count, positions, count,
                      values.data + b * values.sentence_stride + low, values.position_stride, 0, width, sums.data(),
                      strip});
      for (int64_t t = 0; t < length; ++t)
        k.to_storage(sums.data() + t * strip, pointer<S>(contexts) + rows.place(b, t) * M + low, width);
    }
  });
}
}  // namespace rnnsearch
