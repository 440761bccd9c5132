// From arguments to a launch of the persistent decoder kernels: null, or why there was none.
#pragma once

#include "kernels/decoder_scan.h"
#include "kernels/decoder_scan_backward.h"

namespace rnnsearch::cuda {

template <int TILES, typename Storage>
const char* launch_decoder_of(const DecoderScanArguments<Storage>& arguments, int threads, Stream stream) {
  const DecoderShape& shape = arguments.shape;
  return launch_teams(decoder_scan<Storage, TILES, GridTeam>, decoder_scan<Storage, TILES, ClusterTeam>, arguments,
                      {shape.blocks(), threads, DecoderScanShared<Storage>(shape, threads).bytes},
                      shape.cluster ? shape.team : 0, stream);
}

template <typename Storage>
const char* launch_decoder_scan(const DecoderScanArguments<Storage>& arguments, int threads, Stream stream) {
  const DecoderShape& shape = arguments.shape;
  const int tiles = shape.tiles > shape.candidate_tiles ? shape.tiles : shape.candidate_tiles;
  if (tiles <= 4) return launch_decoder_of<4>(arguments, threads, stream);
  return launch_decoder_of<most_tiles(sizeof(Storage))>(arguments, threads, stream);
}

template <typename Storage>
const char* launch_decoder_scan(const DecoderScanBackwardArguments<Storage>& arguments, int threads, Stream stream) {
  const DecoderShape& shape = arguments.shape;
  if (shape.tiles > kGradTiles) return "a block takes up to 4 tiles of 8 units";
  return launch_teams(decoder_scan_backward<Storage, GridTeam>, decoder_scan_backward<Storage, ClusterTeam>, arguments,
                      {shape.blocks(), threads, DecoderScanBackwardShared<Storage>(shape, threads).bytes},
                      shape.cluster ? shape.team : 0, stream);
}

}  // namespace rnnsearch::cuda
