// A block of a persistent decoder scan, forward or backward: what both have, and what it hands to one other block.
#pragma once

#include "decoder.h"

namespace rnnsearch::cuda {

// In a cluster: floats that a part of a row is sent, in the shared memory of the block that has it.
struct Inbox {
  float* floats;
  int width;  // from one of the block's parts to the next
  int splits, team;

  RNNSEARCH_DEVICE float* of(const RowPart& at) const { return floats + size_t(at.ordinal) * width; }
  RNNSEARCH_DEVICE void send(int row, int split, int at, float value) const {
    const int item = row * splits + split;
    put_in_block(floats + size_t(item / team) * width + at, item % team, value);
  }
};

// What a part of a row leaves to who merges the parts: `kinds` sums of each of some columns, which the row's blocks
// share out, and two numbers of its own that all of them read.
struct PartSums {
  int kinds;
  Shares columns;

  RNNSEARCH_BOTH int of_split() const { return kinds * columns.most(); }  // sums of a share
  // Floats of an inbox: sums by part, kind and column of the share, then the two numbers by part.
  RNNSEARCH_BOTH int received() const { return columns.parts > 1 ? columns.parts * (of_split() + 2) : 0; }
  // Floats of a part in global memory: sums by kind and column, and behind them the two numbers.
  RNNSEARCH_BOTH int width() const { return round_up_to_four(kinds * columns.size) + 4; }
};

// On their way: in a cluster to the inboxes, from `first` of each on, otherwise through `partial`, (B, splits,
// width()).
template <typename Team>
struct HandedSums {
  PartSums sums;
  Inbox inbox;
  int first, first_row;
  float* partial;

  RNNSEARCH_DEVICE float* partial_of(const RowPart& at, int split) const {
    return partial + (at.row * sums.columns.parts + split) * sums.width();
  }
  RNNSEARCH_DEVICE void give(const RowPart& at, int kind, int column, float value) const {
    if constexpr (Team::kCluster) {
      const int to = sums.columns.of(column), share = sums.columns.most();
      inbox.send(static_cast<int>(at.row) - first_row, to,
                 first + (at.split * sums.kinds + kind) * share + column - sums.columns.first(to), value);
    } else {
      partial_of(at, at.split)[kind * sums.columns.size + column] = value;
    }
  }
  RNNSEARCH_DEVICE void give_numbers(const RowPart& at, float one, float other) const {
    if constexpr (Team::kCluster) {
      for (int split = 0; split < sums.columns.parts; ++split) {
        const int row = static_cast<int>(at.row) - first_row, to = first_number() + 2 * at.split;
        inbox.send(row, split, to, one);
        inbox.send(row, split, to + 1, other);
      }
    } else {
      float* const numbers = partial_of(at, at.split) + sums.width() - 2;
      numbers[0] = one;
      numbers[1] = other;
    }
  }
  // Of a part of the row, a column of this block's share.
  RNNSEARCH_DEVICE float sum(const RowPart& at, int split, int kind, int column) const {
    if constexpr (Team::kCluster) {
      const int here = column - sums.columns.first(at.split);
      return inbox.of(at)[first + (split * sums.kinds + kind) * sums.columns.most() + here];
    }
    return load_fresh(partial_of(at, split) + kind * sums.columns.size + column);
  }
  RNNSEARCH_DEVICE float number(const RowPart& at, int split, int which) const {
    if constexpr (Team::kCluster) return inbox.of(at)[first_number() + 2 * split + which];
    return load_fresh(partial_of(at, split) + sums.width() - 2 + which);
  }

 private:
  RNNSEARCH_DEVICE int first_number() const { return first + sums.columns.parts * sums.of_split(); }
};

// What a block of either scan has.
template <typename Storage, template <typename> class Arguments, template <typename> class Layout, typename Team>
struct DecoderBlock {
  const Arguments<Storage>& a;
  const DecoderShape& shape;
  const DecoderPart part;
  const Layout<Storage> layout;
  const int H, A;
  char* const shared;
  const Inbox inbox;

  RNNSEARCH_DEVICE explicit DecoderBlock(const Arguments<Storage>& arguments)
      : a(arguments),
        shape(arguments.shape),
        part(arguments.shape),
        layout(arguments.shape, thread_count()),
        H(arguments.shape.H),
        A(arguments.shape.A),
        shared(shared_memory()),
        inbox{floats(layout.inbox), layout.inbox_width, arguments.shape.splits, arguments.shape.team} {}

  RNNSEARCH_DEVICE float* floats(size_t offset) const { return reinterpret_cast<float*>(shared + offset); }
  RNNSEARCH_DEVICE Storage* values(size_t offset) const { return reinterpret_cast<Storage*>(shared + offset); }
  RNNSEARCH_DEVICE TeamArguments team() const {
    return {a.barriers, shape.row_groups, part.team,
            shape.team, a.spin_limit,     reinterpret_cast<uint32_t*>(shared + layout.verdict)};
  }
  RNNSEARCH_DEVICE float mask(size_t row, int unit) const { return a.state_mask ? a.state_mask[row * H + unit] : 1; }
  RNNSEARCH_DEVICE PartRows<Storage> keys_of(const RowPart& at) const {
    return {shape, at, a.keys, A, values(layout.keys), shape.kept_keys};
  }
  RNNSEARCH_DEVICE PartRows<Storage> memory_gates_of(const RowPart& at) const {
    return {shape, at, a.memory_gates, 3 * H, values(layout.gates), shape.kept_gates};
  }
  // What stays in shared memory of the block's parts, and zero where nothing is ever sent.
  RNNSEARCH_DEVICE void keep_parts() const {
    for (int item = part.member; item < part.items; item += shape.team) {
      const RowPart at(shape, part.first_row, item);
      keys_of(at).keep();
      memory_gates_of(at).keep();
    }
    if constexpr (Team::kCluster) {
      for (int i = thread_index(); i < shape.parts_of_block() * inbox.width; i += thread_count()) inbox.floats[i] = 0;
    }
  }
};

}  // namespace rnnsearch::cuda
