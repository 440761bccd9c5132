// gru_scan, forward and backward, as the GPU's kernels run on the host: sizes and tensors in at standard input, results
// out at standard output, both raw. test_cuda_host.py writes and reads it. Buffers start as NaN and are exactly as
// large as promised, so that an unwritten element or a step too far shows.
#include "launch_gru.h"
#include "raw_io.h"

using namespace rnnsearch::cuda;

namespace {

struct Header {
  int32_t storage, backward, B, T, H, rows, units, threads, reverse, reset_after, bias, lengths, mask, input_storage,
      seed, spin_limit, missing_blocks, skipped_block_barrier, relaxed_atomics, cluster, skipped_cluster_barrier;
};

#ifdef FOR_SANITIZER  // bfloat16 and 8 units alone: what is not there need not be compiled
template <typename Arguments>
const char* launch_scan(const Arguments& arguments, int threads, Stream stream) {
  return launch_gru_of<1>(arguments, threads, stream);
}
#else
template <typename Arguments>
const char* launch_scan(const Arguments& arguments, int threads, Stream stream) {
  return launch_gru_scan(arguments, threads, stream);
}
#endif

template <typename Storage, typename Input>
int run(const Header& h) {
  const size_t cells = size_t(h.B) * h.T;
  const auto lengths = read<int64_t>(h.lengths ? h.B : 0);
  GruShape shape{h.B,
                 h.T,
                 h.H,
                 h.rows,
                 (h.B + h.rows - 1) / h.rows,
                 h.units,
                 h.cluster ? h.cluster : (h.H + h.units - 1) / h.units,
                 h.reverse != 0,
                 h.reset_after != 0,
                 or_null(lengths),
                 h.cluster > 0};
  const auto state = read<float>(size_t(h.B) * h.H);
  const auto weight = read_as<Storage>(size_t(3) * h.H * h.H);
  const auto mask = read<float>(h.mask ? size_t(h.B) * h.H : 0);
  std::vector<uint32_t> barriers(shape.row_groups + 1, 0);
  const bool input_is_storage = h.input_storage != 0;
  const Stream stream{static_cast<unsigned>(h.seed), h.skipped_block_barrier, h.relaxed_atomics != 0,
                      h.skipped_cluster_barrier};
  if (!h.backward) {
    const auto bias = read_as<Storage>(h.bias ? size_t(3) * h.H : 0);
    const auto input = read_as<Input>(cells * 3 * h.H);
    auto states = poisoned<float>(cells * h.H), gates = poisoned<float>(cells * 4 * h.H);
    auto exchange = poisoned<Storage>(size_t(3) * h.B * padded_depth(h.H));
    // A team that waits for a block which is not there: the barrier must end it.
    if (h.missing_blocks) barriers[0] = static_cast<uint32_t>(-h.missing_blocks);
    const GruScanArguments<Storage> arguments{shape,           input.data(),    input_is_storage,
                                              state.data(),    weight.data(),   or_null(bias),
                                              or_null(mask),   states.data(),   gates.data(),
                                              exchange.data(), barriers.data(), static_cast<uint32_t>(h.spin_limit)};
    const int status = status_of(launch_scan(arguments, h.threads, stream), barriers.back());
    write(states);
    write(gates);
    return status;
  }
  const auto grad_states = read<float>(cells * h.H), states = read<float>(cells * h.H),
             gates = read<float>(cells * 4 * h.H);
  auto grad_input = poisoned<Input>(cells * 3 * h.H);
  auto grad_hidden = poisoned<Storage>(cells * 3 * h.H);
  auto grad_state = poisoned<float>(size_t(h.B) * h.H);
  auto exchange = poisoned<Storage>(size_t(2) * h.B * 3 * padded_depth(h.H));
  const GruScanBackwardArguments<Storage> arguments{shape,
                                                    grad_states.data(),
                                                    state.data(),
                                                    weight.data(),
                                                    or_null(mask),
                                                    states.data(),
                                                    gates.data(),
                                                    grad_input.data(),
                                                    input_is_storage,
                                                    grad_hidden.data(),
                                                    grad_state.data(),
                                                    exchange.data(),
                                                    barriers.data(),
                                                    static_cast<uint32_t>(h.spin_limit)};
  const int status = status_of(launch_scan(arguments, h.threads, stream), barriers.back());
  write(grad_input);
  write(grad_hidden);
  write(grad_state);
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
  check(header.storage == 1 && header.units == 8, "built for bfloat16 and 8 units alone");
#else
  if (header.storage == 0) return run_storage<float>(header);
  if (header.storage == 2) return run_storage<float16>(header);
#endif
  return run_storage<bfloat16>(header);
}
