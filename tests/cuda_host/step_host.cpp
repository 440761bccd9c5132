// linear and step_gates on the host, as a decoder step calls them, against the equations in double. Says the largest
// error over what is allowed, and ends with 1 where one is more than that.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "launch_step.h"

using namespace rnnsearch::cuda;

namespace {

using Values = std::vector<double>;

template <typename T>
std::vector<T> as(const Values& values) {
  std::vector<T> out;
  for (double value : values) out.push_back(from_float<T>(static_cast<float>(value)));
  return out;
}

// Values that every storage type holds exactly.
Values draw(size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Values values(count);
  for (double& value : values) value = std::round(normal(generator) * 16) / 16;
  return values;
}

int wrong = 0;
double worst = 0;

void compare(const char* name, const std::vector<float>& got, const Values& wanted, double allowed) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::abs(got[i] - wanted[i]) / (allowed * (1 + std::abs(wanted[i])));
    worst = std::fmax(worst, error);
    if (error <= 1) continue;
    ++wrong;
    std::printf("%s[%zu] is %g, not %g\n", name, i, got[i], wanted[i]);
  }
}

double sigma(double x) { return 1 / (1 + std::exp(-x)); }

// N rows of H units; A columns of the query stand before those of u.
template <typename Storage>
void check(int N, int H, int A, bool reset_after, double eps) {
  const int through = (reset_after ? 3 : 2) * H, columns = A + through;
  const Stream stream{5};
  const Values state = draw(size_t(N) * H, 1), query = draw(size_t(A) * H, 2), hidden = draw(size_t(3) * H * H, 3),
               query_bias = draw(A, 4), hidden_bias = draw(size_t(3) * H, 5), input = draw(size_t(N) * 3 * H, 6),
               context = draw(size_t(N) * 3 * H, 7);
  Values mask = draw(size_t(N) * H, 8);
  for (double& value : mask) value = value > 0 ? 2 : 0;
  const auto unit = [&](size_t row, const Values& factor, size_t column) {  // Σ_k d_k hidden_k factor_k
    double sum = hidden_bias[column];
    for (int k = 0; k < H; ++k) {
      sum += state[row * H + k] * mask[row * H + k] * factor[row * H + k] * hidden[column * H + k];
    }
    return sum;
  };
  const Values ones(size_t(N) * H, 1);
  Values projected(size_t(N) * columns), gates(size_t(N) * 4 * H), new_state(size_t(N) * H), r(size_t(N) * H);
  for (int n = 0; n < N; ++n) {
    for (int c = 0; c < columns; ++c) {
      double sum = c < A ? query_bias[c] : unit(n, ones, c - A);
      for (int k = 0; c < A && k < H; ++k) sum += state[n * H + k] * mask[n * H + k] * query[c * H + k];
      projected[n * columns + c] = sum;
    }
    const auto g = [&](int at) { return input[size_t(n) * 3 * H + at] + context[size_t(n) * 3 * H + at]; };
    for (int h = 0; h < H; ++h) r[n * H + h] = sigma(g(h) + unit(n, ones, h));
    for (int h = 0; h < H; ++h) {
      const double z = sigma(g(H + h) + unit(n, ones, H + h));
      const double u_n = unit(n, reset_after ? ones : r, size_t(2) * H + h);
      const double candidate = std::tanh(g(2 * H + h) + (reset_after ? r[n * H + h] * u_n : u_n));
      const double values[4] = {r[n * H + h], z, candidate, u_n};
      for (int gate = 0; gate < 4; ++gate) gates[(size_t(n) * 4 + gate) * H + h] = values[gate];
      new_state[n * H + h] = (1 - z) * candidate + z * state[n * H + h];
    }
  }

  const auto state_ = as<float>(state), mask_ = as<float>(mask), context_ = as<float>(context);
  const auto query_ = as<Storage>(query), hidden_ = as<Storage>(hidden), query_bias_ = as<Storage>(query_bias),
             hidden_bias_ = as<Storage>(hidden_bias), input_ = as<Storage>(input);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> got(projected.size(), nan), got_gates(gates.size(), nan), got_state(new_state.size(), nan),
      candidate(new_state.size(), nan);
  LinearArguments<Storage> project{};
  project.N = N;
  project.K = H;
  project.input = state_.data();
  project.mask = mask_.data();
  project.first = {query_.data(), query_bias_.data(), A, H};
  project.second = {hidden_.data(), hidden_bias_.data(), through, H};
  project.output = got.data();
  launch_linear(project, stream);
  compare("projected", got, projected, 1e-5);
  StepGatesArguments<Storage> step{};
  step.N = N;
  step.H = H;
  step.input_gates = input_.data();
  step.input_is_storage = true;
  step.context_gates = context_.data();
  step.hidden_gates = got.data() + A;
  step.hidden_stride = columns;
  step.reset_after = reset_after;
  step.state = state_.data();
  step.new_state = got_state.data();
  step.gates = got_gates.data();
  launch_step_gates(step, stream);
  if (!reset_after) {
    project.reset = got_gates.data();
    project.reset_stride = 4 * H;
    project.first = {hidden_.data() + size_t(2) * H * H, hidden_bias_.data() + 2 * H, H, H};
    project.second = {};
    project.output = candidate.data();
    launch_linear(project, stream);
    step.candidate = candidate.data();
    launch_step_gates(step, stream);
  }
  // r ∘ d is rounded on its way into the last product: half an eps of each of H terms.
  const double allowed = reset_after ? 1e-5 : eps * H + 1e-5;
  compare("gates", got_gates, gates, allowed);
  compare("new_state", got_state, new_state, allowed);
}

}  // namespace

int main() {
  check<bfloat16>(3, 10, 5, true, 1.0 / 256);
  check<bfloat16>(18, 12, 4, false, 1.0 / 256);
#ifndef FOR_SANITIZER
  check<float>(17, 37, 8, false, 1e-6);
  check<float16>(5, 20, 3, false, 1.0 / 2048);
  check<bfloat16>(2, 160, 6, true, 1.0 / 256);
#endif
  std::printf("%.2f of what is allowed\n", worst);
  return wrong == 0 ? 0 : 1;
}
