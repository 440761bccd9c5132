// What the persistent GRU scans share, forward and backward.
//
// The blocks form row_groups teams of unit_groups blocks. A team runs `rows` rows of the batch through the whole
// sequence; a block of it owns `units` hidden units, keeps their recurrent weights in shared memory, and alone reads
// and writes their gates and states. Teams never meet; each may be a cluster (team.h).
#pragma once

#include <cmath>

#include "row_products.h"

namespace rnnsearch::cuda {

struct GruShape {
  int B, T, H;
  int rows, row_groups;    // rows * row_groups >= B
  int units, unit_groups;  // units * unit_groups >= H; units is 8, 16 or 32
  bool reverse, reset_after;
  const int64_t* lengths;  // (B,) or null
  bool cluster;            // a team is one

  int blocks() const { return row_groups * unit_groups; }
};

// A block's part of the batch and of the units.
struct GruPart {
  int team, member;                        // its team, and which of the team's blocks it is
  int first_row, rows, first_unit, units;  // rows and units that exist

  RNNSEARCH_DEVICE explicit GruPart(const GruShape& shape) {
    team = block_index() / shape.unit_groups;
    member = block_index() % shape.unit_groups;
    first_row = team * shape.rows;
    first_unit = member * shape.units;
    rows = shape.B - first_row < shape.rows ? shape.B - first_row : shape.rows;
    units = shape.H - first_unit < shape.units ? shape.H - first_unit : shape.units;
    if (units < 0) units = 0;  // a cluster may have blocks to spare
  }
};

// Where step `step` of a row stands in time: from the end of the row's length with `reverse`.
struct StepOfRow {
  bool within;
  int time;

  RNNSEARCH_DEVICE StepOfRow(const GruShape& shape, int row, int step) {
    int length = shape.lengths ? static_cast<int>(shape.lengths[row]) : shape.T;
    if (length > shape.T) length = shape.T;  // nobody looked at values that lie on a GPU
    within = step < length;
    time = shape.reverse && within ? length - 1 - step : step;
  }
};

// s_{t-1} of one unit of a row, at step `step`.
RNNSEARCH_DEVICE float old_state(const GruShape& shape, const float* state, const float* states, size_t row, int step,
                                 size_t unit) {
  if (step == 0) return state[row * shape.H + unit];
  const StepOfRow before(shape, static_cast<int>(row), step - 1);
  return states[(row * shape.T + before.time) * shape.H + unit];
}

RNNSEARCH_DEVICE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

template <typename Storage>
RNNSEARCH_DEVICE float load_float(const void* values, bool storage, size_t at) {
  return storage ? to_float(static_cast<const Storage*>(values)[at]) : static_cast<const float*>(values)[at];
}

template <typename Storage>
RNNSEARCH_DEVICE void store_float(void* values, bool storage, size_t at, float value) {
  if (storage) {
    static_cast<Storage*>(values)[at] = from_float<Storage>(value);
  } else {
    static_cast<float*>(values)[at] = value;
  }
}

// Zero in what pads the depth of `count` rows of H real elements, `stride` apart.
template <typename Storage>
RNNSEARCH_DEVICE void zero_depth_padding(Storage* rows, int count, int stride, int H) {
  const int padding = padded_depth(H) - H;
  for (int i = thread_index(); i < count * padding; i += thread_count()) {
    rows[size_t(i / padding) * stride + H + i % padding] = from_float<Storage>(0);
  }
}

}  // namespace rnnsearch::cuda
