// φ of one pair where its scaled product underflows, or where that is asked for.
#pragma once

#include "rows.h"

namespace hpf {
namespace HPF_ISA {

constexpr int64_t exact_rows = 5;  // rows of whole groups that the exact path works in

struct ShiftedSum {
  double top, sum;
};

// φ of one pair by the max-shifted log-sum-exp, in double: e^(x − top) of x = E[ln θ] + E[ln β] to `phi`, with
// their sum.  `user_log` and `phi` are rows (whole groups,); `buffer` takes three more.
template <class T>
__attribute__((noinline)) static ShiftedSum shifted_phi(const double* user_log, const Factor<T>& items, int64_t column,
                                                        double* buffer, double* phi) {
  const int64_t k = items.shape.k, width = whole_groups(k);
  double* logs = buffer + 2 * width;
  expected_log_of(items, column, buffer, logs);
  for (int64_t j = 0; j < width; ++j) logs[j] += user_log[j];
  const double top = maximum(logs, k);
  row_exp(logs, top, k, phi);
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < k; ++j) sum += phi[j];
  return {top, sum};
}

}  // namespace HPF_ISA
}  // namespace hpf
