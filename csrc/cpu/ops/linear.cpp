// linear: output = input weightᵀ + bias. A row's result does not depend on how many rows there are.
#include "launch.h"

namespace rnnsearch {

Tensor linear(const Tensor& input_, const Tensor& weight_, const OptionalTensor& bias_) {
  Signature call("weight", weight_, kStorageTypes);
  const Tensor input = call.check("input", input_, {"N", "I"}, Role::either);
  const Tensor weight = call.check("weight", weight_, {"O", "I"}, Role::storage);
  const OptionalTensor bias = call.check("bias", bias_, {"O"}, Role::storage);
  const int64_t N = call['N'], O = call['O'];
  const Tensor output = empty({N, O}, call.accumulate());
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    PackedRows<S>(rows_of(input, call), N, call['I'])
        .product(matrix<S>(weight), pointer<S>(bias), O, pointer<Accumulate<S>>(output), O);
  });
  return output;
}
}  // namespace rnnsearch

STABLE_TORCH_LIBRARY_IMPL(rnnsearch, CPU, m) { m.impl("linear.cpu", TORCH_BOX(&rnnsearch::linear)); }
