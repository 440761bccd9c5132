// AVX-512: 64-byte vectors, 32 registers.
#if defined(__x86_64__)
#define RNNSEARCH_ISA x86_64_v4
#define RNNSEARCH_VECTOR_BYTES 64
#define RNNSEARCH_REGISTERS 32
#define RNNSEARCH_TARGET "arch=x86-64-v4"
#include "table.h"

namespace rnnsearch {
constexpr Isa kX86V4 = {"x86-64-v4", x86_64_v4::table<float>(), x86_64_v4::table<double>(),
                        x86_64_v4::table<BFloat16>()};
}
#endif
