// Attention's kernels on the host, both directions, against the equations in double. Buffers start as NaN and are
// exactly as large as promised; what is padded is NaN. Says the largest error over what is allowed, and ends with 1
// where one is more than that.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "launch_attention.h"

using namespace rnnsearch::cuda;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
using Values = std::vector<double>;

template <typename T>
std::vector<T> as(const Values& values) {
  std::vector<T> out;
  for (double value : values) out.push_back(from_float<T>(static_cast<float>(value)));
  return out;
}

template <typename T>
std::vector<T> poisoned(size_t count) {
  return as<T>(Values(count, kNaN));
}

struct Draw {
  std::mt19937 generator{7};
  // Values that every storage type holds exactly.
  Values operator()(size_t count) {
    std::normal_distribution<double> normal;
    Values values(count);
    for (double& value : values) value = std::round(normal(generator) * 64) / 64;
    return values;
  }
};

struct Verdict {
  double worst = 0;
  int wrong = 0;
  template <typename T>
  void compare(const char* name, const std::vector<T>& got, const Values& wanted, double allowed) {
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double error = std::abs(to_float(got[i]) - wanted[i]) / (allowed * (1 + std::abs(wanted[i])));
      worst = std::fmax(worst, error);
      if (error <= 1) continue;
      ++wrong;
      std::printf("%s[%zu] is %g, not %g\n", name, i, to_float(got[i]), wanted[i]);
    }
  }
};

// N rows over B sentences, or N = T queries a sentence for the keys' gradient.
template <typename Storage>
void check(int B, int N, int S, int A, int M, bool query_is_storage, double eps, Verdict& verdict) {
  Draw draw;
  const bool indexed = N != B;
  const Stream stream{3};
  Values keys = draw(size_t(B) * S * A), memory = draw(size_t(B) * S * M);
  const Values query = draw(size_t(N) * A), weight = draw(A), outside = draw(size_t(N) * S),
               grad_context = draw(size_t(N) * M);
  std::vector<char> padding(size_t(B) * S);
  for (size_t i = 0; i < padding.size(); ++i) {
    padding[i] = i / S == 1 || i % 3 == 1;  // sentence 1 has nothing real
    if (!padding[i]) continue;
    for (int k = 0; k < A; ++k) keys[i * A + k] = kNaN;
    for (int k = 0; k < M; ++k) memory[i * M + k] = kNaN;
  }
  std::vector<int64_t> index(N);
  for (int n = 0; n < N; ++n) index[n] = indexed ? (n * 2) % B : n;

  Values alpha(size_t(N) * S), context(size_t(N) * M), de(size_t(N) * S), dquery(size_t(N) * A), dkeys(keys.size()),
      dmemory(memory.size()), dweight(A);
  for (int n = 0; n < N; ++n) {
    const size_t base = index[n] * S;
    double total = 0, mean = 0;
    for (int j = 0; j < S; ++j) {
      if (padding[base + j]) continue;
      double score = 0;
      for (int k = 0; k < A; ++k) score += weight[k] * std::tanh(query[n * A + k] + keys[(base + j) * A + k]);
      total += alpha[n * S + j] = std::exp(score);
    }
    Values dalpha(S);
    for (int j = 0; j < S; ++j) {
      if (padding[base + j]) continue;
      alpha[n * S + j] /= total;
      dalpha[j] = outside[n * S + j];
      for (int k = 0; k < M; ++k) {
        context[n * M + k] += alpha[n * S + j] * memory[(base + j) * M + k];
        dalpha[j] += grad_context[n * M + k] * memory[(base + j) * M + k];
        dmemory[(base + j) * M + k] = alpha[n * S + j] * grad_context[n * M + k];
      }
      mean += alpha[n * S + j] * dalpha[j];
    }
    for (int j = 0; j < S; ++j) {
      if (padding[base + j]) continue;
      de[n * S + j] = alpha[n * S + j] * (dalpha[j] - mean);
      for (int k = 0; k < A; ++k) {
        const double x = std::tanh(query[n * A + k] + keys[(base + j) * A + k]);
        dquery[n * A + k] += de[n * S + j] * weight[k] * (1 - x * x);
        dkeys[(base + j) * A + k] += de[n * S + j] * weight[k] * (1 - x * x);
        dweight[k] += de[n * S + j] * x;
      }
    }
  }

  const AttentionShape shape{N, S, reinterpret_cast<const bool*>(padding.data()), indexed ? index.data() : nullptr};
  const auto keys_ = as<Storage>(keys), memory_ = as<Storage>(memory), weight_ = as<Storage>(weight),
             query_ = as<Storage>(query), grad_context_ = as<Storage>(grad_context);
  const auto query_float = as<float>(query), outside_ = as<float>(outside), alpha_ = as<float>(alpha);
  const void* const query_at = query_is_storage ? static_cast<const void*>(query_.data()) : query_float.data();
  auto scores = poisoned<float>(size_t(N) * S), got_alpha = scores, got_de = scores, got_dalpha = scores;
  auto got_context = poisoned<Storage>(context.size());
  launch_attention_scores<Storage>(
      {shape, A, query_at, query_is_storage, A, keys_.data(), weight_.data(), scores.data()}, stream);
  launch_attention_output<Storage>(
      {shape, M, scores.data(), memory_.data(), got_alpha.data(), got_context.data(), true}, stream);
  verdict.compare("attn_weights", got_alpha, alpha, 1e-5);
  verdict.compare("context", got_context, context, eps + 1e-5);
  if (indexed) return;

  auto got_dmemory = poisoned<Storage>(memory.size()), got_dkeys = poisoned<Storage>(keys.size());
  auto got_dquery = poisoned<Storage>(query.size());
  auto got_dquery_float = poisoned<float>(query.size());
  const int chunks = GradKeysArguments<Storage>::position_chunks(S);
  auto parts = poisoned<float>(size_t(B) * chunks * A);
  launch_attention_grad_weights<Storage>({shape, M, outside_.data(), grad_context_.data(), memory_.data(),
                                          alpha_.data(), got_dalpha.data(), got_dmemory.data()},
                                         stream);
  void* const dquery_at = query_is_storage ? static_cast<void*>(got_dquery.data()) : got_dquery_float.data();
  launch_attention_grad_query<Storage>({shape, A, got_dalpha.data(), alpha_.data(), query_at, query_is_storage,
                                        keys_.data(), weight_.data(), got_de.data(), dquery_at},
                                       stream);
  launch_attention_grad_keys<Storage>({shape, 1, A, got_de.data(), query_at, query_is_storage, keys_.data(),
                                       weight_.data(), got_dkeys.data(), parts.data()},
                                      stream);
  Values got_dweight(A);
  for (size_t i = 0; i < parts.size(); ++i) got_dweight[i % A] += parts[i];
  verdict.compare("grad_scores", got_de, de, 2e-5);
  if (query_is_storage) {
    verdict.compare("grad_query", got_dquery, dquery, eps + 2e-5);
  } else {
    verdict.compare("grad_query", got_dquery_float, dquery, 2e-5);
  }
  verdict.compare("grad_keys", got_dkeys, dkeys, eps + 2e-5);
  verdict.compare("grad_memory", got_dmemory, dmemory, eps + 2e-5);
  verdict.compare("grad_score_weight", as<float>(got_dweight), dweight, 2e-5);

  // Two steps of the same query and gradient: twice the gradient of the keys.
  Values twice_query, twice_de, twice_dkeys = dkeys;
  for (int b = 0; b < B; ++b) {
    for (int t = 0; t < 2; ++t) {
      twice_query.insert(twice_query.end(), query.begin() + b * A, query.begin() + (b + 1) * A);
      twice_de.insert(twice_de.end(), de.begin() + b * S, de.begin() + (b + 1) * S);
    }
  }
  for (double& value : twice_dkeys) value *= 2;
  const auto twice_query_ = as<float>(twice_query), twice_de_ = as<float>(twice_de);
  launch_attention_grad_keys<Storage>({shape, 2, A, twice_de_.data(), twice_query_.data(), false, keys_.data(),
                                       weight_.data(), got_dkeys.data(), parts.data()},
                                      stream);
  verdict.compare("grad_keys of two steps", got_dkeys, twice_dkeys, eps + 2e-5);
}

}  // namespace

int main() {
  Verdict verdict;
  check<bfloat16>(3, 3, 19, 5, 6, true, 1.0 / 256, verdict);
  check<bfloat16>(3, 5, 4, 8, 12, false, 1.0 / 256, verdict);
#ifndef FOR_SANITIZER
  check<bfloat16>(2, 2, 35, 132, 136, false, 1.0 / 256, verdict);
  check<float>(3, 3, 5, 7, 130, true, 1e-6, verdict);
  check<float16>(2, 2, 9, 12, 5, true, 1.0 / 2048, verdict);
#endif
  std::printf("%.2f of what is allowed\n", verdict.worst);
  return verdict.wrong == 0 ? 0 : 1;
}
