// What the bindings of the ops that attend share.
#pragma once

#include "../launch_attention.h"
#include "call.h"

namespace rnnsearch::cuda {

// Kernels are compiled in additive_attention.cu alone.
#define RNNSEARCH_ATTENTION(STORAGE)                                                                       \
  extern template const char* launch_attention_scores(const ScoreArguments<STORAGE>&, Stream);             \
  extern template const char* launch_attention_output(const AttendArguments<STORAGE>&, Stream);            \
  extern template const char* launch_attention_grad_weights(const GradWeightsArguments<STORAGE>&, Stream); \
  extern template const char* launch_attention_grad_query(const GradQueryArguments<STORAGE>&, Stream);     \
  extern template const char* launch_attention_grad_keys(const GradKeysArguments<STORAGE>&, Stream);       \
  extern template const char* launch_zero_rows(const ZeroRowsArguments<STORAGE>&, Stream);
RNNSEARCH_ATTENTION(float)
RNNSEARCH_ATTENTION(bfloat16)
RNNSEARCH_ATTENTION(float16)
#undef RNNSEARCH_ATTENTION

// What is attended to, checked.
struct Memory {
  Tensor keys, values, score_weight;
  OptionalTensor key_padding_mask, memory_index;

  Memory(Call& call, const Tensor& keys_, const Tensor& memory, const Tensor& score_weight_,
         const OptionalTensor& key_padding_mask_, const OptionalTensor& memory_index_)
      : keys(call.take("keys", keys_, {"B", "S", "A"}, Role::storage)),
        values(call.take("memory", memory, {"B", "S", "M"}, Role::storage)),
        score_weight(call.take("score_weight", score_weight_, {"A"}, Role::storage)),
        key_padding_mask(call.take("key_padding_mask", key_padding_mask_, {"B", "S"}, Role::mask)),
        memory_index(call.take("memory_index", memory_index_, {"N"}, Role::index)) {}

  // `rows` rows attend, each to its sentence.
  AttentionShape shape(int64_t rows, const Call& call) const {
    if (!memory_index.has_value() && rows != call['B']) {
      call.launched("rows that share a sentence need `memory_index` (N,)");
    }
    return {static_cast<int>(rows), static_cast<int>(call['S']), pointer<bool>(key_padding_mask),
            pointer<int64_t>(memory_index)};
  }
};

// `tensor` (B, S, …), or (B, T, …), with zeros where it is padded, or past its lengths: 0 · NaN is NaN.
inline Tensor without_padding(const Call& call, const Tensor& tensor, const OptionalTensor& key_padding_mask,
                              const OptionalTensor& lengths) {
  if (!key_padding_mask.has_value() && !lengths.has_value()) return tensor;
  const int64_t rows = tensor.size(0) * tensor.size(1);
  const Tensor zeroed = call.empty({tensor.size(0), tensor.size(1), tensor.size(2)}, tensor.scalar_type());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    call.launched(launch_zero_rows<S>(
        {pointer<S>(tensor), pointer<S>(zeroed), static_cast<int>(rows), static_cast<int>(tensor.size(1)),
         static_cast<int>(tensor.size(2)), pointer<bool>(key_padding_mask), pointer<int64_t>(lengths)},
        call.stream()));
  });
  return zeroed;
}

}  // namespace rnnsearch::cuda
