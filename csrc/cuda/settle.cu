#include "settle.h"

namespace rnnsearch::cuda {
namespace {

constexpr int kBlocks = 32, kThreads = 256;

}  // namespace

RNNSEARCH_KERNEL void settle(SettleArguments a) {
  const uint32_t place = *a.stopped;
  if (place == 0) return;
  const size_t first = size_t(block_index()) * thread_count() + thread_index();
  if (first == 0) tell_host(a.report, a.who | place);
  for (int i = 0; i < a.count; ++i) {
    uint8_t* const bytes = static_cast<uint8_t*>(a.results[i]);
    for (size_t at = first; at < a.bytes[i]; at += size_t(block_count()) * thread_count()) bytes[at] = 0xff;
  }
}

const char* launch_settle(const SettleArguments& arguments, Stream stream) {
  return launch(settle, arguments, {kBlocks, kThreads, 0}, stream);
}

}  // namespace rnnsearch::cuda
