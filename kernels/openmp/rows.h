// What is done to one row of a matrix, and how many threads a sweep over rows earns.
//
// Everything has internal linkage, as in simd.h.
#pragma once

#include "kernels.h"
#include "scratch.h"
#include "special.h"

namespace hpf {
namespace HPF_ISA {

constexpr int64_t rows_in_chunk = 256;  // a unit of work, and of summation in a fixed order

// Threads that a sweep over n rows of k numbers earns: waking one takes as long as some thousand numbers.
static inline int threads_for(int64_t n, int64_t k, int threads) {
  const int64_t earned = 1 + n * k / 16384;
  return earned < threads ? static_cast<int>(earned) : threads;
}

template <class T>
static inline T* row_of(const Matrix<T>& matrix, int64_t u) {
  return matrix.data + u * matrix.stride;
}

// Rows of double that special functions run over come in groups of eight, the last filled up with
// numbers that do no harm: a remainder of two would take as long as a whole vector.
constexpr int64_t group = 8;

template <int64_t Group = group>
static inline int64_t whole_groups(int64_t k) {
  return (k + Group - 1) / Group * Group;
}

// A row (k,) to `out` (whole groups,).
template <class T>
static inline void row_as_double(const T* row, int64_t k, double* out) {
  for (int64_t j = 0; j < k; ++j) out[j] = double(row[j]);
  for (int64_t j = k; j < whole_groups(k); ++j) out[j] = 1.0;
}

// The rates of row u to `out` (whole groups,).
template <class T>
static inline void row_rates(const Rates<T>& rates, int64_t u, int64_t k, double* out) {
  if (rates.matrix.data) {
    const T* row = row_of(rates.matrix, u);
    for (int64_t j = 0; j < k; ++j) out[j] = double(row[j]) + rates.columns[j];
  } else {
    const double row = rates.rows[u];
    for (int64_t j = 0; j < k; ++j) out[j] = row + rates.columns[j];
  }
  for (int64_t j = k; j < whole_groups(k); ++j) out[j] = 1.0;
}

// E[ln θ] of a row.  All three are (whole groups,).
static inline void row_expected_log(const double* __restrict shape, const double* __restrict rate, int64_t k,
                                    double* __restrict out) {
  for (int64_t first = 0; first < k; first += group)
#pragma omp simd
    for (int64_t j = first; j < first + group; ++j) out[j] = expected_log(shape[j], rate[j]);
}

// e^(x − shift) of a row with all x ≤ shift.  Both are (whole groups,).
static inline void row_exp(const double* __restrict x, double shift, int64_t k, double* __restrict out) {
  for (int64_t first = 0; first < k; first += group)
#pragma omp simd
    for (int64_t j = first; j < first + group; ++j) out[j] = exp_nonpositive(x[j] - shift);
}

// E[ln θ]/T of row u of a factor to `out` (whole groups,), with a `buffer` of two more such rows.
template <class T>
static inline void expected_log_of(const Factor<T>& factor, int64_t u, double* buffer, double* out) {
  const int64_t k = factor.shape.k;
  double *shape = buffer, *rate = buffer + whole_groups(k);
  row_as_double(row_of(factor.shape, u), k, shape);
  row_rates(factor.rates, u, k, rate);
  row_expected_log(shape, rate, k, out);
  for (int64_t j = 0; j < k; ++j) out[j] /= factor.temperature;
}

// The largest of v (k,).
static inline double maximum(const double* v, int64_t k) {
  double best = v[0];
#pragma omp simd reduction(max : best)
  for (int64_t j = 1; j < k; ++j) best = v[j] > best ? v[j] : best;
  return best;
}

// The sum and the maximum of v (Group,), halved until one is left; in place.  (One after
// the other they would be a tenth of gamma_update at k=30.)
template <int64_t Group>
static inline double sum_of(double* v) {
  for (int64_t half = Group / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

template <int64_t Group>
static inline double maximum_of(double* v) {
  for (int64_t half = Group / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
  return v[0];
}

}  // namespace HPF_ISA
}  // namespace hpf
