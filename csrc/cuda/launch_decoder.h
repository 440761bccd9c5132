// From arguments to a launch of the persistent decoder kernels: null, or why there was none.
#pragma once

#include "kernels/decoder_scan.h"
#include "kernels/decoder_scan_backward.h"

namespace rnnsearch::cuda {

template <typename Storage>
const char* launch_decoder_scan(const DecoderScanArguments<Storage>& arguments, int threads, Stream stream) {
  const DecoderShape& shape = arguments.shape;
  const LaunchShape launch{shape.blocks(), threads, DecoderScanShared<Storage>(shape, threads).bytes};
  const int tiles = shape.tiles > shape.candidate_tiles ? shape.tiles : shape.candidate_tiles;
  if (tiles <= 4) return launch_cooperative(decoder_scan<Storage, 4>, arguments, launch, stream);
  constexpr int kMost = most_tiles(sizeof(Storage));
  if (tiles <= kMost) return launch_cooperative(decoder_scan<Storage, kMost>, arguments, launch, stream);
  return "a block takes up to 8 tiles of 8 columns, and 5 in float32";
}

template <typename Storage>
const char* launch_decoder_scan_backward(const DecoderScanBackwardArguments<Storage>& arguments, int threads,
                                         Stream stream) {
  const DecoderShape& shape = arguments.shape;
  if (shape.tiles > kGradTiles) return "a block takes up to 4 tiles of 8 units";
  const size_t bytes = DecoderScanBackwardShared<Storage>(shape, threads).bytes;
  return launch_cooperative(decoder_scan_backward<Storage>, arguments, {shape.blocks(), threads, bytes}, stream);
}

}  // namespace rnnsearch::cuda
