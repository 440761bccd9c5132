// y = x weightᵀ + bias. A vector holds blocks of 16 bytes: some inputs' weights of one output, the same inputs' of the
// next, and so on. It meets the block of x that has those inputs, once for each output, so that an output's sum runs
// along the inputs in as many lanes as a block has, and these are added up at the end. No sum is shared: a row's
// result does not depend on which rows, or how many, stand beside it. The weights lie in torch's (O, I) layout. Few
// rows gather their blocks from there; for many rows they are written once, in the order in which they are read, to a
// panel that stays in the first-level cache while all rows pass.
#pragma once

#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {

// Rows and vectors of a tile: accumulators that the registers hold beside the operands.
inline constexpr int kLinearRows = RNNSEARCH_REGISTERS == 32 ? 6 : 3;
inline constexpr int kLinearVectors = 4;
// From so many rows on writing a panel costs less than gathering again.
inline constexpr int64_t kManyRows = 2 * kLinearRows + 1;
// Rows that share a walk through the weights: their inputs stay in the second-level cache.
inline constexpr int64_t kRowBlock = 384;

template <class T>
inline constexpr int block_lanes = 16 / static_cast<int>(sizeof(T));
template <class T>
inline constexpr int vector_blocks = lanes<T> / block_lanes<T>;
// Outputs of a tile.
template <class T>
inline constexpr int64_t linear_outputs = kLinearVectors * vector_blocks<T>;

// Blocks at p, p + stride, p + 2 stride …
template <class S>
INLINE Vec<Accumulate<S>> gather_blocks(const S* p, int64_t stride) {
  using T = Accumulate<S>;
  constexpr int k = block_lanes<T>;
#if defined(__x86_64__) && RNNSEARCH_VECTOR_BYTES == 64
  if constexpr (sizeof(S) == sizeof(T)) {
    const auto block = [&](int64_t b) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + b * stride)); };
    __m512 all = _mm512_castps128_ps512(block(0));
    all = _mm512_insertf32x4(all, block(1), 1);
    all = _mm512_insertf32x4(all, block(2), 2);
    return Vec<T>(_mm512_insertf32x4(all, block(3), 3));
  }
#elif defined(__x86_64__) && RNNSEARCH_VECTOR_BYTES == 32
  if constexpr (sizeof(S) == sizeof(T)) {
    const auto block = [&](int64_t b) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + b * stride)); };
    return Vec<T>(_mm256_insertf128_ps(_mm256_castps128_ps256(block(0)), block(1), 1));
  }
#endif
  if constexpr (vector_blocks<T> == 1) return load(p);
  S part[lanes<T>];
  RNNSEARCH_UNROLL
  for (int b = 0; b < vector_blocks<T>; ++b) memcpy(part + b * k, p + b * stride, k * sizeof(S));
  return load(part);
}
// The same where `count` inputs and `outputs` outputs are left; the others count zero and are not read.
template <class S>
INLINE Vec<Accumulate<S>> gather_blocks(const S* p, int64_t stride, int64_t count, int64_t outputs) {
  using T = Accumulate<S>;
  constexpr int k = block_lanes<T>;
  S part[lanes<T>] = {};
  for (int64_t b = 0; b < vector_blocks<T> && b < outputs; ++b)
    memcpy(part + b * k, p + b * stride, static_cast<size_t>(count < k ? count : k) * sizeof(S));
  return load(part);
}

// The block at p, once for each output.
template <class T>
INLINE Vec<T> repeat_block(const T* p) {
#if defined(__x86_64__) && RNNSEARCH_VECTOR_BYTES == 64
  return Vec<T>(_mm512_broadcast_f32x4(_mm_loadu_ps(reinterpret_cast<const float*>(p))));
#elif defined(__x86_64__) && RNNSEARCH_VECTOR_BYTES == 32
  return Vec<T>(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)));
#else
  if constexpr (vector_blocks<T> == 1) return load(p);
  T part[lanes<T>];
  RNNSEARCH_UNROLL
  for (int b = 0; b < vector_blocks<T>; ++b) memcpy(part + b * block_lanes<T>, p, 16);
  return load(part);
#endif
}

template <class S>
int64_t packed_bytes(int64_t rows, int64_t inputs) {
  return rows * padded<Accumulate<S>>(inputs) * static_cast<int64_t>(sizeof(Accumulate<S>));
}

// Rows of a multiple of a vector, filled up with zeros.
template <class S>
void pack(const Rows& rows, int64_t inputs, int64_t begin, int64_t end, void* packed) {
  using T = Accumulate<S>;
  for (int64_t r = begin; r < end; ++r) {
    T* row = static_cast<T*>(packed) + r * padded<T>(inputs);
    for (int64_t i = 0; i < inputs; i += lanes<T>)
      store(row + i, load_either<S>(rows.data, rows.is_storage, r * rows.stride + i, inputs - i));
  }
}

template <class S>
int64_t panel_bytes(int64_t rows, int64_t inputs) {
  return rows < kManyRows ? 0 : linear_outputs<Accumulate<S>> * packed_bytes<S>(1, inputs);
}

// The blocks of a tile, input after input, by vector; those of outputs that are not there are zeros.
template <class S>
void write_panel(const S* weight, int64_t stride, int64_t I, int64_t outputs, Accumulate<S>* panel) {
  using T = Accumulate<S>;
  constexpr int k = block_lanes<T>, n = lanes<T>, blocks = vector_blocks<T>;
  for (int64_t i = 0; i < I; i += k)
    for (int v = 0; v < kLinearVectors; ++v, panel += n) {
      const S* block = weight + v * blocks * stride + i;
      const bool whole = i + k <= I && (v + 1) * blocks <= outputs;
      store(panel, whole ? gather_blocks(block, stride) : gather_blocks(block, stride, I - i, outputs - v * blocks));
    }
}

// y = sums + bias of one row. Each of `vectors` vectors holds items of `segment` lanes, an output's sum; they are
// folded into one another until an item is one lane.
template <class T, int segment, int vectors>
INLINE void store_sums(const Vec<T> (&v)[vectors], const T* bias, T* y, int64_t outputs) {
  if constexpr (segment > 1) {
    Vec<T> folded[(vectors + 1) / 2];
    RNNSEARCH_UNROLL
    for (int i = 0; i < vectors; i += 2) folded[i / 2] = fold<T, Sum, segment>(v[i], v[i + 1 < vectors ? i + 1 : i]);
    store_sums<T, segment / 2>(folded, bias, y, outputs);
  } else {
    RNNSEARCH_UNROLL
    for (int i = 0; i < vectors; ++i)
      if (i * lanes<T> < outputs) store(y + i * lanes<T>, v[i] + load(bias + i * lanes<T>), outputs - i * lanes<T>);
  }
}

// `rows` rows and the outputs of `vectors` vectors, of which `outputs` are there. `weight(i, v)` is vector v of the
// blocks from input i on; `fetch(i)` is called for every vector of inputs.
template <class T, int rows, int vectors, class Weight, class Fetch>
INLINE void linear_tile(const T* x, int64_t I, const Weight& weight, const Fetch& fetch, const T* bias, T* y,
                        int64_t y_stride, int64_t outputs) {
  constexpr int k = block_lanes<T>, n = lanes<T>;
  const int64_t row_size = padded<T>(I);
  const Vec<T> zero = {};
  Vec<T> total[rows][vectors];
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) {
    RNNSEARCH_UNROLL
    for (int v = 0; v < vectors; ++v) total[r][v] = zero;
  }
  const auto add_block = [&](int64_t i) {
    Vec<T> w[vectors];
    RNNSEARCH_UNROLL
    for (int v = 0; v < vectors; ++v) w[v] = weight(i, v);
    RNNSEARCH_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Vec<T> input = repeat_block(x + r * row_size + i);
      RNNSEARCH_UNROLL
      for (int v = 0; v < vectors; ++v) total[r][v] += input * w[v];
    }
  };
  int64_t i = 0;
  for (; i + n <= I; i += n) {
    fetch(i);
    RNNSEARCH_UNROLL
    for (int b = 0; b < n; b += k) add_block(i + b);
  }
  for (; i < I; i += k) add_block(i);
  RNNSEARCH_UNROLL
  for (int r = 0; r < rows; ++r) store_sums<T, k>(total[r], bias, y + r * y_stride, outputs);
}

template <class T, int rows>
void panel_rows(const T* x, int64_t I, const T* panel, const T* bias, T* y, int64_t y_stride, int64_t outputs) {
  linear_tile<T, rows, kLinearVectors>(
      x, I,
      [&](int64_t i, int v) { return load(panel + i / block_lanes<T> * kLinearVectors * lanes<T> + v * lanes<T>); },
      [](int64_t) {}, bias, y, y_stride, outputs);
}

// Where `ahead` is not null, the weights that lie there are brought into the second-level cache meanwhile.
template <class S, int rows>
void few_rows(const Accumulate<S>* x, int64_t I, const S* weight, int64_t stride, const S* ahead,
              const Accumulate<S>* bias, Accumulate<S>* y, int64_t y_stride) {
  using T = Accumulate<S>;
  constexpr int vectors = rows > kLinearRows ? kLinearVectors / 2 : kLinearVectors;
  constexpr int64_t outputs = vectors * vector_blocks<T>;
  for (int64_t o = 0; o < linear_outputs<T>; o += outputs)
    linear_tile<T, rows, vectors>(
        x, I, [&](int64_t i, int v) { return gather_blocks(weight + (o + v * vector_blocks<T>)*stride + i, stride); },
        [&](int64_t i) {
          if (ahead == nullptr) return;
          RNNSEARCH_UNROLL
          for (int64_t next = o; next < o + outputs; ++next) __builtin_prefetch(ahead + next * stride + i, 0, 2);
        },
        bias + o, y + o, y_stride, outputs);
}

// The same for few rows where inputs are no whole blocks, or outputs no whole tile.
template <class S, int rows>
void partial_rows(const Accumulate<S>* x, int64_t I, const S* weight, int64_t stride, int64_t outputs,
                  const Accumulate<S>* bias, Accumulate<S>* y, int64_t y_stride) {
  using T = Accumulate<S>;
  constexpr int blocks = vector_blocks<T>;
  linear_tile<T, rows, kLinearVectors>(
      x, I,
      [&](int64_t i, int v) {
        const S* from = weight + v * blocks * stride + i;
        if (i + block_lanes<T> <= I && (v + 1) * blocks <= outputs) return gather_blocks(from, stride);
        return gather_blocks(from, stride, I - i, outputs - v * blocks);
      },
      [](int64_t) {}, bias, y, y_stride, outputs);
}

// f(first row, how many) in tiles of at most `most`, as even as whole rows allow: 8 are 4 + 4, not 6 + 2.
template <int most, class F>
INLINE void row_tiles(int64_t rows, const F& f) {
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t tile = 0, r = 0; tile < tiles; ++tile) {
    const int64_t take = rows / tiles + (tile < rows % tiles);
    choose<most>(take, [&](auto count) { f(r, count); });
    r += take;
  }
}

template <class S>
void linear(const LinearArgs<S>& args) {
  using T = Accumulate<S>;
  constexpr int64_t most = linear_outputs<T>;
  const int64_t rows = args.row_end - args.row_begin, row_size = padded<T>(args.I), stride = args.weight.stride;
  const T* x = static_cast<const T*>(args.packed) + args.row_begin * row_size;
  T* panel = static_cast<T*>(args.panel);
  for (int64_t o = args.output_begin; o < args.output_end; o += most) {
    const int64_t outputs = args.output_end - o < most ? args.output_end - o : most;
    const S* weight = args.weight.data + o * stride;
    const S* ahead = o + 2 * most <= args.output_end ? weight + most * stride : nullptr;
    T bias[most] = {};
    if (args.bias != nullptr)
      for (int64_t b = 0; b < outputs; ++b) bias[b] = scalar(args.bias[o + b]);
    T* y = args.y + (o - args.output_begin);
    if (rows >= kManyRows) {
      write_panel(weight, stride, args.I, outputs, panel);
      row_tiles<kLinearRows>(rows, [&](int64_t r, auto count) {
        // Every tile of rows fetches some of the next panel's weights.
        const int64_t end = ahead == nullptr ? 0 : (r + decltype(count)::value) * most / rows;
        for (int64_t next = r * most / rows; next < end; ++next)
          for (int64_t i = 0; i < args.I; i += 64 / static_cast<int64_t>(sizeof(S)))
            __builtin_prefetch(ahead + next * stride + i, 0, 2);
        panel_rows<T, decltype(count)::value>(x + r * row_size, args.I, panel, bias, y + r * args.y_stride,
                                              args.y_stride, outputs);
      });
    } else if (outputs == most && args.I % block_lanes<T> == 0) {
      row_tiles<2 * kLinearRows>(rows, [&](int64_t r, auto count) {
        few_rows<S, decltype(count)::value>(x + r * row_size, args.I, weight, stride, r == 0 ? ahead : nullptr, bias,
                                            y + r * args.y_stride, args.y_stride);
      });
    } else {
      row_tiles<kLinearRows>(rows, [&](int64_t r, auto count) {
        partial_rows<S, decltype(count)::value>(x + r * row_size, args.I, weight, stride, outputs, bias,
                                                y + r * args.y_stride, args.y_stride);
      });
    }
  }
}

template <class S>
constexpr ProductKernels<S> products() {
  return {kRowBlock, packed_bytes<S>, pack<S>, linear<S>, panel_bytes<S>};
}
}  // namespace RNNSEARCH_ISA
}  // namespace rnnsearch
