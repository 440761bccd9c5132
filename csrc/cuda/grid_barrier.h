// A barrier between the blocks of a team (all blocks that share rows of the batch).
//
// One counter a team, zero at the launch and never set back: at the n-th barrier every block adds one and waits until
// n times the team's size have come. So no block can mistake an old arrival for a new one, and a launch that was
// given up leaves nothing behind: the next one brings a fresh counter. A block that waited for `spin_limit` polls
// writes where it stood into `stopped` and leaves; everyone who waits sees that and leaves too. Never a hang.
#pragma once

#include "platform.h"

namespace rnnsearch::cuda {

// What the host reads after a launch: 0, or the place of the first block that gave up.
struct Stopped {
  static constexpr int kPhases = 4;
  RNNSEARCH_DEVICE static uint32_t place(int step, int phase) { return 1u + uint32_t(step) * kPhases + phase; }
  static int step(uint32_t stopped) { return static_cast<int>((stopped - 1) / kPhases); }
  static int phase(uint32_t stopped) { return static_cast<int>((stopped - 1) % kPhases); }
};

// One thread of a block: until `count` have come or someone gave up. What `stopped` holds then is for the whole block.
RNNSEARCH_DEVICE void poll_until(const uint32_t* arrived, uint32_t count, uint32_t* stopped, uint32_t spin_limit,
                                 uint32_t place) {
  uint32_t polls = 0;
  while (load_acquire(arrived) < count && load_acquire(stopped) == 0) {
    if (++polls >= spin_limit) {
      exchange_if_zero(stopped, place);
    } else {
      pause();
    }
  }
}

struct GridBarrier {
  uint32_t* arrived;    // the team's counter
  uint32_t* stopped;    // one for the launch
  uint32_t team;        // blocks of the team
  uint32_t spin_limit;  // polls before giving up
  uint32_t* verdict;    // in shared memory
  uint32_t epoch = 0;

  // Everything written before by any block of the team is seen after by all. False: leave the kernel.
  RNNSEARCH_DEVICE bool wait(int step, int phase) {
    block_barrier();  // the block's writes come before its arrival
    epoch += team;
    if (thread_index() == 0) {
      add_release(arrived, 1);
      poll_until(arrived, epoch, stopped, spin_limit, Stopped::place(step, phase));
      *verdict = load_acquire(stopped);
    }
    block_barrier();
    return *verdict == 0;
  }
};

}  // namespace rnnsearch::cuda
