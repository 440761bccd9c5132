// decoder_scan, forward and backward, as the GPU's kernels run on the host; test_cuda_decoder.py writes its input and
// reads its results. Every buffer is exactly as large as promised, so that an unwritten element or a step too far
// shows.
#include "launch_decoder.h"
#include "raw_io.h"

using namespace rnnsearch::cuda;

namespace {

struct Header {
  int32_t storage, backward, B, T, S, H, A, rows, team, tiles, candidate_tiles, splits, kept_keys, kept_gates, threads,
      reset_after, bias, lengths, padding, mask, input_storage, seed, spin_limit, missing_blocks, missing_parts,
      skipped_block_barrier, relaxed_atomics, cluster, skipped_cluster_barrier;
};

#ifdef FOR_SANITIZER  // bfloat16 and 4 tiles alone: what is not there need not be compiled
const char* launch_scan(const DecoderScanArguments<bfloat16>& arguments, int threads, Stream stream) {
  return launch_decoder_of<4>(arguments, threads, stream);
}
#else
template <typename Storage>
const char* launch_scan(const DecoderScanArguments<Storage>& arguments, int threads, Stream stream) {
  return launch_decoder_scan(arguments, threads, stream);
}
#endif

// What both directions are given.
template <typename Storage>
struct Inputs {
  Header h;
  size_t cells, positions;
  std::vector<int64_t> lengths;
  std::vector<uint8_t> padding;
  std::vector<float> state, mask;
  std::vector<Storage> keys, memory_gates, score_weight, query_weight, hidden_weight;
  DecoderShape shape{};
  std::vector<uint32_t> barriers;
  Stream stream;

  explicit Inputs(const Header& header) : h(header), cells(size_t(h.B) * h.T), positions(size_t(h.B) * h.S) {
    lengths = read<int64_t>(h.lengths ? h.B : 0);
    padding = read<uint8_t>(h.padding ? positions : 0);
    state = read<float>(size_t(h.B) * h.H);
    mask = read<float>(h.mask ? size_t(h.B) * h.H : 0);
    keys = read_as<Storage>(positions * h.A);
    memory_gates = read_as<Storage>(positions * 3 * h.H);
    score_weight = read_as<Storage>(h.A);
    query_weight = read_as<Storage>(size_t(h.A) * h.H);
    hidden_weight = read_as<Storage>(size_t(3) * h.H * h.H);
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
    shape.kept_keys = h.kept_keys;
    shape.kept_gates = h.kept_gates;
    shape.reset_after = h.reset_after != 0;
    shape.cluster = h.cluster != 0;
    shape.lengths = or_null(lengths);
    shape.key_padding_mask = reinterpret_cast<const bool*>(or_null(padding));
    barriers.assign(shape.barrier_words(), 0);
    // A team, or a row, that waits for a block which is not there: the barrier must end it.
    if (h.missing_blocks) barriers[0] = static_cast<uint32_t>(-h.missing_blocks);
    if (h.missing_parts) barriers[shape.row_groups + 1] = static_cast<uint32_t>(-h.missing_parts);
    stream = {static_cast<unsigned>(h.seed), h.skipped_block_barrier, h.relaxed_atomics != 0,
              h.skipped_cluster_barrier};
  }

  // Into the arguments of either kernel.
  template <typename Arguments>
  Arguments arguments() {
    Arguments to{};
    to.shape = shape;
    to.input_is_storage = h.input_storage != 0;
    to.state = state.data();
    to.state_mask = or_null(mask);
    to.keys = keys.data();
    to.memory_gates = memory_gates.data();
    to.score_weight = score_weight.data();
    to.query_weight = query_weight.data();
    to.hidden_weight = hidden_weight.data();
    to.barriers = barriers.data();
    to.spin_limit = static_cast<uint32_t>(h.spin_limit);
    return to;
  }
};

template <typename Storage, typename Input>
int forward(const Header& h) {
  Inputs<Storage> in(h);
  const auto query_bias = read_as<Storage>(h.bias ? h.A : 0), hidden_bias = read_as<Storage>(h.bias ? 3 * h.H : 0);
  const auto input = read_as<Input>(in.cells * 3 * h.H);
  auto states = poisoned<float>(in.cells * h.H), gates = poisoned<float>(in.cells * 4 * h.H);
  auto attn_weights = poisoned<float>(in.cells * h.S), projected = poisoned<float>(size_t(h.B) * (h.A + 3 * h.H));
  auto partial = poisoned<float>(h.splits > 1 ? size_t(h.B) * h.splits * part_sums(in.shape).width() : 0);
  auto exchange = poisoned<Storage>(size_t(2) * h.B * padded_depth(h.H));
  auto arguments = in.template arguments<DecoderScanArguments<Storage>>();
  arguments.input_gates = input.data();
  arguments.query_bias = or_null(query_bias);
  arguments.hidden_bias = or_null(hidden_bias);
  arguments.states = states.data();
  arguments.attn_weights = attn_weights.data();
  arguments.gates = gates.data();
  arguments.exchange = exchange.data();
  arguments.projected = projected.data();
  arguments.partial = partial.data();
  const int status = status_of(launch_scan(arguments, h.threads, in.stream), in.barriers[in.shape.row_groups]);
  write(states);
  write(attn_weights);
  write(gates);
  return status;
}

template <typename Storage, typename Input>
int backward(const Header& h) {
  Inputs<Storage> in(h);
  const auto grad_states = read<float>(in.cells * h.H), outside = read<float>(in.cells * h.S),
             queries = read<float>(in.cells * h.A), states = read<float>(in.cells * h.H),
             attn_weights = read<float>(in.cells * h.S), gates = read<float>(in.cells * 4 * h.H);
  auto grad_input = poisoned<Input>(in.cells * 3 * h.H);
  auto grad_hidden = poisoned<Storage>(in.cells * 3 * h.H), grad_queries = poisoned<Storage>(in.cells * h.A);
  auto grad_scores = poisoned<float>(in.cells * h.S), grad_state = poisoned<float>(size_t(h.B) * h.H);
  auto exchange = poisoned<Storage>(size_t(2) * h.B * grad_depth(h.A, h.H));
  auto grad_gates = poisoned<float>(size_t(h.B) * 3 * h.H);
  auto partial = poisoned<float>(h.splits > 1 ? size_t(h.B) * h.splits * grad_part_sums(in.shape).width() : 0);
  auto arguments = in.template arguments<DecoderScanBackwardArguments<Storage>>();
  arguments.grad_states = grad_states.data();
  arguments.outside = outside.data();
  arguments.queries = queries.data();
  arguments.states = states.data();
  arguments.attn_weights = attn_weights.data();
  arguments.gates = gates.data();
  arguments.grad_input_gates = grad_input.data();
  arguments.grad_hidden = grad_hidden.data();
  arguments.grad_queries = grad_queries.data();
  arguments.grad_scores = grad_scores.data();
  arguments.grad_state = grad_state.data();
  arguments.exchange = exchange.data();
  arguments.grad_gates = grad_gates.data();
  arguments.partial = partial.data();
  const int status = status_of(launch_decoder_scan(arguments, h.threads, in.stream), in.barriers[in.shape.row_groups]);
  write(grad_input);
  write(grad_hidden);
  write(grad_queries);
  write(grad_scores);
  write(grad_state);
  return status;
}

template <typename Storage, typename Input>
int run(const Header& header) {
  return header.backward ? backward<Storage, Input>(header) : forward<Storage, Input>(header);
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
