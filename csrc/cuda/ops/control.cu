#include "control.h"

#include <atomic>
#include <cstdlib>

#include "../settle.h"
#include "device.h"

namespace rnnsearch::cuda {
namespace {

// A poll takes the better part of a microsecond, so this is about a minute: longer than a GPU that is shared keeps
// a launch waiting, shorter than anybody's patience. Not measured.
std::atomic<uint32_t> polls{uint32_t(1) << 26};
std::string per_step;

bool clusters_wanted() {
  const char* const variable = std::getenv("RNNSEARCH_CUDA_CLUSTERS");
  return variable == nullptr || std::string(variable) != "0";
}
std::atomic<bool> clusters{clusters_wanted()};

}  // namespace

const char* name_of(Scan scan) {
  switch (scan) {
    case Scan::gru_scan:
      return "gru_scan";
    case Scan::gru_scan_backward:
      return "gru_scan_backward";
    case Scan::decoder_scan:
      return "decoder_scan";
    case Scan::decoder_scan_backward:
      return "decoder_scan_backward";
  }
  return "a scan";
}

void raise_if_stopped() {
  if (__atomic_load_n(report_word(), __ATOMIC_ACQUIRE) == 0) return;
  const uint64_t report = __atomic_exchange_n(report_word(), 0, __ATOMIC_ACQ_REL);
  if (report == 0) return;  // another thread has it
  const uint32_t place = Report::place(report);
  throw std::runtime_error("rnnsearch::" + std::string(name_of(static_cast<Scan>(Report::op(report)))) +
                           "." RNNSEARCH_OVERLOAD ", called earlier, gave up at step " +
                           std::to_string(Stopped::step(place)) + ", phase " + std::to_string(Stopped::phase(place)) +
                           ": its blocks waited for one another in vain. Its results are NaN");
}

uint32_t spin_limit() { return polls; }
void set_spin_limit(uint32_t limit) { polls = limit; }

DeviceLimits device_limits(int device) { return limits_of(device); }

bool use_clusters() { return clusters; }
void set_use_clusters(bool use) { clusters = use; }

const std::string& per_step_backend() { return per_step; }
void set_per_step_backend(const std::string& name) { per_step = name; }

}  // namespace rnnsearch::cuda
