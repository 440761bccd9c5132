// What the bindings of decoder_scan and its backward op share.
#pragma once

#include "../launch_decoder.h"
#include "call.h"

namespace rnnsearch::cuda {

inline DecoderPlan plan_decoder(const Call& call, bool backward, bool reset_after) {
  return plan_decoder_scan(
      {backward, call.planned_storage(), reset_after, call['B'], call['T'], call['S'], call['H'], call['A']},
      call.limits());
}

inline DecoderShape decoder_shape(const Call& call, const DecoderPlan& plan, const OptionalTensor& key_padding_mask,
                                  const OptionalTensor& lengths, bool reset_after) {
  DecoderShape shape{};
  shape.B = static_cast<int>(call['B']);
  shape.T = static_cast<int>(call['T']);
  shape.S = static_cast<int>(call['S']);
  shape.H = static_cast<int>(call['H']);
  shape.A = static_cast<int>(call['A']);
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
  shape.lengths = pointer<int64_t>(lengths);
  shape.key_padding_mask = pointer<bool>(key_padding_mask);
  return shape;
}

// Kernels are compiled in decoder_scan.cu alone.
#define RNNSEARCH_DECODER(STORAGE)                                                                    \
  extern template const char* launch_decoder_scan(const DecoderScanArguments<STORAGE>&, int, Stream); \
  extern template const char* launch_decoder_scan(const DecoderScanBackwardArguments<STORAGE>&, int, Stream);
RNNSEARCH_DECODER(float)
RNNSEARCH_DECODER(bfloat16)
RNNSEARCH_DECODER(float16)
#undef RNNSEARCH_DECODER

}  // namespace rnnsearch::cuda
