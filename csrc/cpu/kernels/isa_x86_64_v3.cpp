// AVX2 and FMA: 32-byte vectors, 16 registers.
#if defined(__x86_64__)
#define RNNSEARCH_ISA x86_64_v3
#define RNNSEARCH_VECTOR_BYTES 32
#define RNNSEARCH_REGISTERS 16
#define RNNSEARCH_TARGET "arch=x86-64-v3"
#include "table.h"

namespace rnnsearch {
constexpr Isa kX86V3 = {"x86-64-v3", x86_64_v3::table<float>(), x86_64_v3::table<double>(),
                        x86_64_v3::table<BFloat16>()};
}
#endif
