// How a whole scan lies on a GPU as one launch, from sizes and limits alone: plain C++, no CUDA, so that it can be
// asked and tested where no GPU is.
//
// Blocks form row_groups teams of unit_groups blocks. A team takes `rows` rows of the batch and never waits for another
// team; a block of it owns `units` hidden units and holds their recurrent weights in shared memory for all steps, so
// that a step reads no weight from outside. A team is a thread-block cluster where one has room for all of U and a step
// would be the faster for it, by estimates of what a meeting and a byte cost; otherwise all blocks of the grid stay
// resident.
//
// Barriers of a team: one a step where the reset comes after the product, otherwise two. (The forward pass has one more
// before the first step and none after the last product.)
#pragma once

#include <cstdint>
#include <string>

namespace rnnsearch::cuda {

struct DeviceLimits {
  int major, minor;          // compute capability
  int processors;            // SMs
  int64_t shared_per_sm;     // bytes
  int64_t shared_per_block;  // bytes, with the opt-in
  int registers_per_sm;      // of 32 bits
  int threads_per_sm;
  int clusters_of_8, clusters_of_16;  // thread-block clusters that run at once, with a block an SM; 0: no such clusters
};

enum class Storage { float32, bfloat16, float16 };

struct Problem {
  bool backward;
  Storage storage;
  bool reset_after;
  int64_t B, T, H;
};

struct Plan {
  std::string reason;      // why there is none; empty where there is one
  int cluster = 0;         // blocks of a cluster, which is a team; 0: one grid, all of it resident
  std::string no_cluster;  // why a team is no cluster; empty where it is one
  int row_groups = 0, unit_groups = 0, threads = 0;
  int64_t rows = 0;             // of a team; the last team may have fewer that exist
  int64_t units = 0;            // of a block: 8, 16 or 32; the last block may have fewer that exist
  int64_t weight_bytes = 0;     // of a block's weights, in shared memory for all steps
  int64_t shared_bytes = 0;     // of a block: weights, the warps' sums, the state that is carried
  int64_t workspace_bytes = 0;  // global memory beside the results
  int barriers_per_step = 0;
  int64_t barriers = 0;  // of a team, in the whole launch
};

// Throws std::invalid_argument where a size or a limit is not positive, or the sizes are beyond any memory.
Plan plan_gru_scan(const Problem& problem, const DeviceLimits& device);

// decoder_scan: a block of a team holds up to `tiles` times 8 columns of [query_weight ; hidden_weight], those of the
// candidate apart where the reset comes before its product, and attends for its share of the team's rows, each row's
// source in `splits` parts; what room is left holds the keys, then the memory_gates, of some of its positions. Chosen
// by the bytes that a block reads in a step: of the state, of the weights, of its rows' keys and memory_gates.
struct DecoderProblem {
  bool backward;
  Storage storage;
  bool reset_after;
  int64_t B, T, S, H, A;
};

struct DecoderPlan {
  std::string reason;
  int cluster = 0;
  std::string no_cluster;
  int row_groups = 0, team = 0, threads = 0;
  int64_t rows = 0;
  int tiles = 0, candidate_tiles = 0, splits = 0;
  int64_t kept_keys = 0, kept_gates = 0;  // positions of a block whose keys, and memory_gates, stay in shared memory
  int64_t weight_bytes = 0;
  int64_t shared_bytes = 0;     // weights, score_weight, what is kept, and the warps' sums or what the attention needs
  int64_t workspace_bytes = 0;  // memory_gates among them
  int barriers_per_step = 0;    // 2 where the reset comes after the product, otherwise 3
  int64_t barriers = 0;         // of a team
  int64_t row_meetings = 0;     // of the blocks that share a row
};

// Throws as plan_gru_scan.
DecoderPlan plan_decoder_scan(const DecoderProblem& problem, const DeviceLimits& device);

}  // namespace rnnsearch::cuda
