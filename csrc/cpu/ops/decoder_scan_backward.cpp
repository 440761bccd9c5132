// The derivative of decoder_scan. In the loop, from the last step to the first, only what the recurrence needs: the way
// through the gates, the gradients of the context, of the scores and of the query. Everything else is for all steps at
// once after it. tanh is computed again; nothing of size B x T x S x A is stored, and nothing is added to by two
// threads.
#include "context_backward.h"

namespace rnnsearch {

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Grads decoder_scan_backward(const Tensor& grad_states_, const Tensor& grad_contexts_, const Tensor& grad_attn_weights_,
                            const Tensor& input_gates, const Tensor& state_, const OptionalTensor& state_mask_,
                            const Tensor& keys, const Tensor& memory_, const Tensor& score_weight,
                            const Tensor& query_weight_, const OptionalTensor& query_bias_,
                            const Tensor& context_weight_, const Tensor& hidden_weight_,
                            const OptionalTensor& key_padding_mask, const OptionalTensor& input_lengths_,
                            const Tensor& states_, const Tensor& contexts_, const Tensor& attn_weights_,
                            const Tensor& gates_, bool reset_after) {
  using torch::stable::contiguous;
  Signature call("keys", keys, kStorageTypes);
  const Tensor grad_states = contiguous(call.check("grad_states", grad_states_, {"B", "T", "H"}, Role::accumulate));
  const Tensor grad_contexts = contiguous(call.check("grad_contexts", grad_contexts_, {"B", "T", "M"}, Role::storage));
  const Tensor grad_attn_weights =
      contiguous(call.check("grad_attn_weights", grad_attn_weights_, {"B", "T", "S"}, Role::accumulate));
  call.check("input_gates", input_gates, {"B", "T", "3H"}, Role::either);
  const Tensor state = call.check("state", state_, {"B", "H"}, Role::accumulate);
  const OptionalTensor state_mask = call.check("state_mask", state_mask_, {"B", "H"}, Role::accumulate);
  const Memory memory = check_memory(call, keys, memory_, score_weight, key_padding_mask);
  const Tensor query_weight = call.check("query_weight", query_weight_, {"A", "H"}, Role::storage);
  const OptionalTensor query_bias = call.check("query_bias", query_bias_, {"A"}, Role::storage);
  const Tensor context_weight = call.check("context_weight", context_weight_, {"3H", "M"}, Role::storage);
  const Tensor hidden_weight = call.check("hidden_weight", hidden_weight_, {"3H", "H"}, Role::storage);
  const OptionalTensor input_lengths = call.check("input_lengths", input_lengths_, {"B"}, Role::index);
  const Tensor states = contiguous(call.check("states", states_, {"B", "T", "H"}, Role::accumulate));
  const Tensor contexts = contiguous(call.check("contexts", contexts_, {"B", "T", "M"}, Role::storage));
  const Tensor attn_weights = contiguous(call.check("attn_weights", attn_weights_, {"B", "T", "S"}, Role::accumulate));
  const Tensor gates = contiguous(call.check("gates", gates_, {"B", "T", "4H"}, Role::accumulate));
  const int64_t B = call['B'], steps = call['T'], S_ = call['S'], H = call['H'], A = call['A'], M = call['M'];
  if (input_lengths.has_value())
    call.check_range("input_lengths", *input_lengths, 0, steps + 1, "0..T = 0.." + std::to_string(steps));
  const ScalarType storage = call.storage(), accumulate = call.accumulate();
  const Tensor grad_input_gates = empty({B, steps, 3 * H}, input_gates.scalar_type());
  const Tensor grad_state = empty({B, H}, accumulate);
  // Made when what the loop needs is gone: with a long source they are most of the memory.
  std::optional<Tensor> grad_keys, grad_memory;
  const Tensor grad_score_weight = empty({A}, storage);
  const Tensor grad_query_weight = empty({A, H}, storage), grad_query_bias = empty({A}, storage);
  const Tensor grad_context_weight = empty({3 * H, M}, storage);
  const Tensor grad_hidden_weight = empty({3 * H, H}, storage), grad_hidden_bias = empty({3 * H}, storage);
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    using T = Accumulate<S>;
    const KernelTable<S>& k = kernels<S>();
    const Schedule rows(B, steps, pointer<int64_t>(input_lengths));
    const ContextCall given{memory, context_weight, contexts, attn_weights, grad_contexts, grad_attn_weights};
    std::unique_ptr<ContextBackward<S>> context;
    if (memory_gates_pay<S>(kBackwardCosts, S_, steps, M))
      context = std::make_unique<ThroughMemoryGates<S>>(rows, given, H);
    else
      context = std::make_unique<ThroughContexts<S>>(rows, given, H);
    std::optional<ScanAttention<S>> prepared(std::in_place, context->summed(), B, S_);
    const ScanAttention<S>& attention = *prepared;
    const int64_t width = attention.padded(), total = rows.total();
    GruBackward<S> gru(rows, matrix<S>(hidden_weight), H, reset_after, state_mask, matrix<S>(query_weight), A, width);
    gru.gather_states(state, pointer<T>(states));

    // All queries again, in the order of the schedule.
    const Scratch<T> queries(total * width);
    {
      PackedWeight<S> to_query(A, H);
      to_query.outputs(matrix<S>(query_weight), 0, A);
      const JoinedBias<S> bias({{pointer<S>(query_bias), A}});
      to_query.product(gru.entering(0), H, total, &bias, queries.data(), width);
    }
    const int64_t tiles = attention.tiles();
    // Those of a sentence by tiles of positions.
    const Scratch<T> grad_scores(B * tiles * kPositionTile * steps), row_scores(B * S_);
    const QueryRows<S> query_rows(B, A);
    std::vector<uint8_t> all_small(static_cast<size_t>(B), 1);
    const auto scores_of = [&](int64_t b) { return grad_scores.data() + b * tiles * kPositionTile * steps; };

    for (int64_t t = steps; t-- > 0;) {
      const int64_t N = rows.running(t), first = rows.offset(t);
      if (N == 0) continue;
      gru.gates(t, [&](int64_t n) {
        const int64_t place = rows.place(rows.row(n), t);
        return std::pair(pointer<T>(grad_states) + place * H, pointer<T>(gates) + place * 4 * H);
      });
      const T* const* grad_sums = context->grad_sums(t, gru);
      query_rows.prepare(N, [&](int64_t n) { return queries.data() + (first + n) * width; });
      for (int64_t n = 0; n < N; ++n) all_small[static_cast<size_t>(rows.row(n))] &= query_rows(n).is_small;
      attention.attend_backward(
          rows, N, query_rows, grad_sums,
          [&](int64_t n, T* scores) {
            const int64_t b = rows.row(n), count = attention.count(b), place = rows.place(b, t);
            const int32_t* positions = attention.positions(b);
            const T* weights = pointer<T>(attn_weights) + place * S_;
            const T* outside = context->grad_attn_weights() + place * S_;
            double mean = 0;
            for (int64_t p = 0; p < count; ++p) {
              scores[p] += outside[positions[p]];
              mean += static_cast<double>(weights[positions[p]]) * scores[p];
            }
            T* kept = scores_of(b);
            const int64_t length = rows.length(b);
            for (int64_t p = 0; p < count; ++p) {
              scores[p] = weights[positions[p]] * (scores[p] - static_cast<T>(mean));
              kept[(p / kPositionTile * length + t) * kPositionTile + p % kPositionTile] = scores[p];
            }
          },
          row_scores.data(), [&](int64_t n) { return gru.extra(first + n); });
      gru.state(t);
    }

    gru.store_grad_state(pointer<T>(grad_state));
    if (grad_input_gates.scalar_type() == storage)
      gru.store_grad_input(pointer<S>(grad_input_gates));
    else
      gru.store_grad_input(pointer<T>(grad_input_gates));
    gru.store_grad_biases(pointer<S>(grad_hidden_bias), pointer<S>(grad_query_bias));

    gru.store_grad_weights({grad_hidden_weight, grad_query_weight});
    context->store_grad_weight(grad_input_gates, grad_context_weight);

    // Keys and score weight: every sentence, some features at a time.
    grad_keys = empty({B, S_, A}, storage);
    std::vector<int64_t> rank(static_cast<size_t>(B));
    for (int64_t n = 0; n < B; ++n) rank[static_cast<size_t>(rows.row(n))] = n;
    const int64_t vector = k.padded(1), features = 4 * vector, pieces = blocks(width, features);
    const Scratch<T> shares(B * A);
    const bool* ignore = pointer<bool>(memory.ignore);
    for (int64_t b = 0; ignore != nullptr && b < B; ++b)
      for (int64_t j = 0; j < S_; ++j)
        if (ignore[b * memory.ignore->stride(0) + j]) std::fill_n(pointer<S>(*grad_keys) + (b * S_ + j) * A, A, S{});
    parallel(B * pieces, features * S_ * steps * 8, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(static_cast<size_t>(steps * vector));
      std::vector<int64_t> steps_of_b(static_cast<size_t>(steps));
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t b = piece / pieces, low = piece % pieces * features;
        for (int64_t t = 0; t < rows.length(b); ++t)
          steps_of_b[static_cast<size_t>(t)] = rows.offset(t) + rank[static_cast<size_t>(b)];
        k.scan.grad_keys({attention.keys(b), queries.data(), steps_of_b.data(), width, rows.length(b),
                          all_small[static_cast<size_t>(b)] != 0, attention.score_weight(), scores_of(b), low,
                          std::min(low + features, width), scratch.data(), pointer<S>(*grad_keys) + b * S_ * A,
                          shares.data() + b * A});
      }
    });
    // In the order of the sentences, whoever computed them.
    for (int64_t b = 1; b < B; ++b)
      for (int64_t a = 0; a < A; ++a) shares.data()[a] += shares.data()[b * A + a];
    k.to_storage(shares.data(), pointer<S>(grad_score_weight), A);

    prepared.reset();
    grad_memory = context->grad_memory();
  });
  return {grad_input_gates,  grad_state,      *grad_keys,          *grad_memory,       grad_score_weight,
          grad_query_weight, grad_query_bias, grad_context_weight, grad_hidden_weight, grad_hidden_bias};
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) {
  m.impl("decoder_scan_backward.cpu", TORCH_BOX(&rnnsearch::decoder_scan_backward));
}
