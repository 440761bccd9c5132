// What the planner's costs rest on, measured: how long blocks take to meet, how fast they read, what a tanh costs.
//
//   cuda_rates BLOCKS THREADS ROUNDS      a line "name number unit" each; 1 and a reason where a result is wrong
//
// cuda_rates.py compiles and runs it. Kernels know only platform.h, so the host build runs them too; its times mean
// nothing, and it is there to see that the results are right.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "kernels/attention.h"
#include "team.h"

namespace rnnsearch::cuda {

constexpr int kUnder = 8;  // loads that a thread has under way, as in the scans

struct MeetingArguments {
  int rounds, teams, team;
  bool hand_over;      // a value of every block to all of its team, as a step does
  float* cells;        // (teams, 2, team), not read in clusters
  uint32_t* barriers;  // (teams + 1,), zero
  float* wrong;        // (teams * team,): values that did not come
};

template <typename Team>
RNNSEARCH_KERNEL void rates_meeting(MeetingArguments a) {
  if constexpr (Team::kHere) {
    const int which = block_index() / a.team, member = block_index() % a.team;
    char* const shared = shared_memory();
    Team team({a.barriers, a.teams, which, a.team, uint32_t(1) << 26, reinterpret_cast<uint32_t*>(shared)});
    float* const cells = Team::kCluster ? reinterpret_cast<float*>(shared + 16) : a.cells + which * 2 * a.team;
    float wrong = 0;
    team.enter();
    for (int round = 0; round < a.rounds; ++round) {
      float* const now = cells + round % 2 * a.team;
      if (a.hand_over && thread_index() == 0) team.give(now + member, static_cast<float>(round));
      if (!team.wait(round, 0)) wrong += 1;
      if (a.hand_over && thread_index() == 0) wrong += Team::read(now + (member + 1) % a.team) != round;
    }
    team.leave();
    if (thread_index() == 0) a.wrong[block_index()] = wrong;
  }
}

struct ReadingArguments {
  int rounds;
  int inside, outside;    // Floats4 that a block has in shared memory, and that there are in all
  int piece;              // that a block reads in a round
  const Floats4* values;  // (outside,)
  float* sums;            // (blocks,)
};

// A block's piece, a different one every round. All values are one, so the sum is their number.
template <bool INSIDE>
RNNSEARCH_KERNEL void rates_reading(ReadingArguments a) {
  Floats4* const shared = reinterpret_cast<Floats4*>(shared_memory());
  for (int i = thread_index(); i < a.inside; i += thread_count()) shared[i] = a.values[i];
  block_barrier();
  float sum = 0;
  for (int round = 0; round < a.rounds; ++round) {
    const int64_t first = INSIDE ? round : (int64_t(round) * block_count() + block_index()) * a.piece;
    for (int base = thread_index(); base < a.piece; base += kUnder * thread_count()) {
      Floats4 values[kUnder];
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kUnder; ++i) {
        const int at = base + i * thread_count();
        const Floats4 none{0, 0, 0, 0};
        if constexpr (INSIDE) {
          values[i] = at < a.piece ? load_shared(shared + (first + at) % a.inside) : none;
        } else {
          values[i] = at < a.piece ? load_fresh(a.values + (first + at) % a.outside) : none;
        }
      }
      RNNSEARCH_UNROLL()
      for (int i = 0; i < kUnder; ++i) sum += values[i].x + values[i].y + values[i].z + values[i].w;
    }
  }
  float* const sums = reinterpret_cast<float*>(shared + a.inside);
  sum = warp_sum(sum);
  if (thread_index() % kWarp == 0) sums[thread_index() / kWarp] = sum;
  block_barrier();
  if (thread_index() > 0) return;
  for (int warp = 1; warp < thread_count() / kWarp; ++warp) sum += sums[warp];
  a.sums[block_index()] = sum;
}

struct ChasingArguments {
  int rounds, count;
  const Words2* next;  // (count,): x is where to go on
  float* last;         // (1,)
};

// One thread, each load where the one before said.
template <bool INSIDE>
RNNSEARCH_KERNEL void rates_chasing(ChasingArguments a) {
  Words2* const shared = reinterpret_cast<Words2*>(shared_memory());
  for (int i = thread_index(); i < a.count; i += thread_count()) shared[i] = a.next[i];
  block_barrier();
  if (thread_index() > 0) return;
  uint32_t at = 0;
  for (int round = 0; round < a.rounds; ++round) at = INSIDE ? load_shared(shared + at).x : load_fresh(a.next + at).x;
  a.last[0] = static_cast<float>(at);
}

enum class Tanh { exact, shared_reciprocal, approximate };

struct TanhArguments {
  int rounds;
  float* sums;  // (blocks * threads,)
};

RNNSEARCH_BOTH float rates_input(int lane, int round, int i) {
  return 0.25f * ((lane + 3 * i) % 16) - 2 + 0.001f * (round % 64);
}

// Σ w tanh(x), eight x a round.
template <Tanh FORM>
RNNSEARCH_KERNEL void rates_tanh(TanhArguments a) {
  constexpr float kTwoLog2E = 2.885390081777927f, kWeight = 0.5f;
  float start[8], sum = 0;
  RNNSEARCH_UNROLL()
  for (int i = 0; i < 8; ++i) start[i] = rates_input(thread_index() % kWarp, 0, i);
  for (int round = 0; round < a.rounds; ++round) {
    const float more = 0.001f * (round % 64);
    RNNSEARCH_UNROLL()
    for (int i = 0; i < 8; i += 2) {
      const float x = start[i] + more, y = start[i + 1] + more;
      if constexpr (FORM == Tanh::exact) {
        sum += kWeight * tanh_of(x) + kWeight * tanh_of(y);
      } else if constexpr (FORM == Tanh::approximate) {
        sum += kWeight * tanh_approx(x) + kWeight * tanh_approx(y);
      } else {
        const float p = 1 + exp2_of(kTwoLog2E * x), q = 1 + exp2_of(kTwoLog2E * y);
        sum += 2 * kWeight - 2 * (kWeight * q + kWeight * p) * reciprocal(p * q);
      }
    }
  }
  a.sums[size_t(block_index()) * thread_count() + thread_index()] = sum;
}

}  // namespace rnnsearch::cuda

using namespace rnnsearch::cuda;

namespace {

void need(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

// Zeros that kernels and this program see.
template <typename T>
T* allocate(size_t count) {
#ifdef __CUDACC__
  void* memory = nullptr;
  need(cudaMallocManaged(&memory, count * sizeof(T)) == cudaSuccess, "there is not as much memory");
  std::fill_n(static_cast<T*>(memory), count, T{});
  return static_cast<T*>(memory);
#else
  return new T[count]();  // until the program ends
#endif
}

void finish() {
#ifdef __CUDACC__
  const cudaError_t error = cudaDeviceSynchronize();
  need(error == cudaSuccess, cudaGetErrorString(error));
#endif
}

using Run = std::function<void(int)>;

double milliseconds(const Run& run, int rounds) {
#ifdef __CUDACC__
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  cudaEventRecord(begin);
  run(rounds);
  cudaEventRecord(end);
  finish();
  float passed = 0;
  cudaEventElapsedTime(&passed, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return passed;
#else
  const auto begin = std::chrono::steady_clock::now();
  run(rounds);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
#endif
}

// Microseconds of a round: the difference of two launches, one of three times the rounds, so that what a launch takes
// falls out; the middle one of nine. Memory has been touched by a launch before.
double microseconds(const Run& run, int rounds) {
  double times[9];
  run(rounds);
  finish();
  for (double& time : times) {
    time = 1000 * (milliseconds(run, 3 * rounds) - milliseconds(run, rounds)) / (2 * rounds);
  }
  std::nth_element(times, times + 4, times + 9);
  return times[4];
}

void say(const char* name, double value, const char* unit) { std::printf("%s %.6g %s\n", name, value, unit); }

void meetings(const char* name, int teams, int team, int cluster, int threads, int rounds) {
  MeetingArguments a{};
  a.teams = teams;
  a.team = team;
  a.cells = allocate<float>(size_t(teams) * 2 * team);
  a.barriers = allocate<uint32_t>(teams + 1);
  a.wrong = allocate<float>(size_t(teams) * team);
  const LaunchShape shape{teams * team, threads, 16 + 2 * sizeof(float) * team};
  for (const bool hand_over : {false, true}) {
    a.hand_over = hand_over;
    const auto run = [&](int times) {
      finish();
      std::fill_n(a.barriers, teams + 1, 0);
      a.rounds = times;
      const char* const error =
          launch_teams(rates_meeting<GridTeam>, rates_meeting<ClusterTeam>, a, shape, cluster, Stream{});
      need(error == nullptr, error);
    };
    run(3);
    finish();
    for (int i = 0; i < teams * team; ++i) need(a.wrong[i] == 0, "a value that was handed over did not come");
    const double time = microseconds(run, rounds);
    for (int i = 0; i < teams * team; ++i) need(a.wrong[i] == 0, "a value that was handed over did not come");
    say((std::string(name) + (hand_over ? "_with_value" : "")).c_str(), time, "us");
  }
}

template <bool INSIDE>
void reading(const char* name, int blocks, int threads, int rounds) {
  ReadingArguments a{};
  a.inside = INSIDE ? 4096 : 0;  // 64 KB
  a.outside = 1 << 20;           // 16 MB, which L2 has room for
  a.piece = 4096;
  Floats4* const values = allocate<Floats4>(a.outside);
  std::fill_n(values, a.outside, Floats4{1, 1, 1, 1});
  a.values = values;
  a.sums = allocate<float>(blocks);
  const LaunchShape shape{blocks, threads, a.inside * sizeof(Floats4) + threads / 32 * sizeof(float)};
  const auto run = [&](int times) {
    a.rounds = times;
    const char* const error = launch(rates_reading<INSIDE>, a, shape, Stream{});
    need(error == nullptr, error);
  };
  run(3);
  finish();
  for (int i = 0; i < blocks; ++i) need(a.sums[i] == 3 * 4.0f * a.piece, "a block read something else");
  say(name, a.piece * sizeof(Floats4) / microseconds(run, rounds), "bytes/us/block");
}

template <bool INSIDE>
void chasing(const char* name, int rounds) {
  ChasingArguments a{};
  a.count = 2048;
  Words2* const next = allocate<Words2>(a.count);
  // Steps of 129 go through all of 2048.
  for (int i = 0; i < a.count; ++i) next[i] = {uint32_t((i + 129) % a.count), 0};
  a.next = next;
  a.last = allocate<float>(1);
  const auto run = [&](int times) {
    a.rounds = times;
    const char* const error = launch(rates_chasing<INSIDE>, a, {1, 32, a.count * sizeof(Words2)}, Stream{});
    need(error == nullptr, error);
  };
  run(100);
  finish();
  need(a.last[0] == 100 * 129 % a.count, "a load went somewhere else");
  say(name, 1000 * microseconds(run, 20 * rounds), "ns");
}

template <Tanh FORM>
void tanhs(const char* name, double tolerance, int blocks, int threads, int rounds) {
  TanhArguments a{};
  a.sums = allocate<float>(size_t(blocks) * threads);
  const auto run = [&](int times) {
    a.rounds = times;
    const char* const error = launch(rates_tanh<FORM>, a, {blocks, threads, 0}, Stream{});
    need(error == nullptr, error);
  };
  constexpr int kChecked = 5;
  run(kChecked);
  finish();
  for (int thread = 0; thread < threads; ++thread) {
    double sum = 0;
    for (int round = 0; round < kChecked; ++round) {
      for (int i = 0; i < 8; ++i) sum += 0.5 * std::tanh(double(rates_input(thread % 32, round, i)));
    }
    need(std::abs(a.sums[thread] - sum) < tolerance, "a sum of tanh is another");
  }
  say(name, 8.0 * threads / microseconds(run, 10 * rounds), "tanh/us/block");
}

}  // namespace

int main(int count, char** arguments) {
  need(count == 4, "wanted: blocks, threads of a block, rounds");
  const int blocks = std::atoi(arguments[1]), threads = std::atoi(arguments[2]), rounds = std::atoi(arguments[3]);
  need(blocks > 0 && threads >= 32 && threads % 32 == 0 && rounds > 0, "blocks, whole warps and rounds are needed");
  meetings("grid_meeting", 1, blocks, 0, threads, rounds);
  if (blocks >= 64) meetings("grid_meeting_of_32", blocks / 32, 32, 0, threads, rounds);
  for (const int cluster : {8, 16}) {
    const LaunchShape shape{cluster, threads, 1024};
    const int at_once = clusters_at_once(rates_meeting<ClusterTeam>, shape, cluster);
    say(cluster == 8 ? "clusters_of_8" : "clusters_of_16", at_once, "at once");
    if (at_once == 0) continue;
    // A cluster for as many blocks as there are, as a plan has.
    const int teams = std::max(1, std::min(at_once, blocks / cluster));
    meetings(cluster == 8 ? "cluster_meeting_of_8" : "cluster_meeting_of_16", teams, cluster, cluster, threads, rounds);
  }
  reading<false>("read_outside", blocks, threads, rounds);
  reading<true>("read_shared", blocks, threads, rounds);
  chasing<false>("load_outside", rounds);
  chasing<true>("load_shared", rounds);
  tanhs<Tanh::exact>("tanh_exact", 1e-5, blocks, threads, rounds);
  tanhs<Tanh::shared_reciprocal>("tanh_shared_reciprocal", 1e-4, blocks, threads, rounds);
  tanhs<Tanh::approximate>("tanh_approx", 2e-2, blocks, threads, rounds);
  return 0;
}
