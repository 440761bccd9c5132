#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace rnnsearch {
namespace {

struct Candidate {
  const Isa* isa;
  bool (*is_available)();
};

// The best last.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
      {&kBaseline, [] { return true; }},
#if defined(__x86_64__)
      {&kX86V3,
       [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
       }},
      {&kX86V4,
       [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl");
       }},
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
