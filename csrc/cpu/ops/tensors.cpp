#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnsearch {
namespace {

// Asks for large pages where many are about to be touched for the first time: the faults of small ones take a tenth of
// a scan's time. A hint; where the kernel has none to give, small ones do.
void use_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  if (end > begin + page) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

Tensor empty(std::initializer_list<int64_t> shape, ScalarType type) {
  int64_t strides[8];
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape.begin()[d];
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.begin(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), aoti_torch_device_type_cpu(), 0, &handle));
  const Tensor made(handle);
  use_large_pages(made.data_ptr(), stride * static_cast<int64_t>(made.element_size()));
  return made;
}
}  // namespace rnnsearch
