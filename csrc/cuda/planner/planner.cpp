#include <utility>

#include "common.h"
#include "planner.h"

namespace rnnsearch::cuda {
namespace {

constexpr int64_t kThreads = 256, kUnits[] = {8, 16, 32};
constexpr int64_t kRegisters = 255;  // of a thread, at the most: a plan holds whatever the compiler chose

// The plan for so many teams and units a block, whether or not there are blocks and memory for it; in clusters of so
// many blocks, or with 0 none.
Plan lay(const Problem& p, int64_t row_groups, int64_t units, int64_t cluster) {
  const int64_t size = bytes_of(p.storage), depth = round_up(p.H, kMmaDepth);
  const int64_t columns = p.backward ? units : 3 * units;
  const int64_t stride = stride_of(p.backward ? 3 * depth : depth, p.storage);
  Plan plan;
  plan.cluster = static_cast<int>(cluster);
  plan.threads = static_cast<int>(kThreads);
  plan.rows = std::min(p.B, round_up(parts(p.B, row_groups), kMmaRows));
  plan.row_groups = static_cast<int>(parts(p.B, plan.rows));
  plan.units = units;
  plan.unit_groups = static_cast<int>(cluster > 0 ? cluster : parts(p.H, units));
  plan.weight_bytes = columns * stride * size;
  // What the blocks exchange: d of two steps and r d, or the gradient of the three gates of two steps. Forward every
  // block of a cluster has its rows of it.
  const bool handed = cluster > 0 && !p.backward;
  const int64_t rows_handed = handed ? (p.reset_after ? 2 : 3) * plan.rows : 0;
  const int64_t exchange = handed ? 0 : (p.backward ? 6 : 3) * p.B * depth * size;
  const int64_t counters = cluster > 0 ? 0 : (plan.row_groups + 1) * 4;
  const int64_t sums = kThreads / 32 * plan.rows * columns * 4, carry = plan.rows * units * 4, verdict = 4;
  plan.shared_bytes = plan.weight_bytes + rows_handed * stride * size + sums + carry + verdict;
  // The factors of the weight's gradient: that of u, d, and r d where the reset comes first.
  const int64_t factors = p.backward ? p.B * p.T * (p.reset_after ? 4 : 5) * p.H * size : 0;
  plan.workspace_bytes = exchange + counters + factors;
  plan.barriers_per_step = p.reset_after ? 1 : 2;
  plan.barriers = plan.barriers_per_step * p.T;
  return plan;
}

int64_t blocks(const Plan& plan) { return int64_t(plan.row_groups) * plan.unit_groups; }

// Tensor-core products of a block in a step, up to a factor; what a grid's plan is chosen by.
int64_t work(const Plan& plan) { return parts(plan.rows, kMmaRows) * plan.units; }

// What a block reads in a step: the rows that are exchanged, and its weights once for every 16 of them. Shared memory
// is about twice as fast as what lies outside.
int64_t cost(const Problem& p, const Plan& plan) {
  const int64_t exchanged = plan.rows * (p.backward ? 3 : 1) * round_up(p.H, kMmaDepth) * bytes_of(p.storage);
  const int64_t weights = parts(plan.rows, kMmaRows) * plan.weight_bytes;
  const bool inside = plan.cluster > 0 && !p.backward;
  return (inside ? exchanged / 2 : exchanged) + weights / 2 +
         plan.barriers_per_step * (plan.cluster > 0 ? kClusterMeeting : kMeeting);
}

// Of one grid, all of it resident.
Plan plan_grid(const Problem& p, const DeviceLimits& device, int64_t room) {
  Plan best, nearest;  // the one that needs the least memory, of those that have blocks enough
  for (const int64_t units : kUnits) {
    for (int64_t row_groups = 1; row_groups <= parts(p.B, kMmaRows); ++row_groups) {
      const Plan plan = lay(p, row_groups, units, 0);
      if (blocks(plan) > device.processors) break;  // more groups only have more blocks
      if (nearest.units == 0 || plan.shared_bytes < nearest.shared_bytes) nearest = plan;
      if (plan.shared_bytes > room) continue;
      // Of equal work, the smaller team: fewer blocks wait for one another.
      const bool smaller_team = work(plan) == work(best) && plan.unit_groups < best.unit_groups;
      if (best.units == 0 || work(plan) < work(best) || smaller_team) best = plan;
    }
  }
  if (nearest.units == 0) {
    return no_plan<Plan>("H = " + std::to_string(p.H) + " takes " + std::to_string(parts(p.H, 32)) +
                         " blocks of 32 units, and " + std::to_string(device.processors) + " can be resident");
  }
  if (best.units == 0) {
    return no_plan<Plan>("a block of " + std::to_string(nearest.units) + " units needs " +
                         std::to_string(nearest.shared_bytes) + " bytes of shared memory, and has " +
                         std::to_string(room));
  }
  const std::string uncounted = why_uncounted(p.T, best.barriers, best.unit_groups);
  return uncounted.empty() ? best : no_plan<Plan>(uncounted);
}

// Of clusters, as many at once as run, and what a step of all of them costs; or why there is none.
std::pair<Plan, int64_t> plan_clusters(const Problem& p, const DeviceLimits& device, int64_t room) {
  Plan best, nearest;
  best.no_cluster = why_no_clusters(device);
  if (!best.no_cluster.empty()) return {best, 0};
  int64_t least = std::numeric_limits<int64_t>::max(), largest = 0;
  for (const ClusterSize& size : cluster_sizes(device)) {
    const int64_t cluster = size.blocks;
    if (size.at_once == 0) continue;
    largest = cluster;
    for (const int64_t units : kUnits) {
      if (units * cluster < p.H) continue;
      for (int64_t row_groups = 1; row_groups <= std::min(parts(p.B, kMmaRows), size.most_teams()); ++row_groups) {
        const Plan plan = lay(p, row_groups, units, cluster);
        if (plan.row_groups < row_groups) continue;  // as before
        if (nearest.units == 0 || plan.shared_bytes < nearest.shared_bytes) nearest = plan;
        const int64_t costs = parts(plan.row_groups, size.at_once) * cost(p, plan);
        if (plan.shared_bytes > room || costs >= least) continue;
        best = plan;
        least = costs;
      }
      break;  // more units only have more work
    }
  }
  if (best.units == 0) best.no_cluster = why_no_cluster(nearest, p.H, largest, room);
  return {best, least};
}

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
  const std::string unfit = why_unfit(device, kThreads, kRegisters);
  if (!unfit.empty()) return no_plan<Plan>(unfit);
  const int64_t room = shared_room(device);
  const Plan grid = plan_grid(p, device, room);
  const auto [clusters, costs] = plan_clusters(p, device, room);
  return better(grid, grid.reason.empty() ? cost(p, grid) : 0, clusters, costs);
}

}  // namespace rnnsearch::cuda
