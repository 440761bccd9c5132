// How many thread-block clusters of so many blocks the current device runs at once, a block an SM.
#pragma once

#include "platform.h"

namespace rnnsearch::cuda {

int resident_clusters(int blocks, size_t shared_bytes);

}  // namespace rnnsearch::cuda
