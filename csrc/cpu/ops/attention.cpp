// additive_attention: score_j = score_weight · tanh(query + keys_j), attn_weights = softmax(score),
// context = Σ_j attn_weights_j memory_j; and its backward pass.
#include "attend.h"

namespace rnnsearch {

std::tuple<Tensor, Tensor> additive_attention(const Tensor& query_, const Tensor& keys, const Tensor& memory_,
                                              const Tensor& score_weight, const OptionalTensor& key_padding_mask,
                                              const OptionalTensor& memory_index) {
  Signature call("keys", keys, kStorageTypes);
  const Tensor query = call.check("query", query_, {"N", "A"}, Role::either);
  const Memory memory = Memory::check(call, keys, memory_, score_weight, key_padding_mask, memory_index);
  const int64_t N = call['N'], M = call['M'];
  const Tensor context = empty({N, M}, call.storage());
  const Tensor attn_weights = empty({N, call['S']}, call.accumulate());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const Attention<S> attention(memory, N, call['B'], call['S']);
    const Unrounded<S> sums(pointer<S>(context), N * M);
    attention.attend(rows_of(query, call), pointer<T>(attn_weights), {{memory.values, sums.data()}});
    sums.store();
  });
  return {context, attn_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> additive_attention_backward(
    const Tensor& grad_context_, const Tensor& grad_attn_weights_, const Tensor& query_, const Tensor& keys_,
    const Tensor& memory_, const Tensor& score_weight, const OptionalTensor& key_padding_mask,
    const Tensor& attn_weights_) {
  Signature call("keys", keys_, kStorageTypes);
  const Tensor grad_context = call.check("grad_context", grad_context_, {"B", "M"}, Role::storage);
  const Tensor grad_attn_weights = call.check("grad_attn_weights", grad_attn_weights_, {"B", "S"}, Role::accumulate);
  const Tensor query = call.check("query", query_, {"B", "A"}, Role::either);
  const Tensor keys = call.check("keys", keys_, {"B", "S", "A"}, Role::storage);
  const Tensor memory = call.check("memory", memory_, {"B", "S", "M"}, Role::storage);
  const Tensor v = call.check("score_weight", score_weight, {"A"}, Role::storage);
  const OptionalTensor ignore = call.check("key_padding_mask", key_padding_mask, {"B", "S"}, Role::mask);
  const Tensor attn_weights = call.check("attn_weights", attn_weights_, {"B", "S"}, Role::accumulate);
  const int64_t B = call['B'], S_ = call['S'], A = call['A'], M = call['M'];
  const Tensor grad_query = empty({B, A}, query.scalar_type());
  const Tensor grad_keys = empty({B, S_, A}, call.storage());
  const Tensor grad_memory = empty({B, S_, M}, call.storage());
  const Tensor grad_score_weight = empty({A}, call.storage());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const KernelTable<S>& k = kernels<S>();
    const int64_t width = k.padded(A);
    const Scratch<T> padded(B * width), exponential(B * width), weight(width), grad_scores(B * S_);
    const Scratch<T> grad_queries(B * A), shares(B * A);
    const Scratch<uint8_t> is_small(B);
    k.prepare_score_weight(pointer<S>(v), A, weight.data());
    const Rows queries = rows_of(query, call);
    parallel(B, S_ * (20 * A + 4 * M), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        k.prepare_query(row<S>(queries, b), queries.is_storage, A, padded.data() + b * width,
                        exponential.data() + b * width, is_small.data() + b);
        k.attention_backward({pointer<S>(grad_context) + b * grad_context.stride(0),
                              pointer<T>(grad_attn_weights) + b * grad_attn_weights.stride(0),
                              pointer<T>(attn_weights) + b * attn_weights.stride(0), padded.data() + b * width,
                              weight.data(), pointer<S>(keys) + b * keys.stride(0), keys.stride(1),
                              pointer<S>(memory) + b * memory.stride(0), memory.stride(1),
                              ignore.has_value() ? pointer<bool>(*ignore) + b * ignore->stride(0) : nullptr, S_, A, M,
                              grad_scores.data() + b * S_, grad_queries.data() + b * A, shares.data() + b * A,
                              pointer<S>(grad_keys) + b * S_ * A, pointer<S>(grad_memory) + b * S_ * M});
      }
    });
    if (queries.is_storage)
      k.to_storage(grad_queries.data(), pointer<S>(grad_query), B * A);
    else
      std::copy(grad_queries.data(), grad_queries.data() + B * A, pointer<T>(grad_query));
    // In the order of the sentences, whoever computed them.
    for (int64_t b = 1; b < B; ++b)
      for (int64_t a = 0; a < A; ++a) shares.data()[a] += shares.data()[b * A + a];
    k.to_storage(shares.data(), pointer<S>(grad_score_weight), A);
  });
  return {grad_query, grad_keys, grad_memory, grad_score_weight};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) {
  m.impl("additive_attention.cpu", TORCH_BOX(&rnnsearch::additive_attention));
  m.impl("additive_attention_backward.cpu", TORCH_BOX(&rnnsearch::additive_attention_backward));
}
