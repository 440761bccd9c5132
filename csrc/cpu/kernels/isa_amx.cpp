// y = x weightᵀ + bias with bfloat16 weights on the matrix unit. The weights are the left operand, 16 outputs by 32
// inputs, read where they lie; the few rows are the right one, 16 at a time, and are split into two bfloat16 numbers,
// x = high + low, so that about 16 bits of them count. Each (row, output) is summed on its own, whatever stands beside
// it. The products cost less than reading the weights, so the second half of x costs nothing.
#if defined(__x86_64__) && defined(__linux__)
#define RNNSEARCH_ISA amx_bf16
#define RNNSEARCH_VECTOR_BYTES 64
#define RNNSEARCH_REGISTERS 32
#define RNNSEARCH_TARGET "arch=x86-64-v4,tune=sapphirerapids,amx-tile,amx-bf16"
#include "arithmetic.h"

namespace rnnsearch {
namespace RNNSEARCH_ISA {
namespace {

constexpr int64_t kDepth = 32;             // inputs of a tile
constexpr int64_t kSide = 16;              // outputs, and rows, of a tile
constexpr int64_t kTile = kDepth * kSide;  // elements of a tile of either operand
constexpr int64_t kGroups = 3;             // tiles of rows that are summed together
constexpr int64_t kBlock = kGroups * kSide;

// Tile registers, which only literals can name: 2g and 2g + 1 sum the high and the low halves of group g.
#define WEIGHTS 6
#define INPUTS 7

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

void configure(int64_t outputs) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = static_cast<uint8_t>(tile == INPUTS ? kSide : outputs);
  }
  _tile_loadconfig(&config);
}

int64_t depth_blocks(int64_t inputs) { return (inputs + kDepth - 1) / kDepth; }

int64_t packed_bytes(int64_t rows, int64_t inputs) {
  return (rows + kSide - 1) / kSide * depth_blocks(inputs) * 2 * kTile * static_cast<int64_t>(sizeof(BFloat16));
}

// For each group of 16 rows and each 32 inputs a tile of high halves and one of low ones, laid out as the matrix unit
// wants its right operand: pairs of inputs, side by side for the 16 rows. Rows beyond the last are zero.
void pack(const Rows& rows, int64_t inputs, int64_t begin, int64_t end, void* packed) {
  const int64_t deep = depth_blocks(inputs);
  for (int64_t first = begin; first < end; first += kSide) {
    uint32_t* group = static_cast<uint32_t*>(packed) + first / kSide * deep * kTile;
    if (first + kSide > end) memset(group, 0, static_cast<size_t>(deep * 2 * kTile) * sizeof(BFloat16));
    for (int64_t r = first; r < end && r < first + kSide; ++r)
      for (int64_t block = 0; block < deep; ++block) {
        BFloat16 high[kDepth], low[kDepth];
        for (int64_t half = 0; half < kDepth; half += 16) {
          const int64_t i = block * kDepth + half;
          FloatVector x = {};
          if (i < inputs) x = load_either<BFloat16>(rows.data, rows.is_storage, r * rows.stride + i, inputs - i);
          const FloatVector truncated = bit_cast<float>(bits_of<float>(x) & static_cast<int32_t>(0xffff0000));
          // An infinity is all in its high half: inf - inf would be NaN.
          const FloatVector rest = magnitude<float>(x) == broadcast(__builtin_inff()) ? FloatVector{} : x - truncated;
          store(high + half, truncated);
          store(low + half, rest);
        }
        uint32_t pairs[2][kDepth / 2];
        memcpy(pairs[0], high, sizeof high);
        memcpy(pairs[1], low, sizeof low);
        uint32_t* tile = group + block * kTile + (r - first);
        for (int64_t pair = 0; pair < kDepth / 2; ++pair) {
          tile[pair * kSide] = pairs[0][pair];
          tile[kTile / 2 + pair * kSide] = pairs[1][pair];
        }
      }
  }
}

// Lane l of row i becomes lane i of row l.
template <int step>
INLINE void transpose(FloatVector* rows) {
  constexpr auto source = [](int lane, bool upper) constexpr {
    const int from = upper ? step : 0;
    return (lane & step) == 0 ? lane + from : 16 + lane - step + from;
  };
  const auto mask = [&](bool upper) {
    FloatBits lanes;
    for (int lane = 0; lane < 16; ++lane) lanes[lane] = source(lane, upper);
    return lanes;
  };
  const FloatBits lower = mask(false), upper = mask(true);
  for (int i = 0; i < 16; ++i) {
    if ((i & step) != 0) continue;
    const FloatVector a = rows[i], b = rows[i + step];
    rows[i] = FloatVector(_mm512_permutex2var_ps(__m512(a), __m512i(lower), __m512(b)));
    rows[i + step] = FloatVector(_mm512_permutex2var_ps(__m512(a), __m512i(upper), __m512(b)));
  }
  if constexpr (step > 1) transpose<step / 2>(rows);
}

// One block of outputs for `groups` groups of rows. tail: the last, partial, columns of the weights, filled with zeros.
template <int groups>
void block_of_outputs(const uint32_t* x, const BFloat16* weight, int64_t stride, const BFloat16* tail, int64_t I,
                      const BFloat16* next, float (*sums)[2][kSide * kSide]) {
  const int64_t deep = depth_blocks(I), whole = I / kDepth;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (groups > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  if constexpr (groups > 2) {
    _tile_zero(4);
    _tile_zero(5);
  }
  for (int64_t block = 0; block < deep; ++block) {
    if (block < whole) {
      _tile_loadd(WEIGHTS, weight + block * kDepth, stride * 2);
      for (int64_t o = 0; o < kSide; ++o) __builtin_prefetch(next + o * stride + block * kDepth, 0, 2);
    } else {
      _tile_loadd(WEIGHTS, tail, kDepth * 2);
    }
    const uint32_t* tile = x + block * kTile;
    const int64_t group_size = deep * kTile;
    _tile_loadd(INPUTS, tile, 64);
    _tile_dpbf16ps(0, WEIGHTS, INPUTS);
    _tile_loadd(INPUTS, tile + kTile / 2, 64);
    _tile_dpbf16ps(1, WEIGHTS, INPUTS);
    if constexpr (groups > 1) {
      _tile_loadd(INPUTS, tile + group_size, 64);
      _tile_dpbf16ps(2, WEIGHTS, INPUTS);
      _tile_loadd(INPUTS, tile + group_size + kTile / 2, 64);
      _tile_dpbf16ps(3, WEIGHTS, INPUTS);
    }
    if constexpr (groups > 2) {
      _tile_loadd(INPUTS, tile + 2 * group_size, 64);
      _tile_dpbf16ps(4, WEIGHTS, INPUTS);
      _tile_loadd(INPUTS, tile + 2 * group_size + kTile / 2, 64);
      _tile_dpbf16ps(5, WEIGHTS, INPUTS);
    }
  }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  if constexpr (groups > 1) {
    _tile_stored(2, sums[1][0], 64);
    _tile_stored(3, sums[1][1], 64);
  }
  if constexpr (groups > 2) {
    _tile_stored(4, sums[2][0], 64);
    _tile_stored(5, sums[2][1], 64);
  }
}

void linear(const LinearArgs<BFloat16>& args) {
  const int64_t stride = args.weight.stride, whole = args.I / kDepth * kDepth, partial = args.I - whole;
  const int64_t rows = args.row_end - args.row_begin, groups = (rows + kSide - 1) / kSide;
  const uint32_t* x = static_cast<const uint32_t*>(args.packed) + args.row_begin / kSide * depth_blocks(args.I) * kTile;
  alignas(64) BFloat16 tail[kTile] = {};
  alignas(64) float sums[kGroups][2][kSide * kSide] = {};
  int64_t configured = 0;
  for (int64_t o = args.output_begin; o < args.output_end; o += kSide) {
    const int64_t take = args.output_end - o < kSide ? args.output_end - o : kSide;
    if (take != configured) configure(configured = take);
    const BFloat16* weight = args.weight.data + o * stride;
    if (partial > 0)
      for (int64_t i = 0; i < take; ++i)
        for (int64_t j = 0; j < partial; j += 16)
          store(tail + i * kDepth + j, load(weight + i * stride + whole + j, partial - j));
    const BFloat16* next = o + 2 * kSide <= args.output_end ? weight + kSide * stride : weight;
    choose<kGroups>(groups, [&](auto count) {
      block_of_outputs<decltype(count)::value>(x, weight, stride, tail, args.I, next, sums);
    });
    FloatVector bias = {};
    if (args.bias != nullptr) bias = load(args.bias + o, take);
    for (int64_t group = 0; group < groups; ++group) {
      FloatVector y[kSide];
      for (int64_t i = 0; i < kSide; ++i) y[i] = load(sums[group][0] + i * kSide) + load(sums[group][1] + i * kSide);
      transpose<8>(y);
      for (int64_t r = group * kSide; r < rows && r < (group + 1) * kSide; ++r)
        store(args.y + r * args.y_stride + (o - args.output_begin), y[r - group * kSide] + bias, take);
    }
  }
  _tile_release();
}
}  // namespace
}  // namespace RNNSEARCH_ISA

constexpr ProductKernels<BFloat16> kAmxProducts = {
    amx_bf16::kBlock, amx_bf16::packed_bytes, amx_bf16::pack, amx_bf16::linear, nullptr, true};
}  // namespace rnnsearch
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
