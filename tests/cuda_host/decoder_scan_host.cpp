// decoder_scan as the GPU's kernels run on the host; test_cuda_decoder.py writes its input and reads its results. Every
// buffer is exactly as large as promised, so that an unwritten element or a step too far shows.
#include "launch_decoder.h"
#include "raw_io.h"

using namespace rnnsearch::cuda;

namespace {

struct Header {
  int32_t storage, B, T, S, H, A, rows, team, tiles, candidate_tiles, splits, threads, reset_after, bias, lengths,
      padding, mask, input_storage, seed, spin_limit, missing_blocks, missing_parts, skipped_block_barrier,
      relaxed_atomics;
};

#ifdef FOR_SANITIZER  // bfloat16 and 4 tiles alone: what is not there need not be compiled
const char* launch(const DecoderScanArguments<bfloat16>& a, int threads, Stream stream) {
  const size_t bytes = DecoderScanShared<bfloat16>(a.shape, threads).bytes;
  return launch_cooperative(decoder_scan<bfloat16, 4>, a, {a.shape.blocks(), threads, bytes}, stream);
}
#else
template <typename Storage>
const char* launch(const DecoderScanArguments<Storage>& arguments, int threads, Stream stream) {
  return launch_decoder_scan(arguments, threads, stream);
}
#endif

template <typename Storage, typename Input>
int run(const Header& h) {
  const size_t cells = size_t(h.B) * h.T, positions = size_t(h.B) * h.S;
  const auto lengths = read<int64_t>(h.lengths ? h.B : 0);
  const auto padding = read<uint8_t>(h.padding ? positions : 0);
  const auto state = read<float>(size_t(h.B) * h.H);
  const auto mask = read<float>(h.mask ? size_t(h.B) * h.H : 0);
  const auto keys = read_as<Storage>(positions * h.A), memory_gates = read_as<Storage>(positions * 3 * h.H);
  const auto score_weight = read_as<Storage>(h.A), query_weight = read_as<Storage>(size_t(h.A) * h.H);
  const auto query_bias = read_as<Storage>(h.bias ? h.A : 0);
  const auto hidden_weight = read_as<Storage>(size_t(3) * h.H * h.H);
  const auto hidden_bias = read_as<Storage>(h.bias ? size_t(3) * h.H : 0);
  const auto input = read_as<Input>(cells * 3 * h.H);

  DecoderShape shape{};
  shape.B = h.B;
  shape.T = h.T;
  shape.S = h.S;
  shape.H = h.H;
  shape.A = h.A;
  shape.rows = h.rows;
  shape.row_groups = (h.B + h.rows - 1) / h.rows;
  shape.team = h.team;
  shape.tiles = h.tiles;
  shape.candidate_tiles = h.candidate_tiles;
  shape.splits = h.splits;
  shape.reset_after = h.reset_after != 0;
  shape.lengths = or_null(lengths);
  shape.key_padding_mask = reinterpret_cast<const bool*>(or_null(padding));

  auto states = poisoned<float>(cells * h.H), gates = poisoned<float>(cells * 4 * h.H);
  auto attn_weights = poisoned<float>(cells * h.S), projected = poisoned<float>(size_t(h.B) * (h.A + 3 * h.H));
  auto partial = poisoned<float>(h.splits > 1 ? size_t(h.B) * h.splits * partial_width(h.H) : 0);
  auto exchange = poisoned<Storage>(size_t(2) * h.B * padded_depth(h.H));
  std::vector<uint32_t> barriers(shape.barrier_words(), 0);
  // A team, or a row, that waits for a block which is not there: the barrier must end it.
  if (h.missing_blocks) barriers[0] = static_cast<uint32_t>(-h.missing_blocks);
  if (h.missing_parts) barriers[shape.row_groups + 1] = static_cast<uint32_t>(-h.missing_parts);

  DecoderScanArguments<Storage> arguments{};
  arguments.shape = shape;
  arguments.input_gates = input.data();
  arguments.input_is_storage = h.input_storage != 0;
  arguments.state = state.data();
  arguments.state_mask = or_null(mask);
  arguments.keys = keys.data();
  arguments.memory_gates = memory_gates.data();
  arguments.score_weight = score_weight.data();
  arguments.query_weight = query_weight.data();
  arguments.query_bias = or_null(query_bias);
  arguments.hidden_weight = hidden_weight.data();
  arguments.hidden_bias = or_null(hidden_bias);
  arguments.states = states.data();
  arguments.attn_weights = attn_weights.data();
  arguments.gates = gates.data();
  arguments.exchange = exchange.data();
  arguments.projected = projected.data();
  arguments.partial = partial.data();
  arguments.barriers = barriers.data();
  arguments.spin_limit = static_cast<uint32_t>(h.spin_limit);
  const Stream stream{static_cast<unsigned>(h.seed), h.skipped_block_barrier, h.relaxed_atomics != 0};
  const int status = status_of(launch(arguments, h.threads, stream), barriers[shape.row_groups]);
  write(states);
  write(attn_weights);
  write(gates);
  return status;
}

template <typename Storage>
int run_storage(const Header& header) {
  return header.input_storage ? run<Storage, Storage>(header) : run<Storage, float>(header);
}

}  // namespace

int main() {
  const Header header = read<Header>(1)[0];
#ifdef FOR_SANITIZER
  check(header.storage == 1, "built for bfloat16 alone");
#else
  if (header.storage == 0) return run_storage<float>(header);
  if (header.storage == 2) return run_storage<float16>(header);
#endif
  return run_storage<bfloat16>(header);
}
