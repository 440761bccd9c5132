#include "launch_gru.h"

namespace rnnsearch::cuda {

template const char* launch_gru_scan(const GruScanArguments<float>&, int, Stream);
template const char* launch_gru_scan(const GruScanArguments<bfloat16>&, int, Stream);
template const char* launch_gru_scan(const GruScanArguments<float16>&, int, Stream);
template const char* launch_gru_scan_backward(const GruScanBackwardArguments<float>&, int, Stream);
template const char* launch_gru_scan_backward(const GruScanBackwardArguments<bfloat16>&, int, Stream);
template const char* launch_gru_scan_backward(const GruScanBackwardArguments<float16>&, int, Stream);

}  // namespace rnnsearch::cuda
