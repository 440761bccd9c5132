// From arguments to a launch of the persistent GRU kernels: null, or why there was none.
#pragma once

#include "kernels/gru_scan.h"
#include "kernels/gru_scan_backward.h"

namespace rnnsearch::cuda {

template <typename Storage>
const char* launch_gru_scan(const GruScanArguments<Storage>& arguments, int threads, Stream stream) {
  const GruShape& shape = arguments.shape;
  const LaunchShape launch{shape.blocks(), threads, GruScanShared<Storage>(shape, threads).bytes};
  switch (shape.units) {
    case 8:
      return launch_cooperative(gru_scan<Storage, 1>, arguments, launch, stream);
    case 16:
      return launch_cooperative(gru_scan<Storage, 2>, arguments, launch, stream);
    case 32:
      return launch_cooperative(gru_scan<Storage, 4>, arguments, launch, stream);
  }
  return "a block takes 8, 16 or 32 units";
}

template <typename Storage>
const char* launch_gru_scan_backward(const GruScanBackwardArguments<Storage>& arguments, int threads, Stream stream) {
  const GruShape& shape = arguments.shape;
  const LaunchShape launch{shape.blocks(), threads, GruScanBackwardShared<Storage>(shape, threads).bytes};
  switch (shape.units) {
    case 8:
      return launch_cooperative(gru_scan_backward<Storage, 1>, arguments, launch, stream);
    case 16:
      return launch_cooperative(gru_scan_backward<Storage, 2>, arguments, launch, stream);
    case 32:
      return launch_cooperative(gru_scan_backward<Storage, 4>, arguments, launch, stream);
  }
  return "a block takes 8, 16 or 32 units";
}

template <typename Storage>
const char* launch_gru_entering(const GruEnteringArguments<Storage>& arguments, Stream stream) {
  return launch(gru_entering<Storage>, arguments, {arguments.shape.B * arguments.shape.T, 256, 0}, stream);
}

}  // namespace rnnsearch::cuda
