// The functions of the table in kernels.h, which says what they do and how their arrays are shaped; each is compiled
// for float and double in the file of its subject.
#pragma once

#include "kernels.h"

namespace hpf {
namespace HPF_ISA {

// gamma.cpp
template <class T>
void gamma_update(Matrix<T> shape, double prior_shape, Rates<T> rates, Matrix<T> exp_log, double* log_scale,
                  double* row_sums, double* column_sums, double temperature, int threads);
template <class T>
void extrapolate(Matrix<const T> exp_log, const double* log_scale, Matrix<const T> earlier, const double* earlier_scale,
                 double momentum, Matrix<T> out, double* out_scale, int threads);
template <class T>
void mean(Matrix<const T> shape, Rates<T> rates, Matrix<T> out, int threads);
template <class T>
double gamma_entropy(Matrix<const T> shape, Rates<T> rates, double prior_shape, double* row_sums, int threads);
template <class T>
double distance(Matrix<const T> a, Matrix<const T> b, int threads);

// allocate.cpp
template <class T>
void allocate(TilesView<T> tiles, Factor<T> users, Factor<T> items, Matrix<T> user_sums, Matrix<T> item_sums,
              bool exact, int threads);

// neighbours.cpp
template <class T>
void allocate_with_neighbours(TilesView<T> tiles, HadView had, Factor<T> items, Factor<T> users, Factor<T> weights,
                              Matrix<T> item_sums, Matrix<T> weight_sums, Matrix<T> user_sums, bool exact, int threads);
template <class T>
double log_rate_sum_with_neighbours(TilesView<T> tiles, HadView had, Matrix<const T> b, Matrix<const T> a,
                                    Matrix<const T> w, const Factor<T>* items, const Factor<T>* users,
                                    const Factor<T>* weights, int threads);
template <class T>
void neighbour_rates(const int64_t* indptr, const int64_t* indices, int64_t items, const int32_t* sources,
                     Matrix<const T> w, int64_t pairs, const int64_t* rows, const int64_t* columns, T* out,
                     int threads);

// choose.cpp
void choose_neighbours(Incidence users, Incidence items, int64_t begin, int64_t end, int64_t n, int32_t* chosen,
                       int threads);

// log_counts.cpp
template <class T>
void log_count_products(TilesView<T> tiles, Matrix<const T> x, const double* scale, bool of_rows, Matrix<T> out,
                        int threads);

// log_rates.cpp
template <class T>
double log_rate_sum(TilesView<T> tiles, Matrix<const T> a, Matrix<const T> b, const Factor<T>* users,
                    const Factor<T>* items, int threads);
template <class T>
double log_factorial_sum(TilesView<T> tiles, int threads);

// predict.cpp
template <class T>
void predict_pairs(Matrix<const T> theta, Matrix<const T> beta, int64_t pairs, const int64_t* rows,
                   const int64_t* columns, T* out, int threads);

// bounds.cpp
template <class T>
bool byte_bounds(Matrix<const T> beta, uint8_t* bytes, double* scale, int threads);

// top_items.cpp
template <class T>
void top_items(Matrix<const T> theta, Matrix<const T> beta, ByteBounds bounds, Excluded excluded, ItemScores<T> added,
               int64_t length, int64_t* columns, T* scores, int threads);

}  // namespace HPF_ISA
}  // namespace hpf
