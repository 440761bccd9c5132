// How the blocks of a team meet, and how they hand one another what all of them read: the one thing in which a launch
// of thread-block clusters differs from one of a whole grid. A kernel takes one of these two as a parameter.
//
//   wait(step, phase)   what any block of the team wrote before is seen after by all. False: leave the kernel
//   enter(), leave()    before the first give and after the last: a block's shared memory must be there
//   give(p, v)          a value that all blocks of the team read, after the next wait, at their p by read(p)
#pragma once

#include "grid_barrier.h"

namespace rnnsearch::cuda {

// What a team is made of. `barriers`: a counter a team, then Stopped, all zero at the launch.
struct TeamArguments {
  uint32_t* barriers;
  int teams, team, blocks;  // which of how many, and of how many blocks
  uint32_t spin_limit;
  uint32_t* verdict;  // in shared memory
};

// All blocks of the launch are resident. They meet at a counter; p is in global memory, read past L1.
struct GridTeam {
  static constexpr bool kCluster = false, kHere = true;
  GridBarrier barrier;

  RNNSEARCH_DEVICE explicit GridTeam(const TeamArguments& a)
      : barrier{a.barriers + a.team, a.barriers + a.teams, static_cast<uint32_t>(a.blocks), a.spin_limit, a.verdict} {}

  RNNSEARCH_DEVICE void enter() const {}
  RNNSEARCH_DEVICE void leave() const {}
  RNNSEARCH_DEVICE bool wait(int step, int phase) { return barrier.wait(step, phase); }

  template <typename T>
  RNNSEARCH_DEVICE void give(T* to, T value) const {
    *to = value;
  }
  template <typename T>
  RNNSEARCH_DEVICE static T read(const T* p) {
    return load_fresh(p);
  }
};

// A team is a cluster, whose blocks the hardware starts together; clusters may run one after another. They meet at its
// barrier, which cannot be bounded and need not be: who is waited for is running. p is in every block's shared memory.
struct ClusterTeam {
  static constexpr bool kCluster = true, kHere = kClusters;
  int blocks;

  RNNSEARCH_DEVICE explicit ClusterTeam(const TeamArguments& a) : blocks(a.blocks) {}

  RNNSEARCH_DEVICE void enter() const { cluster_barrier(); }
  RNNSEARCH_DEVICE void leave() const { cluster_barrier(); }
  RNNSEARCH_DEVICE bool wait(int, int) const {
    cluster_barrier();
    return true;
  }

  template <typename T>
  RNNSEARCH_DEVICE void give(T* to, T value) const {
    for (int rank = 0; rank < blocks; ++rank) put_in_block(to, rank, value);
  }
  template <typename T>
  RNNSEARCH_DEVICE static T read(const T* p) {
    return load_shared(p);
  }
};

// A launch of teams, in clusters of so many blocks or, with 0, as a whole grid: null, or why there was none.
template <typename Arguments>
const char* launch_teams(void (*on_grid)(Arguments), void (*in_clusters)(Arguments), const Arguments& arguments,
                         LaunchShape shape, int cluster, Stream stream) {
  return cluster > 0 ? launch_clusters(in_clusters, arguments, shape, cluster, stream)
                     : launch_cooperative(on_grid, arguments, shape, stream);
}

}  // namespace rnnsearch::cuda
