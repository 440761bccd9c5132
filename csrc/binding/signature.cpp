#include "signature.h"

#include <algorithm>
#include <stdexcept>

namespace rnnsearch {
namespace {

const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Bool:
      return "torch.bool";
    default:
      return torch::headeronly::toString(type);
  }
}

[[noreturn]] void refuse(const std::string& message) { throw std::runtime_error(message); }

std::string quoted(const char* name) { return "`" + std::string(name) + "`"; }

template <class Items, class F>
std::string tuple(const Items& items, const F& text) {
  std::string out = "(";
  size_t count = 0;
  for (const auto& item : items) out += (count++ == 0 ? "" : ", ") + text(item);
  return out + (count == 1 ? ",)" : ")");
}

// "3H" is three times H.
int64_t multiple_of(const char* size) { return size[1] == '\0' ? 1 : size[0] - '0'; }
char letter_of(const char* size) { return size[1] == '\0' ? size[0] : size[1]; }

bool has_unit_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) == 1;
}
}  // namespace

Signature::Signature(const char* name, const Tensor& storage, std::initializer_list<ScalarType> types)
    : storage_name_(name),
      storage_(storage.scalar_type()),
      on_cpu_(storage.is_cpu()),
      device_(storage.get_device_index()) {
  for (int64_t& size : sizes_) size = -1;
  if (std::find(types.begin(), types.end(), storage_) != types.end()) return;
  std::string wanted;
  for (const ScalarType type : types) wanted += (wanted.empty() ? "" : " or ") + std::string(type_name(type));
  refuse(quoted(name) + " must be " + wanted + "; got " + type_name(storage_));
}

Tensor Signature::check(const char* name, const Tensor& tensor, std::initializer_list<const char*> shape, Role role) {
  const ScalarType type = tensor.scalar_type();
  const auto must_be = [&](ScalarType first, ScalarType second) {
    if (type == first || type == second) return;
    std::string wanted = type_name(first);
    if (second != first) wanted += std::string(" or ") + type_name(second);
    refuse(quoted(name) + " must be " + wanted + " (" + quoted(storage_name_) + " is " + type_name(storage_) +
           "); got " + type_name(type));
  };
  switch (role) {
    case Role::storage:
      must_be(storage_, storage_);
      break;
    case Role::accumulate:
      must_be(accumulate(), accumulate());
      break;
    case Role::either:
      must_be(storage_, accumulate());
      break;
    case Role::mask:
      must_be(ScalarType::Bool, ScalarType::Bool);
      break;
    case Role::index:
      must_be(ScalarType::Long, ScalarType::Long);
      break;
  }
  if (tensor.is_cpu() != on_cpu_ || (!on_cpu_ && tensor.get_device_index() != device_))
    refuse(quoted(name) + " must be on the device of " + quoted(storage_name_) + "; got another");
  const auto got = tensor.sizes();
  bool fits = got.size() == shape.size();
  size_t d = 0;
  for (const char* size : shape) {
    if (!fits) break;
    int64_t& known = sizes_[letter_of(size) - 'A'];
    const int64_t multiple = multiple_of(size);
    if (known >= 0) {
      fits = got[d] == known * multiple;
    } else {
      fits = got[d] >= multiple && got[d] % multiple == 0;
      if (fits) known = got[d] / multiple;
    }
    ++d;
  }
  if (!fits) {
    const std::string letters = tuple(shape, [](const char* size) { return std::string(size); });
    const std::string wanted = tuple(shape, [&](const char* size) {
      const int64_t known = sizes_[letter_of(size) - 'A'];
      return known < 0 ? std::string(size) : std::to_string(known * multiple_of(size));
    });
    const std::string given = tuple(got, [](int64_t size) { return std::to_string(size); });
    refuse(quoted(name) + " must be " + letters + " = " + wanted + ", every size at least 1; got " + given);
  }
  return has_unit_stride(tensor) ? tensor : torch::stable::contiguous(tensor);
}

OptionalTensor Signature::check(const char* name, const OptionalTensor& tensor,
                                std::initializer_list<const char*> shape, Role role) {
  if (!tensor.has_value()) return std::nullopt;
  return check(name, *tensor, shape, role);
}

void Signature::check_range(const char* name, const Tensor& index, int64_t low, int64_t high,
                            const std::string& range) const {
  const int64_t* values = pointer<int64_t>(index);
  for (int64_t i = 0; i < index.size(0); ++i)
    if (values[i] < low || values[i] >= high)
      refuse(quoted(name) + " must lie in " + range + "; got " + std::to_string(values[i]));
}
}  // namespace rnnsearch
