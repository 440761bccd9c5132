// What stands between tensors and kernels: checks with messages that finish the sentence, tensors as pointers and
// strides, results and scratch memory. A direct call of an op is checked here; nothing is read before it was.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "../dispatch.h"

namespace rnnsearch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class S>
inline constexpr ScalarType scalar_type = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type<double> = ScalarType::Double;
template <>
inline constexpr ScalarType scalar_type<BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType scalar_type<int64_t> = ScalarType::Long;

enum class Role { storage, accumulate, either, mask, index };

// The sizes of a call by letter, and its storage type. `check` learns what it meets first and holds the rest to it.
class Signature {
 public:
  // `name` is the tensor that decides the storage type.
  Signature(const char* name, const Tensor& storage);

  // The tensor, with an innermost stride of 1 (a copy, where it has another).
  Tensor check(const char* name, const Tensor& tensor, std::initializer_list<const char*> shape, Role role);
  OptionalTensor check(const char* name, const OptionalTensor& tensor, std::initializer_list<const char*> shape,
                       Role role);
  // Values of an index in [low, high), `range` says so in words.
  void check_range(const char* name, const Tensor& index, int64_t low, int64_t high, const std::string& range) const;

  int64_t operator[](char letter) const { return sizes_[letter - 'A']; }
  ScalarType storage() const { return storage_; }
  ScalarType accumulate() const { return storage_ == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

 private:
  const char* storage_name_;
  ScalarType storage_;
  int64_t sizes_[26];
};

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

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
const T* pointer(const OptionalTensor& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
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
