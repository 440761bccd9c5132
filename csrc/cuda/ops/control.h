// What Python may ask and set, beside the ops.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../planner/planner.h"

namespace rnnsearch::cuda {

// The ops whose launches may give up, by the number that a report carries.
enum class Scan : uint32_t { gru_scan, gru_scan_backward, decoder_scan, decoder_scan_backward };
const char* name_of(Scan scan);

// std::runtime_error where a launch gave up since the last look; reads a word of host memory and waits for nothing.
void raise_if_stopped();

// Polls at a barrier before a launch gives up.
uint32_t spin_limit();
void set_spin_limit(uint32_t polls);

DeviceLimits device_limits(int device);

// Whether a scan may be launched in thread-block clusters where the GPU has them; false from the start with
// RNNSEARCH_CUDA_CLUSTERS=0.
bool use_clusters();
void set_use_clusters(bool use);

// The backend that runs, step by step, what has no plan.
const std::string& per_step_backend();
void set_per_step_backend(const std::string& name);

}  // namespace rnnsearch::cuda
