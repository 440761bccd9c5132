// platform.h on a GPU (sm_80 and later).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define RNNSEARCH_KERNEL __global__
#define RNNSEARCH_KERNEL_OF(threads) __global__ __launch_bounds__(threads, 1)
#define RNNSEARCH_DEVICE __device__ __forceinline__
#define RNNSEARCH_BOTH __host__ __device__ inline
#define RNNSEARCH_PRAGMA(text) _Pragma(#text)
#define RNNSEARCH_UNROLL(times) RNNSEARCH_PRAGMA(unroll times)

namespace rnnsearch::cuda {

using bfloat16 = __nv_bfloat16;
using float16 = __half;
using Stream = cudaStream_t;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kClusters = true;
#else
constexpr bool kClusters = false;
#endif

RNNSEARCH_DEVICE int thread_index() { return threadIdx.x; }
RNNSEARCH_DEVICE int thread_count() { return blockDim.x; }
RNNSEARCH_DEVICE int block_index() { return blockIdx.x; }
RNNSEARCH_DEVICE int block_count() { return gridDim.x; }

RNNSEARCH_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char rnnsearch_shared[];
  return rnnsearch_shared;
}

RNNSEARCH_DEVICE void block_barrier() { __syncthreads(); }
RNNSEARCH_DEVICE void pause() { __nanosleep(20); }

RNNSEARCH_DEVICE void add_release(uint32_t* address, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

RNNSEARCH_DEVICE uint32_t load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

RNNSEARCH_DEVICE void exchange_if_zero(uint32_t* address, uint32_t value) { atomicCAS(address, 0u, value); }

RNNSEARCH_DEVICE void tell_host(uint64_t* address, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

RNNSEARCH_DEVICE float load_fresh(const float* p) { return __ldcg(p); }
RNNSEARCH_DEVICE Words2 load_fresh(const Words2* p) {
  const uint2 v = __ldcg(reinterpret_cast<const uint2*>(p));
  return {v.x, v.y};
}
RNNSEARCH_DEVICE Floats4 load_fresh(const Floats4* p) {
  const float4 v = __ldcg(reinterpret_cast<const float4*>(p));
  return {v.x, v.y, v.z, v.w};
}

RNNSEARCH_DEVICE float load_shared(const float* p) { return *p; }
RNNSEARCH_DEVICE Words2 load_shared(const Words2* p) { return *p; }
RNNSEARCH_DEVICE Floats4 load_shared(const Floats4* p) { return *p; }

RNNSEARCH_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

template <typename T>
RNNSEARCH_DEVICE void put_in_block(T* to, int rank, T value) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(there)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "r"(rank));
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(there), "r"(reinterpret_cast<uint32_t&>(value)) : "memory");
  } else {
    asm volatile("st.shared::cluster.b16 [%0], %1;" ::"r"(there), "h"(reinterpret_cast<uint16_t&>(value)) : "memory");
  }
}

RNNSEARCH_DEVICE float to_float(float x) { return x; }
RNNSEARCH_DEVICE float to_float(bfloat16 x) { return __bfloat162float(x); }
RNNSEARCH_DEVICE float to_float(float16 x) { return __half2float(x); }

RNNSEARCH_DEVICE Floats4 load_four(const float* p) { return *reinterpret_cast<const Floats4*>(p); }
RNNSEARCH_DEVICE Floats4 load_four(const bfloat16* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  const float2 a = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(v.x));
  const float2 b = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(v.y));
  return {a.x, a.y, b.x, b.y};
}
RNNSEARCH_DEVICE Floats4 load_four(const float16* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  const float2 a = __half22float2(reinterpret_cast<const __half2&>(v.x));
  const float2 b = __half22float2(reinterpret_cast<const __half2&>(v.y));
  return {a.x, a.y, b.x, b.y};
}

RNNSEARCH_DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
RNNSEARCH_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

RNNSEARCH_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <typename T>
RNNSEARCH_DEVICE T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return T(x);
  }
}

// d += a b: a 16x16 row-major, b 16x8 column-major, in the fragment layout of the PTX manual.
template <typename T>
__device__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
RNNSEARCH_DEVICE void mma_m16n8k16<bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
RNNSEARCH_DEVICE void mma_m16n8k16<float16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

RNNSEARCH_DEVICE float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

RNNSEARCH_DEVICE float warp_max(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// The runtime keeps an error until it is asked for: left there, torch would report it at its own next launch.
inline const char* error_taken(cudaError_t error) {
  cudaGetLastError();
  return cudaGetErrorString(error);
}

template <typename Arguments>
const char* launch(void (*kernel)(Arguments), Arguments arguments, LaunchShape shape, Stream stream) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const int bytes = static_cast<int>(shape.shared_bytes);
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  void* pointers[] = {&arguments};
  if (error == cudaSuccess) {
    error = cudaLaunchKernel(function, dim3(shape.blocks), dim3(shape.threads), pointers, shape.shared_bytes, stream);
  }
  return error == cudaSuccess ? nullptr : error_taken(error);
}

// Every block must be resident at once, or a grid barrier would wait for blocks that cannot start.
template <typename Arguments>
const char* launch_cooperative(void (*kernel)(Arguments), Arguments arguments, LaunchShape shape, Stream stream) {
  const void* function = reinterpret_cast<const void*>(kernel);
  int device = 0, processors = 0, resident = 0;
  const int bytes = static_cast<int>(shape.shared_bytes);
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, function, shape.threads, shape.shared_bytes);
  }
  if (error != cudaSuccess) return error_taken(error);
  if (resident * processors < shape.blocks) return "the blocks of the launch cannot all be resident at once";
  void* pointers[] = {&arguments};
  error = cudaLaunchCooperativeKernel(function, dim3(shape.blocks), dim3(shape.threads), pointers, shape.shared_bytes,
                                      stream);
  return error == cudaSuccess ? nullptr : error_taken(error);
}

// A launch in clusters: the configuration points into itself, so it stays where it is.
struct ClusterLaunch {
  cudaLaunchConfig_t configuration{};
  cudaLaunchAttribute dimension{};
  cudaError_t error;

  ClusterLaunch(const void* function, LaunchShape shape, int cluster, Stream stream) {
    dimension.id = cudaLaunchAttributeClusterDimension;
    dimension.val.clusterDim.x = cluster;
    dimension.val.clusterDim.y = dimension.val.clusterDim.z = 1;
    configuration.gridDim = dim3(shape.blocks);
    configuration.blockDim = dim3(shape.threads);
    configuration.dynamicSmemBytes = shape.shared_bytes;
    configuration.stream = stream;
    configuration.attrs = &dimension;
    configuration.numAttrs = 1;
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shape.shared_bytes));
    // Eight blocks are what every GPU with clusters takes; more it must be allowed.
    if (error == cudaSuccess && cluster > 8) {
      error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
};

// 0 also where the GPU, or the driver, knows no such clusters.
template <typename Arguments>
int clusters_at_once(void (*kernel)(Arguments), LaunchShape shape, int cluster) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const ClusterLaunch launch(function, shape, cluster, nullptr);
  int count = 0;
  if (launch.error == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&count, function, &launch.configuration) == cudaSuccess) {
    return count;
  }
  cudaGetLastError();
  return 0;
}

template <typename Arguments>
const char* launch_clusters(void (*kernel)(Arguments), Arguments arguments, LaunchShape shape, int cluster,
                            Stream stream) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const ClusterLaunch launch(function, shape, cluster, stream);
  int count = 0;
  cudaError_t error = launch.error;
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&count, function, &launch.configuration);
  if (error != cudaSuccess) return error_taken(error);
  if (count == 0) return "the GPU has no room for a cluster of the launch";
  void* pointers[] = {&arguments};
  error = cudaLaunchKernelExC(&launch.configuration, function, pointers);
  return error == cudaSuccess ? nullptr : error_taken(error);
}

}  // namespace rnnsearch::cuda
