// What the planners share: the limits of a GPU, and how the kernels lay their shared memory.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

#include "planner.h"

namespace rnnsearch::cuda {

constexpr int64_t kMmaRows = 16;     // batch rows of one tensor-core product
constexpr int64_t kMmaDepth = 16;    // terms of its sum
constexpr int64_t kReserved = 1024;  // bytes of shared memory that CUDA keeps for itself in every block
constexpr int64_t kMost = int64_t(1) << 31;
// What a meeting of a team costs, in bytes that a block could have read from outside meanwhile: about a microsecond for
// a grid's, a quarter for a cluster's. Estimates; bench/cuda_rates.py measures what they should be.
constexpr int64_t kMeeting = 64 * 1024, kClusterMeeting = 16 * 1024;
constexpr int64_t kMostTurns = 8;  // of clusters, one after another: beyond, a grid is the better

inline int64_t parts(int64_t whole, int64_t size) { return (whole + size - 1) / size; }
inline int64_t round_up(int64_t value, int64_t multiple) { return parts(value, multiple) * multiple; }

inline void check(int64_t value, const char* name) {
  if (value <= 0 || value >= kMost) {
    throw std::invalid_argument(std::string(name) + " must be positive and below 2^31; got " + std::to_string(value));
  }
}

template <typename Plan>
Plan no_plan(const std::string& reason) {
  Plan plan;
  plan.reason = reason;
  return plan;
}

inline int64_t bytes_of(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

// Values from one weight column to the next in shared memory, as the kernels lay them (column_stride).
inline int64_t stride_of(int64_t depth, Storage storage) {
  if (storage == Storage::float32) return depth + 4;
  return depth / kMmaDepth % 2 == 0 ? depth + kMmaDepth : depth;
}

// Why no persistent kernel runs on a GPU, or empty; throws where a limit is none.
inline std::string why_unfit(const DeviceLimits& device, int64_t threads, int64_t registers) {
  check(device.major, "major");
  check(device.processors, "processors");
  check(device.shared_per_sm, "shared_per_sm");
  check(device.shared_per_block, "shared_per_block");
  check(device.registers_per_sm, "registers_per_sm");
  check(device.threads_per_sm, "threads_per_sm");
  if (device.major < 8) {
    return "it needs compute capability 8.0 or later; this is " + std::to_string(device.major) + "." +
           std::to_string(device.minor);
  }
  if (device.threads_per_sm < threads || device.registers_per_sm < threads * registers) {
    return "an SM has no room for a block of " + std::to_string(threads) + " threads";
  }
  return "";
}

struct ClusterSize {
  int64_t blocks, at_once;

  int64_t most_teams() const { return kMostTurns * at_once; }
};

// The sizes of clusters to try: what every GPU that has clusters takes, and what it must be allowed.
inline std::array<ClusterSize, 2> cluster_sizes(const DeviceLimits& device) {
  return {ClusterSize{8, device.clusters_of_8}, ClusterSize{16, device.clusters_of_16}};
}

// Why there can be no cluster at all, or empty.
inline std::string why_no_clusters(const DeviceLimits& device) {
  if (device.major < 9) {
    return "clusters need compute capability 9.0 or later; this is " + std::to_string(device.major) + "." +
           std::to_string(device.minor);
  }
  return device.clusters_of_8 + device.clusters_of_16 > 0 ? "" : "no cluster of 8 blocks can run, or they are off";
}

// The better of a plan for one grid and one for clusters, or neither, by what a step of all teams costs; what has no
// plan says why. `clusters.no_cluster` says why there is none where there is none.
template <typename Plan>
Plan better(Plan grid, int64_t grid_cost, Plan clusters, int64_t clusters_cost) {
  if (clusters.cluster > 0 && (!grid.reason.empty() || clusters_cost < grid_cost)) return clusters;
  grid.no_cluster = clusters.no_cluster;
  if (clusters.cluster > 0) {
    grid.no_cluster = "a step in clusters of " + std::to_string(clusters.cluster) + " would take " +
                      std::to_string(100 * clusters_cost / grid_cost) + "% of the grid's, by the planner's estimates";
  }
  return grid;
}

// Bytes of shared memory that one block of an SM can have.
inline int64_t shared_room(const DeviceLimits& device) {
  return std::min(device.shared_per_block, device.shared_per_sm - kReserved);
}

// Where no plan in clusters fits; `nearest` needs the least memory of those that could be laid out, and is empty where
// none could.
template <typename Plan>
std::string why_no_cluster(const Plan& nearest, int64_t H, int64_t largest, int64_t room) {
  if (nearest.cluster == 0) {
    return "H = " + std::to_string(H) + " takes " + std::to_string(parts(H, 32)) +
           " blocks of 32 units, and a cluster has up to " + std::to_string(largest);
  }
  return "a block of a cluster of " + std::to_string(nearest.cluster) + " needs " +
         std::to_string(nearest.shared_bytes) + " bytes of shared memory, and has " + std::to_string(room);
}

// Why a launch's barriers are too many, or empty.
inline std::string why_uncounted(int64_t T, int64_t barriers, int64_t team) {
  // The grid barrier counts a team's arrivals in 32 bits, and never sets the counter back.
  if (barriers > std::numeric_limits<uint32_t>::max() / team) {
    return std::to_string(barriers) + " barriers of " + std::to_string(team) +
           " blocks are more than the counter of a team can count";
  }
  // A barrier that gives up leaves its step and phase in 32 bits.
  if (T > kMost / 2) return "T = " + std::to_string(T) + " is more steps than a stopped barrier can name";
  return "";
}

}  // namespace rnnsearch::cuda
