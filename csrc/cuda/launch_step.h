// From arguments to the launches of a decoder step's products and gates: null, or why there was none.
#pragma once

#include "kernels/linear.h"
#include "kernels/step_gates.h"

namespace rnnsearch::cuda {

template <typename Storage>
const char* launch_linear(const LinearArguments<Storage>& arguments, Stream stream) {
  return launch(linear<Storage>, arguments, arguments.launch(), stream);
}

template <typename Storage>
const char* launch_step_gates(const StepGatesArguments<Storage>& arguments, Stream stream) {
  return launch(step_gates<Storage>, arguments, arguments.launch(), stream);
}

}  // namespace rnnsearch::cuda
