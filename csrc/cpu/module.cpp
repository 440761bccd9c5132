// The Python module rnnsearch_kernels._cpu: what has no tensors. The ops register themselves with torch (ops/*.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <stdexcept>

#include "dispatch.h"
#include "ops/scan_forms.h"
#include "../cuda/planner/planner.h"

namespace py = pybind11;

namespace {

std::vector<std::string> ops() {
  return {"linear",         "additive_attention", "additive_attention_backward",
          "decoder_step",   "decoder_scan",       "decoder_scan_backward",
          "gru_scan",       "gru_scan_backward",  "vocabulary_topk",
          "vocabulary_loss"};
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

py::dict decoder_scan_forms(const std::string& dtype, int64_t source_length, int64_t target_length,
                            int64_t memory_size) {
  const auto form = [&](rnnsearch::FormCosts costs) {
    using rnnsearch::memory_gates_pay;
    const bool pay = dtype == "bfloat16"
                         ? memory_gates_pay<rnnsearch::BFloat16>(costs, source_length, target_length, memory_size)
                         : memory_gates_pay<float>(costs, source_length, target_length, memory_size);
    return pay ? "memory_gates" : "contexts";
  };
  py::dict forms;
  forms["forward"] = form(rnnsearch::kForwardCosts);
  forms["backward"] = form(rnnsearch::kBackwardCosts);
  return forms;
}

rnnsearch::cuda::Storage storage_of(const std::string& name) {
  using rnnsearch::cuda::Storage;
  if (name == "float32") return Storage::float32;
  if (name == "bfloat16") return Storage::bfloat16;
  if (name == "float16") return Storage::float16;
  throw std::invalid_argument("`dtype` must be float32, bfloat16 or float16; got " + name);
}

using Limits = std::map<std::string, int64_t>;

rnnsearch::cuda::DeviceLimits device_limits(const Limits& limits) {
  const auto limit = [&](const char* name) { return limits.at(name); };
  return {static_cast<int>(limit("major")),
          static_cast<int>(limit("minor")),
          static_cast<int>(limit("processors")),
          limit("shared_per_sm"),
          limit("shared_per_block"),
          static_cast<int>(limit("registers_per_sm")),
          static_cast<int>(limit("threads_per_sm")),
          static_cast<int>(limit("clusters_of_8")),
          static_cast<int>(limit("clusters_of_16"))};
}

// What every plan says.
template <typename Plan>
py::dict described(const Plan& plan) {
  py::dict result;
  const auto said = [](const std::string& why) { return why.empty() ? py::object(py::none()) : py::str(why); };
  result["reason"] = said(plan.reason);
  result["cluster"] = plan.cluster;
  result["no_cluster"] = said(plan.no_cluster);
  result["row_groups"] = plan.row_groups;
  result["threads"] = plan.threads;
  result["rows"] = plan.rows;
  result["weight_bytes"] = plan.weight_bytes;
  result["shared_bytes"] = plan.shared_bytes;
  result["workspace_bytes"] = plan.workspace_bytes;
  result["barriers_per_step"] = plan.barriers_per_step;
  result["barriers"] = plan.barriers;
  return result;
}

py::dict plan_gru_scan(bool backward, const std::string& dtype, bool reset_after, int64_t B, int64_t T, int64_t H,
                       const Limits& limits) {
  const auto plan =
      rnnsearch::cuda::plan_gru_scan({backward, storage_of(dtype), reset_after, B, T, H}, device_limits(limits));
  py::dict result = described(plan);
  result["unit_groups"] = plan.unit_groups;
  result["units"] = plan.units;
  return result;
}

py::dict plan_decoder_scan(bool backward, const std::string& dtype, bool reset_after, int64_t B, int64_t T, int64_t S,
                           int64_t H, int64_t A, const Limits& limits) {
  const auto plan = rnnsearch::cuda::plan_decoder_scan({backward, storage_of(dtype), reset_after, B, T, S, H, A},
                                                       device_limits(limits));
  py::dict result = described(plan);
  result["team"] = plan.team;
  result["tiles"] = plan.tiles;
  result["candidate_tiles"] = plan.candidate_tiles;
  result["splits"] = plan.splits;
  result["kept_keys"] = plan.kept_keys;
  result["kept_gates"] = plan.kept_gates;
  result["row_meetings"] = plan.row_meetings;
  return result;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "rnnsearch_kernels' C++ kernels for CPUs";
  m.def("ops", &ops, "The ops of the list that have a kernel here.");
  m.def("build_info", &build_info, "Compiler, flags, instruction sets and the oldest torch this was built for.");
  m.def("decoder_scan_forms", &decoder_scan_forms, py::arg("dtype"), py::arg("source_length"), py::arg("target_length"),
        py::arg("memory_size"), "Whether decoder_scan and its backward pass sum contexts or memory_gates.");
  m.def("plan_gru_scan", &plan_gru_scan, "How a scan lies on a GPU; rnnsearch_kernels.planning documents it.");
  m.def("plan_decoder_scan", &plan_decoder_scan, "The same of decoder_scan.");
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
