// What a kernel may use of the machine. The same kernel sources compile with nvcc for a GPU and with a host compiler
// for tests: they know only these names, and every difference between the two lives in the header chosen here.
//
//   RNNSEARCH_KERNEL  RNNSEARCH_KERNEL_OF(threads)                a kernel; of one block an SM, of so many threads
//   thread_index() thread_count() block_index() block_count()    the launch, one dimension each; 32 threads a warp
//   shared_memory()                                               the block's shared memory, 16-byte aligned
//   block_barrier()                                               __syncthreads
//   add_release(p, n)  load_acquire(p)  exchange_if_zero(p, v)    atomics of the whole grid
//   tell_host(p, v)                                               a store that the host sees while kernels run
//   load_fresh(p)                                                 a load that sees what other blocks wrote (no L1)
//   load_shared(p)                                                a float, two words or four of shared memory
//   load_four(p)                                                  four values as floats, aligned to four
//   exp2_of(x)  reciprocal(x)                                     a few eps off; inf, 0 and NaN as they should be
//   tanh_approx(x)                                                the hardware's own: about 5e-4 off
//   mma_m16n8k16(d, a, b)                                         tensor-core product of a warp, float32 sums
//   warp_sum(x)  warp_max(x)                                      over the 32 lanes, on every lane
//   launch(kernel, arguments, shape, stream)                      blocks in any order; null, or an error
//   launch_cooperative(kernel, arguments, shape, stream)          all blocks resident, or an error and no launch
// Of thread-block clusters, which the GPUs have for which kClusters is true (sm_90 and later; a cluster's blocks run at
// the same time, and follow one another in the grid):
//   cluster_barrier()                                             of all threads of the cluster
//   put_in_block(p, rank, v)                                      a store to where p lies in that block's shared memory
//   launch_clusters(kernel, arguments, shape, cluster, stream)    clusters of so many blocks, in any order; or an error
//   clusters_at_once(kernel, shape, cluster)                      how many the GPU has room for
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnsearch::cuda {

// Four 16-bit values, or two floats: what a lane loads at once.
struct alignas(8) Words2 {
  uint32_t x, y;
};

struct alignas(16) Floats4 {
  float x, y, z, w;
};

struct LaunchShape {
  int blocks, threads;
  size_t shared_bytes;
};

}  // namespace rnnsearch::cuda

#ifdef __CUDACC__
#include "platform_device.h"
#else
#include "platform_host.h"
#endif
