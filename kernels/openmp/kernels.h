// The operations of the OpenMP backend, as one table of functions for each instruction set.
#pragma once

#include <cstdint>

#include "tiles.h"

namespace hpf {

// Rates of one side: rows[u * row_stride + k * factor_stride] + columns[k].  Start values have a
// full matrix in `matrix` instead of `rows`.
template <class T>
struct Rates {
  const double* rows;     // (N,), or null
  const T* matrix;        // (N, K) with stride `stride`, or null
  const double* columns;  // (K,)
};

// q(θ) of one side.  Matrices share one row stride, whole 64-byte lines, zero beyond K.
template <class T>
struct Factor {
  const T* shape;  // (N, K)
  Rates<T> rates;
  const T* exp_log;         // (N, K)
  const double* log_scale;  // (N,)
};

// Items that are left out of each user's list.
struct Excluded {
  const int64_t* start;  // (N + 1,), or null: nothing is left out
  const int64_t* items;  // (start[N],) ascending within a user
};

template <class T>
struct Kernels {
  void (*gamma_update)(int64_t n, int64_t k, int64_t stride, T* shape, double prior_shape, Rates<T> rates, T* exp_log,
                       double* log_scale, double* row_sums, double* column_sums, int threads);
  void (*mean)(int64_t n, int64_t k, int64_t stride, const T* shape, Rates<T> rates, T* out, int threads);
  // Σ over the matrix of (a − s) E[ln θ] + ln Γ(s) − s ln r + s, and Σ_k E[θ] of every row.
  double (*gamma_entropy)(int64_t n, int64_t k, int64_t stride, const T* shape, Rates<T> rates, double prior_shape,
                          double* row_sums, int threads);
  // Either of user_sums and item_sums may be null.
  void (*allocate)(TilesView<T> tiles, int64_t k, int64_t stride, Factor<T> users, Factor<T> items, T* user_sums,
                   T* item_sums, bool exact, int threads);
  // Σ y ln(a_u·b_i); where factors are given, ln Σ_k exp(E[ln θ] + E[ln β]) with all scales.
  double (*log_rate_sum)(TilesView<T> tiles, int64_t k, int64_t stride, const T* a, const T* b, const Factor<T>* users,
                         const Factor<T>* items, int threads);
  // Σ ln y!.
  double (*log_factorial_sum)(TilesView<T> tiles, int threads);
  void (*predict_pairs)(int64_t pairs, int64_t k, const T* theta, int64_t theta_stride, const T* beta,
                        int64_t beta_stride, const int64_t* rows, const int64_t* columns, T* out, int threads);
  // The `length` best items of each of n users, columns and scores (N, length); of equal scores the lower
  // column first, −1 and −∞ where no more are left.
  void (*top_items)(int64_t n, int64_t m, int64_t k, const T* theta, int64_t theta_stride, const T* beta,
                    int64_t beta_stride, Excluded excluded, int64_t length, int64_t* columns, T* scores, int threads);
  double (*distance)(int64_t n, int64_t k, int64_t stride, const T* a, const T* b, int threads);
};

}  // namespace hpf
