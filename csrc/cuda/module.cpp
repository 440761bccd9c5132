// The Python module rnnsearch_kernels._cuda: what has no tensors. The ops register themselves with torch (ops/*.cu).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops/control.h"

namespace py = pybind11;

namespace {

std::vector<std::string> ops() {
  return {"linear",       "additive_attention", "additive_attention_backward",
          "decoder_step", "decoder_scan",       "decoder_scan_backward",
          "gru_scan",     "gru_scan_backward"};
}

py::dict build_info() {
  py::dict info;
  info["targets"] = RNNSEARCH_CUDA_TARGETS;
  info["torch_target"] =
      py::str("{}.{}").format((TORCH_TARGET_VERSION >> 56) & 0xff, (TORCH_TARGET_VERSION >> 48) & 0xff);
  return info;
}

py::dict device_limits(int device) {
  const rnnsearch::cuda::DeviceLimits limits = rnnsearch::cuda::device_limits(device);
  py::dict result;
  result["major"] = limits.major;
  result["minor"] = limits.minor;
  result["processors"] = limits.processors;
  result["shared_per_sm"] = limits.shared_per_sm;
  result["shared_per_block"] = limits.shared_per_block;
  result["registers_per_sm"] = limits.registers_per_sm;
  result["threads_per_sm"] = limits.threads_per_sm;
  result["clusters_of_8"] = limits.clusters_of_8;
  result["clusters_of_16"] = limits.clusters_of_16;
  return result;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  using rnnsearch::cuda::raise_if_stopped, rnnsearch::cuda::spin_limit, rnnsearch::cuda::set_spin_limit,
      rnnsearch::cuda::set_per_step_backend, rnnsearch::cuda::use_clusters, rnnsearch::cuda::set_use_clusters;
  m.doc() = "rnnsearch_kernels' CUDA kernels";
  m.def("ops", &ops, "The ops of the list that have a kernel here.");
  m.def("build_info", &build_info, "The GPUs and the oldest torch this was built for.");
  m.def("device_limits", &device_limits, py::arg("device"), "What the planner goes by; rnnsearch_kernels.planning.");
  m.def("raise_if_stopped", &raise_if_stopped, "RuntimeError where a launch gave up since the last look.");
  m.def("spin_limit", &spin_limit, "Polls at a barrier before a launch gives up.");
  m.def("set_spin_limit", &set_spin_limit, py::arg("polls"));
  m.def("use_clusters", &use_clusters, "Whether scans may be launched in thread-block clusters.");
  m.def("set_use_clusters", &set_use_clusters, py::arg("use"));
  m.def("set_per_step_backend", &set_per_step_backend, py::arg("name"), "The backend for what has no plan.");
}
