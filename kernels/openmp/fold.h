// Fold-in: coordinate ascent on the rows of one side while the other side does not change, in one call.
//
// Of few rows, an iteration's operations take less time than calling them from Python does.  They are those of the
// table, in the order in which hpf_gpu/model/inference.py calls them.
#pragma once

#include <cstring>
#include <utility>

#include "kernels.h"

namespace hpf {

// A column of the rows that no update changes.
struct Pinned {
  int64_t column;
  double shape;
};

// What the iterations have in common.
template <class T>
struct Ascent {
  TilesView<T> tiles;        // of users and items; of items and users if there are weights
  HadView had;               // where there are weights
  Factor<T> others;          // (M, K)
  const Factor<T>* weights;  // one (M, L), or null
  const double* columns;     // (K,) column part of the rates
  double prior_shape;        // a
  double hyper_shape;        // of q(ξ)
  double slope, offset;      // the rate of q(ξ) is slope · Σ_k E[θ_k] + offset
  const Numbers<Pinned>& pinned;
  bool exact;
  int threads;
};

// q(θ) and q(ξ) after at most `most` iterations from the factor `start`; fewer where the norm of the change of E[θ]
// is below `threshold` first.
template <class T>
void fold_in(const Kernels<T>& kernels, const Ascent<T>& ascent, const Factor<T>& start, int64_t most, double threshold,
             Matrix<T> shape,      // (N, K)
             double* rate_rows,    // (N,)
             Matrix<T> exp_log,    // (N, K)
             double* log_scale,    // (N,)
             double* hyper_rate,   // (N,) of the start, becomes that of the result
             double* column_sums)  // (K,)
{
  const int64_t n = shape.rows, k = shape.k, size = n * shape.stride;
  const int threads = ascent.threads;
  Numbers<double> row_sums(n);
  Numbers<T> memory(3 * size);  // rows on cache lines, as take_memory gives them
  const auto matrix = [&](int64_t number) { return Matrix<T>{memory.data() + number * size, n, k, shape.stride}; };
  const auto read = [](const Matrix<T>& m) { return Matrix<const T>{m.data, m.rows, m.k, m.stride}; };
  const Matrix<T> statistic = matrix(0);
  Matrix<T> mean = matrix(1), before = matrix(2);
  const Rates<T> rates{rate_rows, {}, ascent.columns};
  const Factor<T> result{read(shape), rates, read(exp_log), log_scale, start.temperature};
  kernels.mean(start.shape, start.rates, mean, threads);
  for (int64_t iteration = 0; iteration < most; ++iteration) {
    const Factor<T>& now = iteration == 0 ? start : result;
    if (ascent.weights)
      kernels.allocate_with_neighbours(ascent.tiles, ascent.had, ascent.others, now, *ascent.weights, {}, {}, statistic,
                                       ascent.exact, threads);
    else
      kernels.allocate(ascent.tiles, now, ascent.others, statistic, {}, ascent.exact, threads);
    for (const Pinned& pin : ascent.pinned)  // gamma_update adds a to every entry
      for (int64_t u = 0; u < n; ++u)
        statistic.data[u * statistic.stride + pin.column] = T(pin.shape - ascent.prior_shape);
    std::memcpy(shape.data, statistic.data, size * sizeof(T));
    for (int64_t u = 0; u < n; ++u) rate_rows[u] = ascent.hyper_shape / hyper_rate[u];  // E[ξ]
    kernels.gamma_update(shape, ascent.prior_shape, rates, exp_log, log_scale, row_sums.data(), column_sums,
                         start.temperature, threads);
    for (int64_t u = 0; u < n; ++u) hyper_rate[u] = ascent.slope * row_sums[u] + ascent.offset;
    std::swap(mean, before);
    kernels.mean(result.shape, rates, mean, threads);
    if (kernels.distance(read(mean), read(before), threads) < threshold) return;
  }
}

}  // namespace hpf
