// Checks of a call's tensors, for every binding, with messages that finish the sentence: a direct call of an op is
// checked here; nothing is read before it was.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <string>

namespace rnnsearch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
const T* pointer(const OptionalTensor& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}
enum class Role { storage, accumulate, either, mask, index };

// The sizes of a call by letter, and its storage type. `check` learns what it meets first and holds the rest to it.
class Signature {
 public:
  // `storage` is the tensor that decides the storage type, one of `types`, and the device.
  Signature(const char* name, const Tensor& storage, std::initializer_list<ScalarType> types);

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
  bool on_cpu_;
  int32_t device_;
  int64_t sizes_[26];
};

}  // namespace rnnsearch
