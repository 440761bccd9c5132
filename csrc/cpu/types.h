// What kernels and launchers both speak of: storage types and tensors without their owners.
#pragma once

#include <stdint.h>

namespace rnnsearch {

// bfloat16 as stored: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

// What a storage type is summed and carried in.
template <class S>
struct AccumulateOf {
  using Type = float;
};
template <>
struct AccumulateOf<double> {
  using Type = double;
};
template <class S>
using Accumulate = typename AccumulateOf<S>::Type;

// Rows that may be of the storage or of the accumulate type.
struct Rows {
  const void* data;
  int64_t stride;
  bool is_storage;
};

template <class S>
struct Matrix {
  const S* data;
  int64_t stride;
};

// (B, S, features): the keys, the memory or the prepared gates of all sentences.
template <class S>
struct Sentences {
  const S* data;
  int64_t sentence_stride;
  int64_t position_stride;
  int64_t features;
};
}  // namespace rnnsearch
