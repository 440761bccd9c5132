// platform.h for tests without a GPU (C++20): one std::thread per CUDA thread, real barriers, real races.
//
// Three switches of `Stream` break it on purpose, so that a test can show that a mistake would be seen.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#define RNNSEARCH_KERNEL
#define RNNSEARCH_KERNEL_OF(threads)
#define RNNSEARCH_DEVICE inline
#define RNNSEARCH_BOTH inline
#define RNNSEARCH_UNROLL(times)

namespace rnnsearch::cuda {

struct Stream {
  unsigned seed = 0;                // what a launch's order of blocks is drawn from
  int skipped_block_barrier = 0;    // n: the n-th block_barrier() of every thread does nothing
  bool relaxed_atomics = false;     // the grid's atomics order nothing else
  int skipped_cluster_barrier = 0;  // n: the n-th cluster barrier of every thread does nothing
};

constexpr bool kClusters = true;

struct bfloat16 {
  uint16_t bits;
};
using float16 = _Float16;

namespace host {

// Not std::barrier: its waiters share tables across barriers, which hides races between blocks from ThreadSanitizer.
class Barrier {
 public:
  explicit Barrier(int threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Warp {
  Barrier barrier{32};
  uint32_t words[32][6];
  float floats[32];
};

struct Cluster;

struct Block {
  Block(int threads, size_t shared_bytes)
      : barrier(threads), warps(threads / 32), bytes(shared_bytes), shared(new (std::align_val_t(16)) char[bytes]) {
    forget();
  }
  ~Block() { ::operator delete[](shared, std::align_val_t(16)); }
  void forget() { std::memset(shared, 0xff, bytes); }  // NaN: shared memory holds nothing of use at the start

  Barrier barrier;
  std::vector<Warp> warps;
  size_t bytes;
  char* shared;
  Cluster* cluster = nullptr;
};

struct Cluster {
  Cluster(int blocks, int threads) : barrier(blocks * threads) {}
  Barrier barrier;
  std::vector<Block*> blocks;
};

struct Thread {
  int thread, threads, block, blocks;
  Block* home;
  Stream stream;
  int barriers = 0, cluster_barriers = 0;
};
inline thread_local Thread* self = nullptr;

inline Warp& warp() { return self->home->warps[self->thread / 32]; }

}  // namespace host

inline int thread_index() { return host::self->thread; }
inline int thread_count() { return host::self->threads; }
inline int block_index() { return host::self->block; }
inline int block_count() { return host::self->blocks; }
inline char* shared_memory() { return host::self->home->shared; }
inline void pause() { std::this_thread::yield(); }

inline void block_barrier() {
  if (++host::self->barriers != host::self->stream.skipped_block_barrier) host::self->home->barrier.wait();
}

inline void cluster_barrier() {
  if (++host::self->cluster_barriers != host::self->stream.skipped_cluster_barrier) {
    host::self->home->cluster->barrier.wait();
  }
}

template <typename T>
void put_in_block(T* to, int rank, T value) {
  const ptrdiff_t at = reinterpret_cast<char*>(to) - host::self->home->shared;
  std::memcpy(host::self->home->cluster->blocks[rank]->shared + at, &value, sizeof value);
}

inline void add_release(uint32_t* address, uint32_t value) {
  const std::atomic_ref<uint32_t> counter(*address);
  if (host::self->stream.relaxed_atomics) {
    counter.fetch_add(value, std::memory_order_relaxed);
  } else {
    counter.fetch_add(value, std::memory_order_release);
  }
}

inline uint32_t load_acquire(const uint32_t* address) {
  const std::atomic_ref<uint32_t> counter(*const_cast<uint32_t*>(address));
  return host::self->stream.relaxed_atomics ? counter.load(std::memory_order_relaxed)
                                            : counter.load(std::memory_order_acquire);
}

inline void exchange_if_zero(uint32_t* address, uint32_t value) {
  uint32_t zero = 0;
  std::atomic_ref<uint32_t>(*address).compare_exchange_strong(zero, value);
}

inline void tell_host(uint64_t* address, uint64_t value) {
  std::atomic_ref<uint64_t>(*address).store(value, std::memory_order_release);
}

template <typename T>
T load_fresh(const T* p) {
  return *p;
}
inline Words2 load_fresh(const Words2* p) {
  Words2 words;  // the memory holds 16-bit values
  std::memcpy(&words, p, sizeof words);
  return words;
}
inline Floats4 load_fresh(const Floats4* p) {
  Floats4 floats;
  std::memcpy(&floats, p, sizeof floats);
  return floats;
}

template <typename T>
T load_shared(const T* p) {
  return load_fresh(p);
}

inline float to_float(float x) { return x; }
inline float to_float(float16 x) { return static_cast<float>(x); }
inline float to_float(bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
Floats4 load_four(const T* p) {
  return {to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}

inline float exp2_of(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1 / x; }
inline float tanh_approx(float x) { return std::tanh(x); }

template <typename T>
T from_float(float x) {
  return static_cast<T>(x);
}
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  if (x != x) return {0x7fc0};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

namespace host {

template <typename T>
float half_word(uint32_t word, int part) {
  const uint16_t bits = static_cast<uint16_t>(word >> (16 * part));
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return to_float(value);
}

}  // namespace host

// d += a b in the fragment layout of the PTX manual: lane = 4 g + q holds rows g and g + 8 of a, column g of b.
template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::Warp& warp = host::warp();
  const int lane = thread_index() % 32;
  std::copy(a, a + 4, warp.words[lane]);
  std::copy(b, b + 2, warp.words[lane] + 4);
  warp.barrier.wait();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) {
      const uint32_t left = warp.words[4 * (row % 8) + k % 8 / 2][row / 8 + 2 * (k / 8)];
      const uint32_t right = warp.words[4 * column + k % 8 / 2][4 + k / 8];
      d[i] += host::half_word<T>(left, k % 2) * host::half_word<T>(right, k % 2);
    }
  }
  warp.barrier.wait();
}

namespace host {

// As shuffles would: at each distance a lane combines its own with its partner's.
template <typename Combine>
float warp_reduce(float x, Combine combine) {
  Warp& exchange = warp();
  const int lane = thread_index() % 32;
  float values[32], combined[32];
  exchange.floats[lane] = x;
  exchange.barrier.wait();
  std::copy(exchange.floats, exchange.floats + 32, values);
  exchange.barrier.wait();
  for (int offset = 16; offset > 0; offset /= 2) {
    for (int i = 0; i < 32; ++i) combined[i] = combine(values[i], values[i ^ offset]);
    std::copy(combined, combined + 32, values);
  }
  return values[lane];
}

}  // namespace host

inline float warp_sum(float x) {
  return host::warp_reduce(x, [](float a, float b) { return a + b; });
}
inline float warp_max(float x) {
  return host::warp_reduce(x, [](float a, float b) { return std::fmax(a, b); });
}

namespace host {

// The blocks of [first, last) in `order`, all at once.
template <typename Arguments>
void run_blocks(void (*kernel)(Arguments), const Arguments& arguments, LaunchShape shape, const Stream& stream,
                const int* first, const int* last) {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::thread> threads;
  for (const int* block = first; block < last; ++block) {
    blocks.push_back(std::make_unique<Block>(shape.threads, shape.shared_bytes));
    for (int thread = 0; thread < shape.threads; ++thread) {
      threads.emplace_back([&, home = blocks.back().get(), index = *block, thread] {
        Thread here{thread, shape.threads, index, shape.blocks, home, stream};
        self = &here;
        kernel(arguments);
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

inline std::vector<int> shuffled(int count, const Stream& stream) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(stream.seed));
  return order;
}

// One cluster, its blocks in an order of their own. Each block's shared memory is overwritten by itself as it begins
// and ends: a store from another block that comes too early or too late is a race.
template <typename Arguments>
void run_cluster(void (*kernel)(Arguments), const Arguments& arguments, LaunchShape shape, const Stream& stream,
                 int first, int count) {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::thread> threads;
  Cluster cluster(count, shape.threads);
  for (int rank = 0; rank < count; ++rank) {
    blocks.push_back(std::make_unique<Block>(shape.threads, shape.shared_bytes));
    blocks.back()->cluster = &cluster;
    cluster.blocks.push_back(blocks.back().get());
  }
  for (const int rank : shuffled(count, stream)) {
    for (int thread = 0; thread < shape.threads; ++thread) {
      threads.emplace_back([&, home = cluster.blocks[rank], index = first + rank, thread] {
        Thread here{thread, shape.threads, index, shape.blocks, home, stream};
        self = &here;
        if (thread == 0) home->forget();
        home->barrier.wait();
        kernel(arguments);
        home->barrier.wait();
        if (thread == 0) home->forget();
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace host

// Three blocks at a time: a machine has only so many threads, and a race between blocks needs two.
template <typename Arguments>
const char* launch(void (*kernel)(Arguments), Arguments arguments, LaunchShape shape, Stream stream) {
  const std::vector<int> order = host::shuffled(shape.blocks, stream);
  for (int first = 0; first < shape.blocks; first += 3) {
    const int last = std::min(first + 3, shape.blocks);
    host::run_blocks(kernel, arguments, shape, stream, order.data() + first, order.data() + last);
  }
  return nullptr;
}

template <typename Arguments>
const char* launch_cooperative(void (*kernel)(Arguments), Arguments arguments, LaunchShape shape, Stream stream) {
  const std::vector<int> order = host::shuffled(shape.blocks, stream);
  host::run_blocks(kernel, arguments, shape, stream, order.data(), order.data() + shape.blocks);
  return nullptr;
}

template <typename Arguments>
int clusters_at_once(void (*)(Arguments), LaunchShape, int cluster) {
  return cluster <= 8 ? 1 : 0;
}

template <typename Arguments>
const char* launch_clusters(void (*kernel)(Arguments), Arguments arguments, LaunchShape shape, int cluster,
                            Stream stream) {
  if (shape.blocks % cluster != 0) return "the blocks of the launch make no whole clusters";
  for (const int which : host::shuffled(shape.blocks / cluster, stream)) {
    host::run_cluster(kernel, arguments, shape, stream, which * cluster, cluster);
  }
  return nullptr;
}

}  // namespace rnnsearch::cuda
