// The operations of the OpenMP backend, as one table of functions for each instruction set.
#pragma once

#include <cstdint>

#include "had.h"
#include "tiles.h"

namespace hpf {

// Numbers of a matrix, its rows `stride` apart.  But for predict_pairs and top_items, a row begins on a 64-byte line
// and fills whole ones, with zeros beyond K.
template <class T>
struct Matrix {
  T* data;  // (rows, stride), or null
  int64_t rows, k, stride;
};

// Rates of one side: rows[u] + columns[k].  Start values have a full matrix in place of `rows`.
template <class T>
struct Rates {
  const double* rows;      // (N,), or null
  Matrix<const T> matrix;  // (N, K), or null
  const double* columns;   // (K,)
};

// q(θ) of one side, with exp(E[ln θ]/T) and its scale.  Its matrices have one stride.
template <class T>
struct Factor {
  Matrix<const T> shape;  // (N, K)
  Rates<T> rates;
  Matrix<const T> exp_log;  // (N, K)
  const double* log_scale;  // (N,)
  double temperature;       // T
};

// Items that are left out of each user's list.
struct Excluded {
  const int64_t* start;  // (N + 1,), or null: nothing is left out
  const int64_t* items;  // (start[N],) ascending within a user
};

// The places of a matrix's nonzeros.
struct Incidence {
  int64_t rows;
  const int64_t* indptr;   // (rows + 1,)
  const int32_t* indices;  // (indptr[rows],)
};

// What the items that users have add to the rates of other items.
template <class T>
struct ItemScores {
  const int64_t* had_start;  // (N + 1,), or null: nothing is added
  const int64_t* had;        // (had_start[N],) items of each user
  const int64_t* start;      // (J + 1,)
  const int32_t* targets;    // (start[J],) of each item that a user may have, the items whose rates it adds to
  const T* weights;          // (start[J],) and how much
};

// Upper bounds of the entries of a matrix (M, K) that has none below zero: of entry (i, k), its byte times scale[k].
// Sixteen rows lie together, and of these four factors: (blocks, fours, 16, 4), zero beyond M and K.
constexpr int64_t rows_in_block = 16, factors_in_four = 4;
constexpr int64_t bytes_in_block = rows_in_block * factors_in_four;
struct ByteBounds {
  const uint8_t* bytes;  // or null
  const double* scale;   // (K,)
};

template <class T>
struct Kernels {
  void (*gamma_update)(Matrix<T> shape,  // (N, K) statistic, becomes the shape
                       double prior_shape, Rates<T> rates,
                       Matrix<T> exp_log,    // (N, K)
                       double* log_scale,    // (N,)
                       double* row_sums,     // (N,)
                       double* column_sums,  // (K,)
                       double temperature, int threads);
  // E[ln θ] moved on by `momentum` times its change since an earlier time.
  void (*extrapolate)(Matrix<const T> exp_log,      // (N, K)
                      const double* log_scale,      // (N,)
                      Matrix<const T> earlier,      // (N, K)
                      const double* earlier_scale,  // (N,)
                      double momentum,
                      Matrix<T> out,      // (N, K)
                      double* out_scale,  // (N,)
                      int threads);
  void (*mean)(Matrix<const T> shape,  // (N, K)
               Rates<T> rates,
               Matrix<T> out,  // (N, K)
               int threads);
  // Σ over the matrix of (a − s) E[ln θ] + ln Γ(s) − s ln r + s, and Σ_k E[θ] of every row.
  double (*gamma_entropy)(Matrix<const T> shape,  // (N, K)
                          Rates<T> rates, double prior_shape,
                          double* row_sums,  // (N,)
                          int threads);
  void (*allocate)(TilesView<T> tiles, Factor<T> users, Factor<T> items,
                   Matrix<T> user_sums,  // (N, K), or null where there are item_sums
                   Matrix<T> item_sums,  // (M, K), or null where there are user_sums
                   bool exact, int threads);
  // The same for counts that are shared with the neighbours of items, too.  Rows of the tiles are items.
  void (*allocate_with_neighbours)(TilesView<T> tiles, HadView had, Factor<T> items, Factor<T> users, Factor<T> weights,
                                   Matrix<T> item_sums,    // (M, K), or null where there are user_sums
                                   Matrix<T> weight_sums,  // (M, L), or null without item_sums
                                   Matrix<T> user_sums,    // (N, K), or null where there are item_sums
                                   bool exact, int threads);
  // Σ y ln(a_u·b_i); where factors are given, ln Σ_k exp(E[ln θ] + E[ln β]) with all scales.
  double (*log_rate_sum)(TilesView<T> tiles,
                         Matrix<const T> a,       // (N, K)
                         Matrix<const T> b,       // (M, K)
                         const Factor<T>* users,  // one, or null
                         const Factor<T>* items,  // one, or null
                         int threads);
  // Σ y ln(b_i·a_u + Σ_l w_il) over the neighbours that users have; where factors are given, ln of the sum of
  // exp(E[ln θ] + E[ln β])/T and exp(E[ln w]/T) with all scales.
  double (*log_rate_sum_with_neighbours)(TilesView<T> tiles, HadView had,
                                         Matrix<const T> b,         // (M, K)
                                         Matrix<const T> a,         // (N, K)
                                         Matrix<const T> w,         // (M, L)
                                         const Factor<T>* items,    // one, or null
                                         const Factor<T>* users,    // one, or null
                                         const Factor<T>* weights,  // one, or null
                                         int threads);
  // s Σ ln(1 + y) x over the nonzeros of each row, with the rows x of their columns; or, unless `of_rows`, over those
  // of each column, with the rows x of their rows.
  void (*log_count_products)(TilesView<T> tiles,
                             Matrix<const T> x,    // (M, K), or (N, K)
                             const double* scale,  // (N,), or (M,)
                             bool of_rows,
                             Matrix<T> out,  // (N, K), or (M, K)
                             int threads);
  // Σ ln y!.
  double (*log_factorial_sum)(TilesView<T> tiles, int threads);
  void (*predict_pairs)(Matrix<const T> theta,  // (N, K)
                        Matrix<const T> beta,   // (M, K)
                        int64_t pairs,
                        const int64_t* rows,     // (pairs,)
                        const int64_t* columns,  // (pairs,)
                        T* out,                  // (pairs,)
                        int threads);
  // Σ_l w_il over the neighbours of item i that user u has.  Of pairs with the same user, those that come one after the
  // other are cheap.
  void (*neighbour_rates)(const int64_t* indptr,   // (N + 1,)
                          const int64_t* indices,  // (indptr[N],) items of each user, below J
                          int64_t items,           // J
                          const int32_t* sources,  // (M, L)
                          Matrix<const T> w,       // (M, L)
                          int64_t pairs,
                          const int64_t* rows,     // (pairs,)
                          const int64_t* columns,  // (pairs,)
                          T* out,                  // (pairs,)
                          int threads);
  // Of items begin to end the n that occur together with them most beyond chance, ascending, −1 behind the last.
  void (*choose_neighbours)(Incidence users,  // (N, M)
                            Incidence items,  // (M, N)
                            int64_t begin, int64_t end, int64_t n,
                            int32_t* chosen,  // (end - begin, n)
                            int threads);
  // False, and nothing of use, where an entry is below zero or not finite, or those of a column are all tiny.
  bool (*byte_bounds)(Matrix<const T> beta,  // (M, K)
                      uint8_t* bytes,        // as in ByteBounds
                      double* scale,         // (K,)
                      int threads);
  // The `length` best items of each user; of equal scores the lower column first, −1 and −∞ where no more are left.
  void (*top_items)(Matrix<const T> theta,  // (N, K)
                    Matrix<const T> beta,   // (M, K)
                    ByteBounds bounds,      // of beta, or none
                    Excluded excluded, ItemScores<T> added, int64_t length,
                    int64_t* columns,  // (N, length)
                    T* scores,         // (N, length)
                    int threads);
  double (*distance)(Matrix<const T> a,  // (N, K)
                     Matrix<const T> b,  // (N, K)
                     int threads);
};

}  // namespace hpf
