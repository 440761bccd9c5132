// What every machine of the architecture has: 16-byte vectors (SSE2, NEON).
#define RNNSEARCH_ISA baseline
#define RNNSEARCH_VECTOR_BYTES 16
#define RNNSEARCH_REGISTERS 16
#include "table.h"

namespace rnnsearch {
constexpr Isa kBaseline = {"baseline", baseline::table<float>(), baseline::table<double>(),
                           baseline::table<BFloat16>()};
}
