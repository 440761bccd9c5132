// What every op's binding does: checked tensors, results and workspaces from torch, launches on its current stream.
// Nothing waits for the device, so a call can be captured.
#pragma once

#include <array>
#include <utility>

#include "../../binding/signature.h"
#include "../settle.h"
#include "control.h"
#include "device.h"

namespace rnnsearch::cuda {

// An op's call: its storage tensor decides type, device and stream.
class Call : public Signature {
 public:
  Call(const char* op, const char* name, const Tensor& storage)
      : Signature(name, storage, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}),
        op_(op),
        like_(storage),
        on_device_(storage),
        stream_(current_stream(storage)) {}

  // Checked, and laid out in one piece.
  Tensor take(const char* name, const Tensor& tensor, std::initializer_list<const char*> shape, Role role) {
    return torch::stable::contiguous(check(name, tensor, shape, role));
  }
  OptionalTensor take(const char* name, const OptionalTensor& tensor, std::initializer_list<const char*> shape,
                      Role role) {
    if (!tensor.has_value()) return std::nullopt;
    return take(name, *tensor, shape, role);
  }

  Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) const {
    return torch::stable::new_empty(like_, {shape.begin(), shape.size()}, type);
  }
  Tensor zeros(std::initializer_list<int64_t> shape, ScalarType type) const {
    return torch::stable::new_zeros(like_, {shape.begin(), shape.size()}, type);
  }

  // What a launcher gave back: null, or why there was no launch.
  void launched(const char* error) const {
    if (error != nullptr)
      throw std::runtime_error("rnnsearch::" + std::string(op_) + "." RNNSEARCH_OVERLOAD ": " + error);
  }
  // After a launch whose blocks wait for one another: `barriers` are its counters, and Stopped. Those of a cluster,
  // which are there together or not at all, wait for nobody in vain.
  template <class Plan>
  void settle(Scan scan, const Plan& plan, const Tensor& barriers, std::initializer_list<Tensor> results) const {
    if (plan.cluster > 0) return;
    SettleArguments a{};
    a.stopped = static_cast<const uint32_t*>(barriers.data_ptr()) + plan.row_groups;
    a.who = Report::of(static_cast<uint32_t>(scan), 0);
    a.report = report_word();
    for (const Tensor& result : results) {
      a.results[a.count] = result.data_ptr();
      a.bytes[a.count++] = size_t(result.numel()) * result.element_size();
    }
    launched(launch_settle(a, stream()));
  }

  rnnsearch::cuda::Storage planned_storage() const {
    if (storage() == ScalarType::Float) return rnnsearch::cuda::Storage::float32;
    return storage() == ScalarType::Half ? rnnsearch::cuda::Storage::float16 : rnnsearch::cuda::Storage::bfloat16;
  }
  bool is_storage(const Tensor& tensor) const { return tensor.scalar_type() == storage(); }
  DeviceLimits limits() const { return limits_of(like_.get_device_index()); }
  Stream stream() const { return stream_; }
  const char* op() const { return op_; }

 private:
  const char* op_;
  Tensor like_;
  OnDevice on_device_;
  Stream stream_;
};

// f(T{}) with the storage type of the call.
template <class F>
auto with_storage(const Signature& call, const F& f) {
  switch (call.storage()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Half:
      return f(float16{});
    default:
      return f(bfloat16{});
  }
}

// The op `op` of another backend, its results in their order.
template <size_t RESULTS, class... Arguments>
std::array<Tensor, RESULTS> call_backend(const char* op, const char* backend, const Arguments&... arguments) {
  std::array<StableIValue, (sizeof...(Arguments) > RESULTS ? sizeof...(Arguments) : RESULTS)> stack{
      torch::stable::detail::from(arguments)...};
  const std::string name = std::string("rnnsearch::") + op;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name.c_str(), backend, stack.data(), TORCH_ABI_VERSION));
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return std::array<Tensor, RESULTS>{torch::stable::detail::to<Tensor>(stack[I])...};
  }(std::make_index_sequence<RESULTS>{});
}

// What has no plan, by the per-step backend; where there is none, `reason` is the error.
template <size_t RESULTS, class... Arguments>
std::array<Tensor, RESULTS> step_by_step(const Call& call, const std::string& reason, const Arguments&... arguments) {
  if (per_step_backend().empty()) call.launched(("not as one launch: " + reason).c_str());
  return call_backend<RESULTS>(call.op(), per_step_backend().c_str(), arguments...);
}

// The op `aten::<name>.out` of two tensors.
inline void product(const char* name, const Tensor& left, const Tensor& right, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(left), from(right), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

// out = leftᵀ right over the first of two dimensions, by the library.
inline void product_of_columns(const Tensor& left, const Tensor& right, const Tensor& out) {
  product("aten::mm", torch::stable::transpose(left, 0, 1), right, out);
}

// "aten::mm" or "aten::bmm" in float32, whatever the type of both.
inline Tensor product_in_float(const char* name, const Tensor& left, const Tensor& right) {
  return left.scalar_type() == ScalarType::Float ? torch::stable::matmul(left, right)
                                                 : product_of_halves(name, left, right);
}

// The sum over the first of two dimensions, rounded once.
inline Tensor sum_of_rows(const Tensor& rows, ScalarType type) {
  const int64_t first[] = {0};
  return torch::stable::to(torch::stable::sum(rows, torch::headeronly::IntHeaderOnlyArrayRef(first, 1)), type);
}

// A contiguous tensor as a matrix.
inline Tensor rows_of(const Tensor& tensor, int64_t rows, int64_t columns) {
  const int64_t shape[] = {rows, columns};
  return torch::stable::view(tensor, torch::headeronly::IntHeaderOnlyArrayRef(shape, 2));
}

}  // namespace rnnsearch::cuda
