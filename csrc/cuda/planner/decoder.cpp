#include <utility>

#include "common.h"
#include "planner.h"

namespace rnnsearch::cuda {
namespace {

constexpr int64_t kThreads = 384;
constexpr int64_t kRegisters = 168;  // what the kernel's launch bounds leave a thread
constexpr int64_t kWarps = kThreads / 32;
constexpr int64_t kColumns = 8;  // of a tile
// One more part of a row to merge, in bytes as kMeeting: what a load takes that nothing hides, from outside and from
// shared memory. Estimates.
constexpr int64_t kPart = 2 * 1024, kClusterPart = kPart / 4;

// Tiles that a warp takes in one turn, as registers have room. A team of a grid has blocks enough to need no other
// turn; one of a cluster may. Backward a tile is eight units, each with the depth of all products, and no more than
// four find room in shared memory.
int64_t most_tiles(const DecoderProblem& p) { return p.backward ? 4 : p.storage == Storage::float32 ? 5 : 8; }

int64_t four(int64_t size) { return round_up(size, 4); }

// Columns of the product with what the blocks exchange: forward of query and gates, backward of the state.
int64_t columns_of(const DecoderProblem& p) { return p.backward ? p.H : p.A + (p.reset_after ? 3 : 2) * p.H; }

// Values of a row that the blocks exchange: forward the state, backward the gradients of query and gates.
int64_t depth_of(const DecoderProblem& p) {
  const int64_t depth = round_up(p.H, kMmaDepth);
  return p.backward ? round_up(p.A, kMmaDepth) + 3 * depth : depth;
}

// The plan for so many teams and splits, whether or not there are blocks and memory for it; `most` blocks a team, or
// exactly so many where a team is a cluster.
DecoderPlan lay(const DecoderProblem& p, int64_t row_groups, int64_t splits, int64_t most, bool cluster) {
  const int64_t size = bytes_of(p.storage), depth = depth_of(p);
  DecoderPlan plan;
  plan.cluster = static_cast<int>(cluster ? most : 0);
  plan.threads = static_cast<int>(kThreads);
  plan.rows = parts(p.B, row_groups);
  plan.row_groups = static_cast<int>(parts(p.B, plan.rows));
  const int64_t columns = parts(columns_of(p), kColumns);
  const int64_t candidates = p.backward || p.reset_after ? 0 : parts(p.H, kColumns);
  const int64_t tiles = parts(columns, most), candidate_tiles = parts(candidates, most);
  plan.tiles = static_cast<int>(tiles);
  plan.candidate_tiles = static_cast<int>(candidate_tiles);
  plan.splits = static_cast<int>(splits);
  // As many blocks as have columns, or a part of a row.
  int64_t team = std::max(parts(columns, tiles), plan.rows * splits);
  if (candidate_tiles > 0) team = std::max(team, parts(candidates, candidate_tiles));
  plan.team = static_cast<int>(cluster ? most : std::min(team, most));

  const int64_t stride = stride_of(depth, p.storage), most_of_block = std::max(tiles, candidate_tiles);
  plan.weight_bytes = kColumns * (tiles + candidate_tiles) * stride * size;
  const int64_t turns = p.backward ? 1 : parts(most_of_block, most_of_block <= 4 ? 4 : most_tiles(p));
  const int64_t product_parts = std::max<int64_t>(1, kWarps / (parts(plan.rows, kMmaRows) * turns));
  const int64_t products = product_parts * plan.rows * kColumns * most_of_block * 4;
  // What the attention sums over positions, its width; what it reads of a row, query or the gates' gradients; and what
  // else it keeps of one.
  const int64_t width = four(p.backward ? p.A : 3 * p.H), lanes = std::max<int64_t>(1, kThreads / (width / 4));
  const int64_t of_row = four(p.backward ? 3 * p.H : p.A);
  const int64_t sums = (p.backward ? 2 : 1) * lanes * width, scales = four(p.backward ? splits + 1 : splits);
  const int64_t attention = 4 * ((cluster ? 0 : of_row) + scales + 2 * four(parts(p.S, splits)) + sums);
  const int64_t carry = p.backward ? plan.rows * kColumns * tiles * 4 : 0;
  // What a cluster's blocks put into each other's shared memory: d and r d, and for every part of a row what it reads,
  // forward u, and what the row's parts leave of its share of the columns.
  const int64_t kinds = p.backward ? 2 : 3, share = kinds * parts(p.backward ? p.A : p.H, splits);
  const int64_t rows_handed = cluster && !p.backward ? (p.reset_after ? 1 : 2) * plan.rows : 0;
  const int64_t inbox = four(of_row + (p.backward ? 0 : share) + (splits > 1 ? splits * (share + 2) : 0));
  const int64_t inboxes = cluster ? parts(plan.rows * splits, plan.team) * inbox : 0;
  plan.shared_bytes = plan.weight_bytes + 4 * four(p.A) + carry + rows_handed * stride * size + 4 * inboxes +
                      std::max(products, attention) + 4;

  const int64_t all_sums = four(kinds * (p.backward ? p.A : p.H)) + 4;
  const int64_t partial = splits > 1 && !cluster ? p.B * splits * all_sums * 4 : 0;
  const int64_t words = cluster ? 0 : plan.row_groups + 1 + (splits > 1 ? p.B : 0);
  // Query and u, where g_n takes the place of u_n; or the gates' gradients.
  const int64_t floats = cluster && (p.backward || p.reset_after) ? 0 : p.B * (p.backward ? 3 * p.H : p.A + 3 * p.H);
  const int64_t exchange = cluster && !p.backward ? 0 : 2 * p.B * depth * size;
  plan.workspace_bytes = exchange + floats * 4 + partial + words * 4 + p.B * p.S * 3 * p.H * size;
  plan.barriers_per_step = p.reset_after ? 2 : 3;
  plan.barriers = plan.barriers_per_step * p.T;
  plan.row_meetings = splits > 1 ? p.T : 0;
  return plan;
}

// Positions of a block, at the most.
int64_t positions(const DecoderProblem& p, const DecoderPlan& plan) {
  return parts(plan.rows * plan.splits, plan.team) * parts(p.S, plan.splits);
}

// Keys, then memory_gates, into the shared memory that is left, in pieces of 16 bytes.
void keep(const DecoderProblem& p, int64_t room, DecoderPlan& plan) {
  const int64_t size = bytes_of(p.storage), all = positions(p, plan);
  const auto kept = [&](int64_t width) {
    const int64_t left = (room - plan.shared_bytes) / 16 * 16, count = std::min(all, left / (width * size));
    plan.shared_bytes += round_up(count * width * size, 16);
    return count;
  };
  plan.kept_keys = kept(p.A);
  plan.kept_gates = kept(3 * p.H);
}

// What a block reads in a step: the rows that are exchanged from outside, its weights once for every 16 of them, keys
// and memory_gates of its positions, and what it merges where rows are split; and the meetings. Shared memory is about
// twice as fast.
int64_t cost(const DecoderProblem& p, const DecoderPlan& plan) {
  const bool cluster = plan.cluster > 0;
  const int64_t size = bytes_of(p.storage), all = positions(p, plan);
  const int64_t exchanged = plan.rows * depth_of(p) * size;
  const int64_t attention = all * (p.A + 3 * p.H) * size;
  const int64_t kept = (plan.kept_keys * p.A + plan.kept_gates * 3 * p.H) * size;
  const int64_t weights = parts(plan.rows, kMmaRows) * plan.weight_bytes;
  const int64_t sums = parts(plan.rows * plan.splits, plan.team) * (p.backward ? 2 * p.A : 3 * p.H) * 4;
  const int64_t merge = (cluster ? sums : 2 * sums) + plan.splits * (cluster ? kClusterPart : kPart);
  const int64_t meetings = plan.barriers_per_step + (plan.splits > 1 ? 1 : 0);
  return (cluster && !p.backward ? exchanged / 2 : exchanged) + attention - kept + (weights + kept) / 2 +
         (plan.splits > 1 ? merge : 0) + meetings * (cluster ? kClusterMeeting : kMeeting);
}

// Of one grid, all of it resident, and what a step costs.
std::pair<DecoderPlan, int64_t> plan_grid(const DecoderProblem& p, const DeviceLimits& device, int64_t room) {
  const int64_t tiles = most_tiles(p);
  DecoderPlan best, nearest;  // the one that needs the least memory, of those whose tiles a block can hold
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t row_groups = 1; row_groups <= std::min<int64_t>(p.B, device.processors); ++row_groups) {
    const int64_t most = device.processors / row_groups;
    for (int64_t splits = 1; splits <= std::min(p.S, most); ++splits) {
      DecoderPlan plan = lay(p, row_groups, splits, most, false);
      if (std::max(plan.tiles, plan.candidate_tiles) > tiles) break;
      if (nearest.team == 0 || plan.shared_bytes < nearest.shared_bytes) nearest = plan;
      if (plan.shared_bytes > room) continue;
      keep(p, room, plan);
      const int64_t costs = cost(p, plan);
      if (costs > least || (costs == least && plan.team >= best.team)) continue;
      best = plan;
      least = costs;
    }
  }
  if (nearest.team == 0) {
    return {no_plan<DecoderPlan>("the product of a step has " + std::to_string(columns_of(p)) + " columns, and " +
                                 std::to_string(device.processors) + " blocks take up to " +
                                 std::to_string(kColumns * tiles) + " each"),
            0};
  }
  if (best.team == 0) {
    return {no_plan<DecoderPlan>("a block of " + std::to_string(kColumns * (nearest.tiles + nearest.candidate_tiles)) +
                                 " columns needs " + std::to_string(nearest.shared_bytes) +
                                 " bytes of shared memory, and has " + std::to_string(room)),
            0};
  }
  const std::string uncounted = why_uncounted(p.T, best.barriers, best.team);
  return {uncounted.empty() ? best : no_plan<DecoderPlan>(uncounted), least};
}

// Of clusters, as many at once as run, and what a step of all of them costs; or why there is none.
std::pair<DecoderPlan, int64_t> plan_clusters(const DecoderProblem& p, const DeviceLimits& device, int64_t room) {
  DecoderPlan best, nearest;
  best.no_cluster = why_no_clusters(device);
  if (!best.no_cluster.empty()) return {best, 0};
  int64_t least = std::numeric_limits<int64_t>::max(), largest = 0;
  for (const ClusterSize& size : cluster_sizes(device)) {
    const int64_t cluster = size.blocks;
    if (size.at_once == 0) continue;
    largest = cluster;
    for (int64_t row_groups = 1; row_groups <= std::min(p.B, size.most_teams()); ++row_groups) {
      if (parts(p.B, parts(p.B, row_groups)) < row_groups) continue;  // as before
      for (int64_t splits = 1; splits <= std::min(p.S, cluster); ++splits) {
        DecoderPlan plan = lay(p, row_groups, splits, cluster, true);
        if (p.backward && plan.tiles > most_tiles(p)) break;
        if (nearest.team == 0 || plan.shared_bytes < nearest.shared_bytes) nearest = plan;
        if (plan.shared_bytes > room) continue;
        keep(p, room, plan);
        const int64_t costs = parts(plan.row_groups, size.at_once) * cost(p, plan);
        if (costs >= least) continue;
        best = plan;
        least = costs;
      }
    }
  }
  if (best.team == 0) best.no_cluster = why_no_cluster(nearest, p.H, largest, room);
  return {best, least};
}

}  // namespace

DecoderPlan plan_decoder_scan(const DecoderProblem& p, const DeviceLimits& device) {
  check(p.B, "B");
  check(p.T, "T");
  check(p.S, "S");
  check(p.H, "H");
  check(p.A, "A");
  // An upper bound of every tensor and of all that lay() adds up, in floating point: the product may not fit.
  if (double(p.B) * double(p.T + p.S) * double(4 * p.H + p.A + p.S) * 64 > 9e18) {
    throw std::invalid_argument("B, T, S, H and A are more than memory has addresses for; got " + std::to_string(p.B) +
                                ", " + std::to_string(p.T) + ", " + std::to_string(p.S) + ", " + std::to_string(p.H) +
                                " and " + std::to_string(p.A));
  }
  const std::string unfit = why_unfit(device, kThreads, kRegisters);
  if (!unfit.empty()) return no_plan<DecoderPlan>(unfit);
  const int64_t room = shared_room(device);
  const auto [grid, grid_cost] = plan_grid(p, device, room);
  const auto [clusters, clusters_cost] = plan_clusters(p, device, room);
  return better(grid, grid_cost, clusters, clusters_cost);
}

}  // namespace rnnsearch::cuda
