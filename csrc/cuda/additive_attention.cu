#include "launch_attention.h"

namespace rnnsearch::cuda {

#define RNNSEARCH_ATTENTION(STORAGE)                                                                \
  template const char* launch_attention_scores(const ScoreArguments<STORAGE>&, Stream);             \
  template const char* launch_attention_output(const AttendArguments<STORAGE>&, Stream);            \
  template const char* launch_attention_grad_weights(const GradWeightsArguments<STORAGE>&, Stream); \
  template const char* launch_attention_grad_query(const GradQueryArguments<STORAGE>&, Stream);     \
  template const char* launch_attention_grad_keys(const GradKeysArguments<STORAGE>&, Stream);       \
  template const char* launch_zero_rows(const ZeroRowsArguments<STORAGE>&, Stream);

RNNSEARCH_ATTENTION(float)
RNNSEARCH_ATTENTION(bfloat16)
RNNSEARCH_ATTENTION(float16)

}  // namespace rnnsearch::cuda
