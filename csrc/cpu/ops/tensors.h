// What stands between tensors and kernels: checks (signature.h), tensors as pointers and strides, results and scratch
// memory.
#pragma once

#include "../../binding/signature.h"
#include "../dispatch.h"

namespace rnnsearch {

template <class S>
inline constexpr ScalarType scalar_type = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type<double> = ScalarType::Double;
template <>
inline constexpr ScalarType scalar_type<BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType scalar_type<int64_t> = ScalarType::Long;

// The storage types that have kernels here.
inline constexpr std::initializer_list<ScalarType> kStorageTypes = {ScalarType::Float, ScalarType::Double,
                                                                    ScalarType::BFloat16};

// f(S{}) with the storage type of the call.
template <class F>
auto with_storage(const Signature& call, const F& f) {
  switch (call.storage()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      return f(BFloat16{});
  }
}

Tensor empty(std::initializer_list<int64_t> shape, ScalarType type);
// The same values in type V; the tensor itself, where it has that type.
template <class V>
Tensor to_type(const Tensor& tensor) {
  return torch::stable::to(tensor, scalar_type<V>);
}

template <class S>
Matrix<S> matrix(const Tensor& tensor) {
  return {pointer<S>(tensor), tensor.stride(0)};
}
template <class S>
Sentences<S> sentences(const Tensor& tensor) {
  return {pointer<S>(tensor), tensor.stride(0), tensor.stride(1), tensor.size(2)};
}
// Row n, whichever of the two types it is of.
template <class S>
const void* row(const Rows& rows, int64_t n) {
  const int64_t item = rows.is_storage ? sizeof(S) : sizeof(Accumulate<S>);
  return static_cast<const char*>(rows.data) + n * rows.stride * item;
}
inline Rows rows_of(const Tensor& tensor, const Signature& call) {
  return {tensor.data_ptr(), tensor.stride(0), tensor.scalar_type() == call.storage()};
}

// Memory that lives as long as the call, aligned for any vector; allocated by torch. Not initialised.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : tensor_(empty({count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte)), data_(pointer<T>(tensor_)) {}
  T* data() const { return data_; }

 private:
  Tensor tensor_;
  T* data_;
};
}  // namespace rnnsearch
