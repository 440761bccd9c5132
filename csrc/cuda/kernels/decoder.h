// What the persistent decoder scans share, forward and backward.
//
// The blocks form row_groups teams of `team` blocks. A team runs `rows` rows of the batch through the whole sequence;
// teams never meet. In a product a block of it takes some columns, whose weights stay in its shared memory. In the
// attention a row's source is split into `splits` parts, and the rows' parts are dealt out to the team's blocks, the
// same for every step. Where a row has more than one part, the blocks that have one meet, by a counter of the row, or
// in a cluster with everybody.
#pragma once

#include "attention.h"
#include "gru.h"

namespace rnnsearch::cuda {

constexpr int kDecoderThreads = 384;  // of a block, at the most

// Tiles of columns that a warp takes together: registers have room for eight, and for five of four bytes.
RNNSEARCH_BOTH constexpr int most_tiles(size_t bytes) { return bytes == 4 ? 5 : 8; }
RNNSEARCH_BOTH constexpr int tiles_together(int tiles, size_t bytes) { return tiles <= 4 ? 4 : most_tiles(bytes); }

// `size` things in `parts` shares, as equal as can be.
struct Shares {
  int size, parts;

  RNNSEARCH_BOTH int first(int part) const { return static_cast<int>(int64_t(size) * part / parts); }
  RNNSEARCH_BOTH int most() const { return (size + parts - 1) / parts; }  // of one share
  RNNSEARCH_BOTH int of(int which) const { return static_cast<int>((int64_t(parts) * (which + 1) - 1) / size); }
};

struct DecoderShape {
  int B, T, S, H, A;
  int rows, row_groups;        // rows * row_groups >= B
  int team;                    // blocks of a team, at least `splits`
  int tiles, candidate_tiles;  // of 8 columns, of a block; the second of a product with the state after its reset
  int splits;                  // of a row's source
  int kept_keys, kept_gates;   // positions of a block whose keys, and memory_gates, stay in its shared memory
  bool reset_after;
  bool cluster;                  // a team is one
  const int64_t* lengths;        // (B,) or null
  const bool* key_padding_mask;  // (B, S) or null

  RNNSEARCH_BOTH int blocks() const { return row_groups * team; }
  RNNSEARCH_BOTH int positions() const { return (S + splits - 1) / splits; }               // of one part, at the most
  RNNSEARCH_BOTH int parts_of_block() const { return (rows * splits + team - 1) / team; }  // at the most
  // A counter a team, Stopped, a counter a row: zero at the launch.
  RNNSEARCH_BOTH int barrier_words() const { return row_groups + 1 + (splits > 1 ? B : 0); }

  RNNSEARCH_DEVICE bool within(size_t row, int step) const { return !lengths || step < lengths[row]; }
  RNNSEARCH_DEVICE bool real(size_t row, int position) const {
    return !key_padding_mask || !key_padding_mask[row * S + position];
  }
};

// A part of a row's source, and of its units.
struct RowPart {
  size_t row;
  int ordinal;              // among the block's
  int split, first, count;  // positions
  int first_unit, units;    // hidden units

  RNNSEARCH_DEVICE RowPart(const DecoderShape& shape, int first_row, int item) {
    row = first_row + item / shape.splits;
    ordinal = item / shape.team;
    split = item % shape.splits;
    first = split * shape.positions();
    count = shape.S - first < shape.positions() ? shape.S - first : shape.positions();
    if (count < 0) count = 0;
    const Shares of_units{shape.H, shape.splits};
    first_unit = of_units.first(split);
    units = of_units.first(split + 1) - first_unit;
  }
};

// What a block does in its team.
struct DecoderPart {
  int team, member;     // its team, and which of the team's blocks it is
  int first_row, rows;  // of the team, that exist
  int items;            // RowParts of the team; the block's are member, member + team, ...

  RNNSEARCH_DEVICE explicit DecoderPart(const DecoderShape& shape) {
    team = block_index() / shape.team;
    member = block_index() % shape.team;
    first_row = team * shape.rows;
    rows = shape.B - first_row < shape.rows ? shape.B - first_row : shape.rows;
    items = rows * shape.splits;
  }
};

// The tiles of one block of a product with so many columns in all.
RNNSEARCH_DEVICE int tiles_of(int member, int tiles, int columns) {
  const int left = (columns + 7) / 8 - member * tiles;
  return left < 0 ? 0 : left < tiles ? left : tiles;
}

// Columns of weights into shared memory, zero where there is none: row_of(c) is the row of a matrix (…, size).
template <typename Storage, typename RowOf>
RNNSEARCH_DEVICE void keep_columns(Storage* to, int stride, int columns, int first, int total, int size,
                                   const RowOf& row_of) {
  const int depth = padded_depth(size);
  for (int i = thread_index(); i < columns * depth; i += thread_count()) {
    const int column = i / depth, k = i % depth;
    const bool real = first + column < total && k < size;
    to[size_t(column) * stride + k] = real ? row_of(first + column)[k] : from_float<Storage>(0);
  }
}

// A tensor (B, S, width) at a part's positions: the first of them in shared memory, where the block keeps so many.
template <typename Storage>
struct PartRows {
  Storage* kept;
  const Storage* rest;
  int count, width;  // kept of this part
  bool aligned;

  RNNSEARCH_DEVICE PartRows(const DecoderShape& shape, const RowPart& at, const Storage* values, int width_,
                            Storage* of_block, int kept_of_block)
      : width(width_), aligned(fours_aligned(values, width_)) {
    const int before = at.ordinal * shape.positions();
    kept = of_block + size_t(before) * width;
    rest = values + (at.row * shape.S + at.first) * width;
    count = kept_of_block - before < 0 ? 0 : kept_of_block - before < at.count ? kept_of_block - before : at.count;
  }
  // Columns [column, column + 4) at position j of the part, zero past the last.
  RNNSEARCH_DEVICE Floats4 four(int j, int column) const {
    return four_of_row((j < count ? kept : rest) + size_t(j) * width, column, width, aligned);
  }
  // Fills what is kept of this part.
  RNNSEARCH_DEVICE void keep() const {
    for (int i = thread_index(); i < count * width; i += thread_count()) kept[i] = rest[i];
  }
};

// Bytes of what is kept, so that what follows is aligned.
RNNSEARCH_BOTH size_t kept_bytes(int positions, int width, size_t size) {
  return (size_t(positions) * width * size + 15) / 16 * 16;
}

// The blocks that share a row, for all rows that this block has a part of; `epoch` counts the meetings. Everything
// written before by any of them is seen after by all. False: leave the kernel.
RNNSEARCH_DEVICE bool meet_rows(const DecoderShape&, const DecoderPart&, ClusterTeam& team, uint32_t*, uint32_t,
                                int step, int phase) {
  return team.wait(step, phase);
}
RNNSEARCH_DEVICE bool meet_rows(const DecoderShape& shape, const DecoderPart& part, GridTeam& team,
                                uint32_t* rows_arrived, uint32_t epoch, int step, int phase) {
  const GridBarrier& barrier = team.barrier;
  block_barrier();
  if (thread_index() == 0) {
    for (int item = part.member; item < part.items; item += shape.team) {
      add_release(rows_arrived + part.first_row + item / shape.splits, 1);
    }
    for (int item = part.member; item < part.items; item += shape.team) {
      poll_until(rows_arrived + part.first_row + item / shape.splits, epoch * shape.splits, barrier.stopped,
                 barrier.spin_limit, Stopped::place(step, phase));
    }
    *barrier.verdict = load_acquire(barrier.stopped);
  }
  block_barrier();
  return *barrier.verdict == 0;
}

// Stopped's phases.
enum DecoderPhase { kProjected = 0, kRowShared = 1, kAttended = 2, kCandidate = 3 };

}  // namespace rnnsearch::cuda
