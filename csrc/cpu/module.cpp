// The Python module rnnsearch_kernels._cpu: what has no tensors. The ops register themselves with torch (ops/*.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>

#include "dispatch.h"

namespace py = pybind11;

namespace {

std::vector<std::string> ops() {
  return {"linear",       "additive_attention", "additive_attention_backward",
          "decoder_step", "decoder_scan",       "decoder_scan_backward",
          "gru_scan",     "gru_scan_backward",  "vocabulary_topk"};
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
  info["flags"] = RNNSEARCH_FLAGS;
  info["isas"] = rnnsearch::compiled_isas();
  info["torch_target"] =
      py::str("{}.{}").format((TORCH_TARGET_VERSION >> 56) & 0xff, (TORCH_TARGET_VERSION >> 48) & 0xff);
  return info;
}
}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "rnnsearch_kernels' C++ kernels for CPUs";
  m.def("ops", &ops, "The ops of the list that have a kernel here.");
  m.def("build_info", &build_info, "Compiler, flags, instruction sets and the oldest torch this was built for.");
  m.def("isas", &rnnsearch::available_isas, "The compiled instruction sets that this machine has, the best last.");
  m.def("isa", [] { return std::string(rnnsearch::active_isa().name); }, "The instruction set in use.");
  m.def("select_isa", &rnnsearch::select_isa, py::arg("name"), "Use another one; ValueError where it cannot be.");
  if (const char* name = std::getenv("RNNSEARCH_CPU_ISA"); name != nullptr && *name != '\0') {
    try {
      rnnsearch::select_isa(name);
    } catch (const std::invalid_argument& error) {
      throw py::import_error(std::string("RNNSEARCH_CPU_ISA: ") + error.what());
    }
  }
}
