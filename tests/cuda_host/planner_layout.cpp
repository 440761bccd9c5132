// Whether the planner counts a block's shared memory as the kernels lay it out. Says where it does not, and how many
// plans it compared.
#include <cstdio>

#include "kernels/decoder_scan.h"
#include "kernels/decoder_scan_backward.h"
#include "kernels/gru_scan.h"
#include "kernels/gru_scan_backward.h"
#include "planner/planner.h"

using namespace rnnsearch::cuda;

namespace {

DeviceLimits device{9, 0, 132, 228 * 1024, 227 * 1024, 65536, 2048, 0, 0};
int compared = 0, in_clusters = 0, wrong = 0;

template <typename T>
void compare(Storage storage, int B, int H) {
  for (const bool backward : {false, true}) {
    const Plan plan = plan_gru_scan({backward, storage, true, B, 7, H}, device);
    if (!plan.reason.empty()) continue;
    GruShape shape{};
    shape.B = B;
    shape.T = 7;
    shape.H = H;
    shape.rows = static_cast<int>(plan.rows);
    shape.row_groups = plan.row_groups;
    shape.units = static_cast<int>(plan.units);
    shape.unit_groups = plan.unit_groups;
    shape.cluster = plan.cluster > 0;
    shape.reset_after = true;
    const size_t bytes =
        backward ? GruScanBackwardShared<T>(shape, plan.threads).bytes : GruScanShared<T>(shape, plan.threads).bytes;
    ++compared;
    in_clusters += shape.cluster;
    if (bytes == static_cast<size_t>(plan.shared_bytes) && (shape.cluster || shape.blocks() <= device.processors)) {
      continue;
    }
    ++wrong;
    std::printf("backward %d, %d bytes a value, B %d, H %d: planned %lld, laid out %zu\n", backward, int(sizeof(T)), B,
                H, static_cast<long long>(plan.shared_bytes), bytes);
  }
}

template <typename T>
void compare_decoder(Storage storage, int B, int S, int H, int A) {
  for (const int question : {0, 1, 2, 3}) {
    const bool backward = question / 2 == 1, reset_after = question % 2 == 1;
    const DecoderPlan plan = plan_decoder_scan({backward, storage, reset_after, B, 7, S, H, A}, device);
    if (!plan.reason.empty()) continue;
    DecoderShape shape{};
    shape.B = B;
    shape.T = 7;
    shape.S = S;
    shape.H = H;
    shape.A = A;
    shape.rows = static_cast<int>(plan.rows);
    shape.row_groups = plan.row_groups;
    shape.team = plan.team;
    shape.tiles = plan.tiles;
    shape.candidate_tiles = plan.candidate_tiles;
    shape.splits = plan.splits;
    shape.kept_keys = static_cast<int>(plan.kept_keys);
    shape.kept_gates = static_cast<int>(plan.kept_gates);
    shape.reset_after = reset_after;
    shape.cluster = plan.cluster > 0;
    const size_t bytes = backward ? DecoderScanBackwardShared<T>(shape, plan.threads).bytes
                                  : DecoderScanShared<T>(shape, plan.threads).bytes;
    ++compared;
    in_clusters += shape.cluster;
    if (bytes == static_cast<size_t>(plan.shared_bytes) && (shape.cluster || shape.blocks() <= device.processors) &&
        plan.threads <= kDecoderThreads && (!backward || plan.tiles <= kGradTiles)) {
      continue;
    }
    ++wrong;
    std::printf("decoder, backward %d, %d bytes a value, B %d, S %d, H %d, A %d: planned %lld, laid out %zu\n",
                backward, int(sizeof(T)), B, S, H, A, static_cast<long long>(plan.shared_bytes), bytes);
  }
}

void compare_all() {
  for (const int B : {1, 5, 16, 17, 64, 80, 300}) {
    for (const int H : {1, 8, 17, 100, 512, 1000, 1024, 2000}) {
      compare<float>(Storage::float32, B, H);
      compare<bfloat16>(Storage::bfloat16, B, H);
      compare<float16>(Storage::float16, B, H);
    }
  }
  for (const int B : {1, 17, 80}) {
    for (const int S : {1, 50, 1500}) {
      for (const int H : {1, 17, 512, 1000}) {
        compare_decoder<float>(Storage::float32, B, S, H, 512);
        compare_decoder<bfloat16>(Storage::bfloat16, B, S, H, 1000);
        compare_decoder<float16>(Storage::float16, B, S, H, 7);
      }
    }
  }
}

}  // namespace

int main() {
  compare_all();
  device.clusters_of_8 = 16;
  compare_all();
  device.clusters_of_16 = 8;
  compare_all();
  std::printf("%d plans, %d in clusters\n", compared, in_clusters);
  return wrong == 0 && compared > 1200 && in_clusters > 200 ? 0 : 1;
}
