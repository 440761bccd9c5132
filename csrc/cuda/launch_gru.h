// From arguments to a launch of the persistent GRU kernels: null, or why there was none.
#pragma once

#include "kernels/gru_scan.h"
#include "kernels/gru_scan_backward.h"

namespace rnnsearch::cuda {

// How a kernel is launched whose shared memory has this layout: in clusters, where a team is one.
template <typename Layout, typename Arguments>
const char* launch_gru(void (*on_grid)(Arguments), void (*in_clusters)(Arguments), const Arguments& arguments,
                       int threads, Stream stream) {
  const GruShape& shape = arguments.shape;
  return launch_teams(on_grid, in_clusters, arguments, {shape.blocks(), threads, Layout(shape, threads).bytes},
                      shape.cluster ? shape.unit_groups : 0, stream);
}

template <int TILES, typename Storage>
const char* launch_gru_of(const GruScanArguments<Storage>& arguments, int threads, Stream stream) {
  return launch_gru<GruScanShared<Storage>>(gru_scan<Storage, TILES, GridTeam>, gru_scan<Storage, TILES, ClusterTeam>,
                                            arguments, threads, stream);
}
template <int TILES, typename Storage>
const char* launch_gru_of(const GruScanBackwardArguments<Storage>& arguments, int threads, Stream stream) {
  return launch_gru<GruScanBackwardShared<Storage>>(gru_scan_backward<Storage, TILES, GridTeam>,
                                                    gru_scan_backward<Storage, TILES, ClusterTeam>, arguments, threads,
                                                    stream);
}

// Forward or backward, by the arguments.
template <typename Arguments>
const char* launch_gru_scan(const Arguments& arguments, int threads, Stream stream) {
  switch (arguments.shape.units) {
    case 8:
      return launch_gru_of<1>(arguments, threads, stream);
    case 16:
      return launch_gru_of<2>(arguments, threads, stream);
    case 32:
      return launch_gru_of<4>(arguments, threads, stream);
  }
  return "a block takes 8, 16 or 32 units";
}

template <typename Storage>
const char* launch_gru_entering(const GruEnteringArguments<Storage>& arguments, Stream stream) {
  return launch(gru_entering<Storage>, arguments, {arguments.shape.B * arguments.shape.T, 256, 0}, stream);
}

}  // namespace rnnsearch::cuda
