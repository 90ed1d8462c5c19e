#pragma once

#include "kernels.h"

namespace hpf {
namespace HPF_ISA {

// See the table in kernels.h.
template <class T>
void top_items(int64_t n, int64_t m, int64_t k, const T* theta, int64_t theta_stride, const T* beta,
               int64_t beta_stride, Excluded excluded, int64_t length, int64_t* columns, T* scores, int threads);

}  // namespace HPF_ISA
}  // namespace hpf
