// linear: every row by itself.
#include "step.h"

namespace rnnsearch::cuda {

Tensor linear_op(const Tensor& input_, const Tensor& weight_, const OptionalTensor& bias_) {
  raise_if_stopped();
  Call call("linear", "weight", weight_);
  const Tensor input = call.take("input", input_, {"N", "I"}, Role::either);
  const Tensor weight = call.check("weight", weight_, {"O", "I"}, Role::storage);  // may be part of a wider matrix
  const OptionalTensor bias = call.take("bias", bias_, {"O"}, Role::storage);
  const int64_t N = call['N'], O = call['O'];
  const Tensor output = call.empty({N, O}, ScalarType::Float);
  with_storage(call, [&](auto s) {
    using S = decltype(s);
    LinearArguments<S> a{};
    a.N = static_cast<int>(N);
    a.K = static_cast<int>(call['I']);
    a.input = input.data_ptr();
    a.input_is_storage = call.is_storage(input);
    a.first = {pointer<S>(weight), pointer<S>(bias), static_cast<int>(O), static_cast<int>(weight.stride(0))};
    a.output = pointer<float>(output);
    call.launched(launch_linear(a, call.stream()));
  });
  return output;
}

}  // namespace rnnsearch::cuda

RNNSEARCH_OPS(m) { m.impl("linear." RNNSEARCH_OVERLOAD, TORCH_BOX(&rnnsearch::cuda::linear_op)); }
