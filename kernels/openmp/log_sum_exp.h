// φ of one pair where its scaled product underflows, or where that is asked for.
#pragma once

#include "had.h"
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

// The same for an item with neighbours, its user one of `users`: φ of the factors to `phi` (whole groups of K,), and
// of the neighbours whose bits are set to `phi_had` (l,), all relative to the largest.
template <class T>
static inline ShiftedSum shifted_phi_with_had(const double* item_log,    // (whole groups of K,) of the item
                                              const double* weight_log,  // (l,) of the item's neighbours
                                              const Factor<T>& users, int64_t user, const uint32_t* bits, int64_t l,
                                              double* buffer,     // three rows (whole groups of K,) to work in
                                              double* phi,        // (whole groups of K,)
                                              double* phi_had) {  // (l,)
  const int64_t k = users.shape.k;
  const ShiftedSum of_factors = shifted_phi(item_log, users, user, buffer, phi);
  double top = of_factors.top;
  for (int64_t j = 0; j < l; ++j)
    if ((bits[j / in_word] >> j % in_word & 1) && weight_log[j] > top) top = weight_log[j];
  const double scale = exp_nonpositive(of_factors.top - top);
  double sum = scale * of_factors.sum;
  for (int64_t j = 0; j < k; ++j) phi[j] *= scale;
  for (int64_t j = 0; j < l; ++j) {
    phi_had[j] = bits[j / in_word] >> j % in_word & 1 ? exp_nonpositive(weight_log[j] - top) : 0.0;
    sum += phi_had[j];
  }
  return {top, sum};
}

}  // namespace HPF_ISA
}  // namespace hpf
