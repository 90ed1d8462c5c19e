// θ·β of pairs of rows.
#include "operations.h"
#include "rows.h"

namespace hpf {
namespace HPF_ISA {

template <class T>
void predict_pairs(Matrix<const T> theta, Matrix<const T> beta, int64_t pairs, const int64_t* rows,
                   const int64_t* columns, T* out, int threads) {
  const int64_t k = theta.k;
#pragma omp parallel for num_threads(threads) schedule(static) if (pairs > 10000)
  for (int64_t z = 0; z < pairs; ++z) {
    const T *a = row_of(theta, rows[z]), *b = row_of(beta, columns[z]);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < k; ++j) sum += a[j] * b[j];
    out[z] = sum;
  }
}

template void predict_pairs<float>(Matrix<const float>, Matrix<const float>, int64_t, const int64_t*, const int64_t*,
                                   float*, int);
template void predict_pairs<double>(Matrix<const double>, Matrix<const double>, int64_t, const int64_t*, const int64_t*,
                                    double*, int);

}  // namespace HPF_ISA
}  // namespace hpf
