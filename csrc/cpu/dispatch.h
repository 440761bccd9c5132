// Which instruction set runs: the best one this machine has, unless `select_isa` names another.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace rnnsearch {

// Names, the best last.
std::vector<std::string> compiled_isas();
std::vector<std::string> available_isas();
const Isa& active_isa();
// std::invalid_argument for a name that is unknown or not available, with the choices.
void select_isa(const std::string& name);

template <class S>
const KernelTable<S>& kernels();
template <>
inline const KernelTable<float>& kernels<float>() {
  return active_isa().float32;
}
template <>
inline const KernelTable<double>& kernels<double>() {
  return active_isa().float64;
}
template <>
inline const KernelTable<BFloat16>& kernels<BFloat16>() {
  return active_isa().bfloat16;
}
}  // namespace rnnsearch
