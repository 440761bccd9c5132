#include "launch_decoder.h"

namespace rnnsearch::cuda {

template const char* launch_decoder_scan(const DecoderScanArguments<float>&, int, Stream);
template const char* launch_decoder_scan(const DecoderScanArguments<bfloat16>&, int, Stream);
template const char* launch_decoder_scan(const DecoderScanArguments<float16>&, int, Stream);
template const char* launch_decoder_scan(const DecoderScanBackwardArguments<float>&, int, Stream);
template const char* launch_decoder_scan(const DecoderScanBackwardArguments<bfloat16>&, int, Stream);
template const char* launch_decoder_scan(const DecoderScanBackwardArguments<float16>&, int, Stream);

}  // namespace rnnsearch::cuda
