#include "library.h"

#include <array>

namespace rnnsearch {
namespace {

void product(const char* op, const Tensor& left, const Tensor& right, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(left), from(right), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}
}  // namespace

void library_mm(const Tensor& left, const Tensor& right, Tensor out) { product("aten::mm", left, right, out); }

void library_bmm(const Tensor& left, const Tensor& right, Tensor out) { product("aten::bmm", left, right, out); }

Tensor rows_part(Tensor tensor, int64_t begin, int64_t count) { return torch::stable::narrow(tensor, 0, begin, count); }

Tensor columns_part(Tensor tensor, int64_t begin, int64_t count) {
  return torch::stable::narrow(tensor, 1, begin, count);
}
}  // namespace rnnsearch
