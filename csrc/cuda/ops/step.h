// What the bindings of linear and decoder_step share.
#pragma once

#include "../launch_step.h"
#include "call.h"

namespace rnnsearch::cuda {

// Kernels are compiled in decoder_step.cu alone.
#define RNNSEARCH_STEP(STORAGE)                                                       \
  extern template const char* launch_linear(const LinearArguments<STORAGE>&, Stream); \
  extern template const char* launch_step_gates(const StepGatesArguments<STORAGE>&, Stream);
RNNSEARCH_STEP(float)
RNNSEARCH_STEP(bfloat16)
RNNSEARCH_STEP(float16)
#undef RNNSEARCH_STEP

}  // namespace rnnsearch::cuda
