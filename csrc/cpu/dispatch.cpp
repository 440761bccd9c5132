#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#define RNNSEARCH_HAS_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rnnsearch {
namespace {

struct Candidate {
  const Isa* isa;
  bool (*is_available)();
};

#if defined(__x86_64__)
bool has_v4() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_v4() && __builtin_cpu_supports("avx512bf16"); }

const Isa& with_avx512_bf16() {
  static const Isa isa = [] {
    Isa made = kX86V4;
    made.name = "avx512-bf16";
    made.bfloat16.products = kAvx512Bf16Products;
    made.bfloat16.scan.packed = kAvx512Bf16Packed;
    return made;
  }();
  return isa;
}
#endif

#if RNNSEARCH_HAS_AMX
// The processor has the matrix unit with bfloat16, and Linux lets this process use its registers.
bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned tiles = 1u << 24, bfloat16 = 1u << 22;
  if (!has_v4() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tiles) == 0 || (d & bfloat16) == 0) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

const Isa& with_amx() {
  static const Isa isa = [] {
    Isa made = kX86V4;
    made.name = "amx-bf16";
    made.bfloat16.products = kAmxProducts;
    return made;
  }();
  return isa;
}
#endif

// The best last.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
      {&kBaseline, [] { return true; }},
#if defined(__x86_64__)
      {&kX86V3,
       [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
       }},
      {&kX86V4, has_v4},
      {&with_avx512_bf16(), has_avx512_bf16},
#endif
#if RNNSEARCH_HAS_AMX
      {&with_amx(), has_amx},
#endif
  };
  return all;
}

const Isa* best() {
  const Isa* found = nullptr;
  for (const Candidate& candidate : candidates())
    if (candidate.is_available()) found = candidate.isa;
  return found;
}

std::atomic<const Isa*>& active() {
  static std::atomic<const Isa*> isa = best();
  return isa;
}
}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) names.emplace_back(candidate.isa->name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates())
    if (candidate.is_available()) names.emplace_back(candidate.isa->name);
  return names;
}

const Isa& active_isa() { return *active().load(std::memory_order_relaxed); }

void select_isa(const std::string& name) {
  std::string choices;
  for (const Candidate& candidate : candidates()) {
    if (!candidate.is_available()) continue;
    if (name == candidate.isa->name) {
      active().store(candidate.isa, std::memory_order_relaxed);
      return;
    }
    choices += (choices.empty() ? "" : ", ") + std::string(candidate.isa->name);
  }
  throw std::invalid_argument("the instruction set must be one of " + choices + " on this machine; got '" + name + "'");
}
}  // namespace rnnsearch
