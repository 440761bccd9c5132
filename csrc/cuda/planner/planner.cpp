#include "planner.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace rnnsearch::cuda {
namespace {

constexpr int64_t kMmaRows = 16;   // batch rows of one tensor-core product
constexpr int64_t kMmaDepth = 16;  // terms of its sum
constexpr int64_t kThreads = 256;
constexpr int64_t kRegisters = 255;  // of a thread, at the most: a plan holds whatever the compiler chose
constexpr int64_t kReserved = 1024;  // bytes of shared memory that CUDA keeps for itself in every block
constexpr int64_t kMost = int64_t(1) << 31;

int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }
int64_t round_up(int64_t value, int64_t multiple) { return parts(value, multiple) * multiple; }

void check(int64_t value, const char* name) {
  if (value <= 0 || value >= kMost) {
    throw std::invalid_argument(std::string(name) + " must be positive and below 2^31; got " + std::to_string(value));
  }
}

Plan no_plan(const std::string& reason) {
  Plan plan;
  plan.reason = reason;
  return plan;
}

int64_t bytes_of(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

// Values from one weight column to the next in shared memory, as the kernels lay them (column_stride).
int64_t stride_of(int64_t depth, Storage storage) {
  if (storage == Storage::float32) return depth + 4;
  return depth / kMmaDepth % 2 == 0 ? depth + kMmaDepth : depth;
}

// The plan for so many teams and units a block, whether or not there are blocks and memory for it.
Plan lay(const Problem& p, int64_t row_groups, int64_t units) {
  const int64_t size = bytes_of(p.storage), depth = round_up(p.H, kMmaDepth);
  const int64_t columns = p.backward ? units : 3 * units;
  Plan plan;
  plan.threads = static_cast<int>(kThreads);
  plan.rows = std::min(p.B, round_up(parts(p.B, row_groups), kMmaRows));
  plan.row_groups = static_cast<int>(parts(p.B, plan.rows));
  plan.units = units;
  plan.unit_groups = static_cast<int>(parts(p.H, units));
  plan.weight_bytes = columns * stride_of(p.backward ? 3 * depth : depth, p.storage) * size;
  const int64_t sums = kThreads / 32 * plan.rows * columns * 4, carry = plan.rows * units * 4, verdict = 4;
  plan.shared_bytes = plan.weight_bytes + sums + carry + verdict;
  // What the blocks exchange: d of two steps and r d, or the gradient of the three gates of two steps.
  const int64_t exchange = (p.backward ? 6 : 3) * p.B * depth * size, counters = (plan.row_groups + 1) * 4;
  const int64_t grad_hidden = p.backward ? p.B * p.T * 3 * p.H * 4 : 0;
  plan.workspace_bytes = exchange + counters + grad_hidden;
  plan.barriers_per_step = p.reset_after ? 1 : 2;
  plan.barriers = plan.barriers_per_step * p.T;
  return plan;
}

int64_t blocks(const Plan& plan) { return int64_t(plan.row_groups) * plan.unit_groups; }

// Tensor-core products of a block in a step, up to a factor; what a plan is chosen by.
int64_t work(const Plan& plan) { return parts(plan.rows, kMmaRows) * plan.units; }

}  // namespace

Plan plan_gru_scan(const Problem& p, const DeviceLimits& device) {
  check(p.B, "B");
  check(p.T, "T");
  check(p.H, "H");
  // The largest tensor, gates (B, T, 4H), and everything that lay() adds up stay below this.
  if (p.B * p.T > std::numeric_limits<int64_t>::max() / (64 * round_up(p.H, kMmaDepth))) {
    throw std::invalid_argument("B, T and H are more than memory has addresses for; got " + std::to_string(p.B) + ", " +
                                std::to_string(p.T) + " and " + std::to_string(p.H));
  }
  check(device.major, "major");
  check(device.processors, "processors");
  check(device.shared_per_sm, "shared_per_sm");
  check(device.shared_per_block, "shared_per_block");
  check(device.registers_per_sm, "registers_per_sm");
  check(device.threads_per_sm, "threads_per_sm");
  if (device.major < 8) {
    return no_plan("it needs compute capability 8.0 or later; this is " + std::to_string(device.major) + "." +
                   std::to_string(device.minor));
  }
  if (device.threads_per_sm < kThreads || device.registers_per_sm < kThreads * kRegisters) {
    return no_plan("an SM has no room for a block of " + std::to_string(kThreads) + " threads");
  }
  const int64_t room = std::min(device.shared_per_block, device.shared_per_sm - kReserved);
  Plan best, nearest;  // the one that needs the least memory, of those that have blocks enough
  for (const int64_t units : {8, 16, 32}) {
    for (int64_t row_groups = 1; row_groups <= parts(p.B, kMmaRows); ++row_groups) {
      const Plan plan = lay(p, row_groups, units);
      if (blocks(plan) > device.processors) break;  // more groups only have more blocks
      if (nearest.units == 0 || plan.shared_bytes < nearest.shared_bytes) nearest = plan;
      if (plan.shared_bytes > room) continue;
      // Of equal work, the smaller team: fewer blocks wait for one another.
      const bool smaller_team = work(plan) == work(best) && plan.unit_groups < best.unit_groups;
      if (best.units == 0 || work(plan) < work(best) || smaller_team) best = plan;
    }
  }
  if (nearest.units == 0) {
    return no_plan("H = " + std::to_string(p.H) + " takes " + std::to_string(parts(p.H, 32)) +
                   " blocks of 32 units, and " + std::to_string(device.processors) + " can be resident");
  }
  if (best.units == 0) {
    return no_plan("a block of " + std::to_string(nearest.units) + " units needs " +
                   std::to_string(nearest.shared_bytes) + " bytes of shared memory, and has " + std::to_string(room));
  }
  // The grid barrier counts a team's arrivals in 32 bits, and never sets the counter back.
  if (best.barriers > std::numeric_limits<uint32_t>::max() / best.unit_groups) {
    return no_plan(std::to_string(best.barriers) + " barriers of " + std::to_string(best.unit_groups) +
                   " blocks are more than the counter of a team can count");
  }
  // A barrier that gives up leaves its step and phase in 32 bits.
  if (p.T > kMost / 2) return no_plan("T = " + std::to_string(p.T) + " is more steps than a stopped barrier can name");
  return best;
}

}  // namespace rnnsearch::cuda
