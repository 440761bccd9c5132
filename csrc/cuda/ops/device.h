// Where the binding meets the machine: on a GPU, or on the host for tests, where the ops are those of a backend of
// another name on CPU tensors. Everything else in this folder knows no difference.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <map>
#include <mutex>
#include <stdexcept>

#include "../clusters.h"
#include "../planner/planner.h"
#include "control.h"

#ifdef __CUDACC__
#include <torch/csrc/stable/accelerator.h>

#define RNNSEARCH_OPS(m) STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CUDA, m)
#define RNNSEARCH_OVERLOAD "cuda"

namespace rnnsearch::cuda {

// The tensor's device is the current one as long as this lives.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline Stream current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(error_taken(error));
}

// Asked once for each device.
inline DeviceLimits known_limits_of(int device) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(device); found != known.end()) return found->second;
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  const int shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const bool clusters = attribute(cudaDevAttrClusterLaunch) != 0;
  return known[device] = {attribute(cudaDevAttrComputeCapabilityMajor),
                          attribute(cudaDevAttrComputeCapabilityMinor),
                          attribute(cudaDevAttrMultiProcessorCount),
                          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                          shared_per_block,
                          attribute(cudaDevAttrMaxRegistersPerMultiprocessor),
                          attribute(cudaDevAttrMaxThreadsPerMultiProcessor),
                          clusters ? resident_clusters(8, shared_per_block) : 0,
                          clusters ? resident_clusters(16, shared_per_block) : 0};
}

// A word that kernels of every device can write and the host reads without waiting; kept until the process ends. The
// first call may be one that a graph captures, which forbids allocations unless told that this one is none of its own.
inline uint64_t* report_word() {
  static uint64_t* const word = [] {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    void* memory = nullptr;
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    const cudaError_t error = cudaHostAlloc(&memory, sizeof(uint64_t), cudaHostAllocPortable | cudaHostAllocMapped);
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    check(error);
    *static_cast<uint64_t*>(memory) = 0;
    return static_cast<uint64_t*>(memory);
  }();
  return word;
}

// Two matrices, or batches of them, of a 16-bit type: "aten::mm" or "aten::bmm" with a float32 result.
inline torch::stable::Tensor product_of_halves(const char* name, const torch::stable::Tensor& left,
                                               const torch::stable::Tensor& right) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(left), from(right), from(torch::headeronly::ScalarType::Float)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "dtype", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace rnnsearch::cuda
#else
#define RNNSEARCH_OPS(m) STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m)
#define RNNSEARCH_OVERLOAD "cuda_host"

namespace rnnsearch::cuda {

class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor&) {}
};

inline Stream current_stream(const torch::stable::Tensor&) { return {}; }

// An H200's, but for the SMs and the clusters: a machine runs only so many threads.
inline DeviceLimits known_limits_of(int) {
  return {9, 0, 4, 228 * 1024, 227 * 1024, 65536, 2048, resident_clusters(8, 0), resident_clusters(16, 0)};
}

inline uint64_t* report_word() {
  alignas(8) static uint64_t word = 0;
  return &word;
}

// The library has no such product on CPUs.
inline torch::stable::Tensor product_of_halves(const char*, const torch::stable::Tensor& left,
                                               const torch::stable::Tensor& right) {
  using torch::headeronly::ScalarType;
  return torch::stable::matmul(torch::stable::to(left, ScalarType::Float), torch::stable::to(right, ScalarType::Float));
}

}  // namespace rnnsearch::cuda
#endif

namespace rnnsearch::cuda {

// What the planner goes by.
inline DeviceLimits limits_of(int device) {
  DeviceLimits limits = known_limits_of(device);
  if (!use_clusters()) limits.clusters_of_8 = limits.clusters_of_16 = 0;
  return limits;
}

}  // namespace rnnsearch::cuda
