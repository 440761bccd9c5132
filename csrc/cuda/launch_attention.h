// From arguments to the launches of attention's kernels: null, or why there was none.
#pragma once

#include "kernels/additive_attention_backward.h"

namespace rnnsearch::cuda {

template <typename Storage>
const char* launch_attention_scores(const ScoreArguments<Storage>& arguments, Stream stream) {
  return launch(attention_scores<Storage>, arguments, arguments.launch(), stream);
}

template <typename Storage>
const char* launch_attention_output(const AttendArguments<Storage>& arguments, Stream stream) {
  return launch(attention_output<Storage>, arguments, arguments.launch(), stream);
}

template <typename Storage>
const char* launch_attention_grad_weights(const GradWeightsArguments<Storage>& arguments, Stream stream) {
  return launch(attention_grad_weights<Storage>, arguments, arguments.launch(), stream);
}

template <typename Storage>
const char* launch_attention_grad_query(const GradQueryArguments<Storage>& arguments, Stream stream) {
  return launch(attention_grad_query<Storage>, arguments, arguments.launch(), stream);
}

template <typename Storage>
const char* launch_attention_grad_keys(const GradKeysArguments<Storage>& arguments, Stream stream) {
  return launch(attention_grad_keys<Storage>, arguments, arguments.launch(), stream);
}

template <typename Storage>
const char* launch_zero_rows(const ZeroRowsArguments<Storage>& arguments, Stream stream) {
  return launch(zero_rows<Storage>, arguments, arguments.launch(), stream);
}

}  // namespace rnnsearch::cuda
