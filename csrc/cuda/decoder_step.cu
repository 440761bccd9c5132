#include "launch_step.h"

namespace rnnsearch::cuda {

#define RNNSEARCH_STEP(STORAGE)                                                \
  template const char* launch_linear(const LinearArguments<STORAGE>&, Stream); \
  template const char* launch_step_gates(const StepGatesArguments<STORAGE>&, Stream);

RNNSEARCH_STEP(float)
RNNSEARCH_STEP(bfloat16)
RNNSEARCH_STEP(float16)

}  // namespace rnnsearch::cuda
