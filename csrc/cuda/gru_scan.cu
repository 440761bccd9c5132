#include "launch_gru.h"

namespace rnnsearch::cuda {

#define RNNSEARCH_GRU(STORAGE)                                                                 \
  template const char* launch_gru_scan(const GruScanArguments<STORAGE>&, int, Stream);         \
  template const char* launch_gru_scan(const GruScanBackwardArguments<STORAGE>&, int, Stream); \
  template const char* launch_gru_entering(const GruEnteringArguments<STORAGE>&, Stream);

RNNSEARCH_GRU(float)
RNNSEARCH_GRU(bfloat16)
RNNSEARCH_GRU(float16)

}  // namespace rnnsearch::cuda
