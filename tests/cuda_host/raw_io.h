// Sizes and tensors in at standard input, results out at standard output, both raw; floats whatever the kernel is
// given. Buffers start as NaN and are exactly as large as promised.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "grid_barrier.h"

namespace rnnsearch::cuda {

inline void check(bool good, const char* what) {
  if (!good) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(2);
  }
}

template <typename T>
std::vector<T> read(size_t count) {
  std::vector<T> values(count);
  check(std::fread(values.data(), sizeof(T), count, stdin) == count, "the input ends early");
  return values;
}

template <typename T>
std::vector<T> read_as(size_t count) {
  std::vector<T> values;
  for (float value : read<float>(count)) values.push_back(from_float<T>(value));
  return values;
}

template <typename T>
void write(const std::vector<T>& values) {
  std::vector<float> floats;
  for (T value : values) floats.push_back(to_float(value));
  std::fwrite(floats.data(), sizeof(float), floats.size(), stdout);
}

template <typename T>
std::vector<T> poisoned(size_t count) {
  return std::vector<T>(count, from_float<T>(std::numeric_limits<float>::quiet_NaN()));
}

template <typename T>
const T* or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

// 0, or 3 where a barrier of the launch was given up: the place is said. `stopped` is read after the launch.
inline int status_of(const char* error, const uint32_t& stopped) {
  check(error == nullptr, error ? error : "");
  if (stopped) std::fprintf(stderr, "stopped at step %d, phase %d\n", Stopped::step(stopped), Stopped::phase(stopped));
  return stopped ? 3 : 0;
}

}  // namespace rnnsearch::cuda
