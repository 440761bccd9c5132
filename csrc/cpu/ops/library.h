// Large products of the library, through the dispatcher.
#pragma once

#include "tensors.h"

namespace rnnsearch {

// out = left right, matrices.
void library_mm(const Tensor& left, const Tensor& right, Tensor out);
// The same for a batch of them.
void library_bmm(const Tensor& left, const Tensor& right, Tensor out);
// Rows, or columns, [begin, begin + count).
Tensor rows_part(Tensor tensor, int64_t begin, int64_t count);
Tensor columns_part(Tensor tensor, int64_t begin, int64_t count);
}  // namespace rnnsearch
