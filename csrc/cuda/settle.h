// What follows a launch whose blocks wait for one another: nothing, or, where they gave up, results that nobody can
// take for good ones and a word for the host. Both happen on the stream, so a captured launch does them at every replay
// and nobody waits for them.
#pragma once

#include "grid_barrier.h"

namespace rnnsearch::cuda {

// What the host is told: who gave up, and Stopped's place. 0: nobody.
struct Report {
  static uint64_t of(uint32_t op, uint32_t place) { return uint64_t(op + 1) << 32 | place; }
  static uint32_t op(uint64_t report) { return static_cast<uint32_t>(report >> 32) - 1; }
  static uint32_t place(uint64_t report) { return static_cast<uint32_t>(report); }
};

struct SettleArguments {
  static constexpr int kMost = 8;
  const uint32_t* stopped;
  uint64_t who;      // Report::of(op, 0)
  uint64_t* report;  // of the host
  int count;
  void* results[kMost];  // to be filled with ones, which is NaN in every storage type
  size_t bytes[kMost];   // of each
};

const char* launch_settle(const SettleArguments& arguments, Stream stream);

}  // namespace rnnsearch::cuda
