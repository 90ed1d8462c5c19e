// The gamma posteriors: E[θ], exp E[ln θ] and their sums, in double.
#include "operations.h"
#include "rows.h"
#include "scratch.h"

namespace hpf {
namespace HPF_ISA {
namespace {

// Pads a row for gamma_moments: its exp E[ln] is zero, its mean adds nothing.
constexpr double next_to_nothing = 1e-290;
// Where the largest exp E[ln θ] of a row is below this, others may have underflowed that count beside it.
constexpr double tiny_row = 1e-150;

// As gamma_update at T = 1, in vectors of `Group` numbers.
template <class T, int64_t Group>
void gamma_update_by(Matrix<T> shape,  // (N, K) statistic, becomes the shape
                     double prior_shape, Rates<T> rates,
                     Matrix<T> exp_log,    // (N, K)
                     double* log_scale,    // (N,)
                     double* row_sums,     // (N,)
                     double* column_sums,  // (K,)
                     int threads) {
  const int64_t n = shape.rows, k = shape.k;
  const int64_t chunks = (n + rows_in_chunk - 1) / rows_in_chunk, row = whole_groups<Group>(k);
  const int team = threads_for(n, k, threads);
  Scratch<double> partial(chunks * row);  // summed in order: the same for any number of threads
  Scratch<double> memory(6 * row + rows_in_chunk, team);
  Scratch<T> priors(row, team);
#pragma omp parallel num_threads(team)
  {
    double *rate = memory.share(), *exp_logs = rate + row, *wide = exp_logs + row, *log_mean = wide + row;
    double *pad = log_mean + row, *columns = pad + row, *tops = columns + row;
    T* prior = priors.share();
    for (int64_t j = 0; j < row; ++j) {
      prior[j] = j < k ? T(prior_shape) : T(0);
      pad[j] = j < k ? 0.0 : next_to_nothing;
      columns[j] = j < k ? rates.columns[j] : 1.0;
      rate[j] = 1.0;
    }
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      double* column_part = partial.data + chunk * row;
      for (int64_t j = 0; j < row; ++j) column_part[j] = 0;
      const int64_t begin = chunk * rows_in_chunk, end = minimum(n, begin + rows_in_chunk);
      for (int64_t u = begin; u < end; ++u) {
        T *s = row_of(shape, u), *out = row_of(exp_log, u);
        // Rates of rank one are summed on the way; a matrix of them, which start values have, is laid out before.
        if (rates.matrix.data) row_rates(rates, u, k, rate);
        const double row_rate = rates.matrix.data ? 0.0 : rates.rows[u];
        const double* rest = rates.matrix.data ? rate : columns;
        double sums[Group] = {}, largest[Group] = {};
        for (int64_t first = 0; first < row; first += Group)
#pragma omp simd
          for (int64_t i = 0; i < Group; ++i) {
            const int64_t j = first + i;
            s[j] += prior[j];
            const GammaMoments moments = gamma_moments<T>(double(s[j]) + pad[j], row_rate + rest[j]);
            exp_logs[j] = moments.exp_log;
            column_part[j] += moments.mean;
            sums[i] += moments.mean;
            largest[i] = moments.exp_log > largest[i] ? moments.exp_log : largest[i];
          }
        const double top = maximum_of<Group>(largest);
        row_sums[u] = sum_of<Group>(sums);
        tops[u - begin] = top;
        if (top < tiny_row) continue;
        const double scale = 1.0 / top;
        for (int64_t first = 0; first < row; first += Group)
#pragma omp simd
          for (int64_t j = first; j < first + Group; ++j)  // the largest is 1, which only float rounds to
            out[j] = T(sizeof(T) == 4 ? exp_logs[j] * scale : exp_logs[j] / top);
      }
#pragma omp simd
      for (int64_t u = begin; u < end; ++u)
        log_scale[u] = log_normal(tops[u - begin] < tiny_row ? 1.0 : tops[u - begin]);
      for (int64_t u = begin; u < end; ++u) {
        if (tops[u - begin] >= tiny_row) continue;
        row_as_double(row_of(shape, u), k, wide);
        row_rates(rates, u, k, rate);
        row_expected_log(wide, rate, k, log_mean);
        log_scale[u] = maximum(log_mean, k);
        row_exp(log_mean, log_scale[u], k, exp_logs);
        T* out = row_of(exp_log, u);
        for (int64_t j = 0; j < k; ++j) out[j] = T(exp_logs[j]);
      }
    }
  }
  for (int64_t j = 0; j < k; ++j) column_sums[j] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < k; ++j) column_sums[j] += partial.data[chunk * row + j];
}

// The same at any temperature, by way of the logarithm.
template <class T>
void gamma_update_at(double temperature,
                     Matrix<T> shape,  // (N, K) statistic, becomes the shape
                     double prior_shape, Rates<T> rates,
                     Matrix<T> exp_log,    // (N, K)
                     double* log_scale,    // (N,)
                     double* row_sums,     // (N,)
                     double* column_sums,  // (K,)
                     int threads) {
  const int64_t n = shape.rows, k = shape.k, row = whole_groups(k);
  const int64_t chunks = (n + rows_in_chunk - 1) / rows_in_chunk;
  const int team = threads_for(n, k, threads);
  Scratch<double> partial(chunks * row), memory(4 * row, team);
#pragma omp parallel num_threads(team)
  {
    double *wide = memory.share(), *rate = wide + row, *log_mean = rate + row, *exp_logs = log_mean + row;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      double* column_part = partial.data + chunk * row;
      for (int64_t j = 0; j < row; ++j) column_part[j] = 0;
      for (int64_t u = chunk * rows_in_chunk, end = minimum(n, u + rows_in_chunk); u < end; ++u) {
        T *s = row_of(shape, u), *out = row_of(exp_log, u);
        for (int64_t j = 0; j < k; ++j) s[j] += T(prior_shape);
        row_as_double(s, k, wide);
        row_rates(rates, u, k, rate);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < k; ++j) {
          const double mean = wide[j] / rate[j];
          column_part[j] += mean;
          sum += mean;
        }
        row_sums[u] = sum;
        row_expected_log(wide, rate, k, log_mean);
        for (int64_t j = 0; j < row; ++j) log_mean[j] /= temperature;
        log_scale[u] = maximum(log_mean, k);
        row_exp(log_mean, log_scale[u], k, exp_logs);
        for (int64_t j = 0; j < k; ++j) out[j] = T(exp_logs[j]);
      }
    }
  }
  for (int64_t j = 0; j < k; ++j) column_sums[j] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < k; ++j) column_sums[j] += partial.data[chunk * row + j];
}

}  // namespace

template <class T>
void gamma_update(Matrix<T> shape, double prior_shape, Rates<T> rates, Matrix<T> exp_log, double* log_scale,
                  double* row_sums, double* column_sums, double temperature, int threads) {
  if (temperature != 1)
    return gamma_update_at(temperature, shape, prior_shape, rates, exp_log, log_scale, row_sums, column_sums, threads);
  const auto update = sizeof(T) == 4 && shape.k > group ? gamma_update_by<T, 2 * group> : gamma_update_by<T, group>;
  update(shape, prior_shape, rates, exp_log, log_scale, row_sums, column_sums, threads);
}

template <class T>
void extrapolate(Matrix<const T> exp_log, const double* log_scale, Matrix<const T> earlier, const double* earlier_scale,
                 double momentum, Matrix<T> out, double* out_scale, int threads) {
  const int64_t n = exp_log.rows, k = exp_log.k, row = whole_groups(k);
  constexpr double smallest = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;  // that is normal
  const int team = threads_for(n, k, threads);
  Scratch<double> memory(3 * row, team);
#pragma omp parallel num_threads(team)
  {
    double *now = memory.share(), *then = now + row, *change = then + row;
#pragma omp for schedule(static)
    for (int64_t u = 0; u < n; ++u) {
      T* result = row_of(out, u);
      if (momentum == 0) {
        const T* entries = row_of(exp_log, u);
        for (int64_t j = 0; j < out.stride; ++j) result[j] = entries[j];
        out_scale[u] = log_scale[u];
        continue;
      }
      const double scale_change = log_scale[u] - earlier_scale[u];
      row_as_double(row_of(exp_log, u), k, now);
      row_as_double(row_of(earlier, u), k, then);
      for (int64_t first = 0; first < row; first += group)
#pragma omp simd
        for (int64_t j = first; j < first + group; ++j) {
          const double ratio = now[j] / (then[j] < smallest ? smallest : then[j]);
          change[j] = log_normal<T>(now[j] < smallest || then[j] < smallest ? 1.0 : ratio);
        }
      // The largest is taken out of all, so that no power overflows.
      const double most = maximum(change, k);
      for (int64_t first = 0; first < row; first += group)
#pragma omp simd
        for (int64_t j = first; j < first + group; ++j)
          then[j] = (now[j] < smallest ? 0.0 : now[j]) * exp_nonpositive<T>(momentum * (change[j] - most));
      const double top = maximum(then, k), inverse = 1.0 / top;
      for (int64_t j = 0; j < k; ++j)  // the largest is 1, as above
        result[j] = T(sizeof(T) == 4 ? then[j] * inverse : then[j] / top);
      for (int64_t j = k; j < out.stride; ++j) result[j] = 0;
      out_scale[u] = log_scale[u] + momentum * (scale_change + most) + log_normal(top);
    }
  }
}

template <class T>
void mean(Matrix<const T> shape, Rates<T> rates, Matrix<T> out, int threads) {
  const int64_t n = shape.rows, k = shape.k;
  const int team = threads_for(n, k, threads);
  Scratch<double> memory(whole_groups(k), team);
#pragma omp parallel num_threads(team)
  {
    double* rate = memory.share();
#pragma omp for schedule(static)
    for (int64_t u = 0; u < n; ++u) {
      row_rates(rates, u, k, rate);
      const T* s = row_of(shape, u);
      T* mean = row_of(out, u);
      for (int64_t j = 0; j < k; ++j) mean[j] = T(double(s[j]) / rate[j]);
      for (int64_t j = k; j < out.stride; ++j) mean[j] = 0;
    }
  }
}

template <class T>
double gamma_entropy(Matrix<const T> shape, Rates<T> rates, double prior_shape, double* row_sums, int threads) {
  const int64_t n = shape.rows, k = shape.k;
  const int64_t chunks = (n + rows_in_chunk - 1) / rows_in_chunk;
  const int64_t row = whole_groups(k);
  const int team = threads_for(n, k, threads);
  Scratch<double> partial(chunks), memory(3 * row, team);
#pragma omp parallel num_threads(team)
  {
    double *wide = memory.share(), *rate = wide + row, *terms = rate + row;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      double total = 0;
      for (int64_t u = chunk * rows_in_chunk, end = minimum(n, u + rows_in_chunk); u < end; ++u) {
        row_as_double(row_of(shape, u), k, wide);
        row_rates(rates, u, k, rate);
        for (int64_t first = 0; first < k; first += group)
#pragma omp simd
          for (int64_t j = first; j < first + group; ++j) {
            const double s = wide[j], r = rate[j];
            terms[j] = (prior_shape - s) * expected_log(s, r) + log_gamma(s) - s * log_normal(r) + s;
          }
        double row_sum = 0;
#pragma omp simd reduction(+ : total, row_sum)
        for (int64_t j = 0; j < k; ++j) {
          total += terms[j];
          row_sum += wide[j] / rate[j];
        }
        row_sums[u] = row_sum;
      }
      partial.data[chunk] = total;
    }
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial.data[chunk];
  return total;
}

template <class T>
double distance(Matrix<const T> a, Matrix<const T> b, int threads) {
  const int64_t n = a.rows, k = a.k;
  const int64_t chunks = (n + rows_in_chunk - 1) / rows_in_chunk;
  Scratch<double> partial(chunks);
#pragma omp parallel for num_threads(threads_for(n, k, threads)) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    double total = 0;
    for (int64_t u = chunk * rows_in_chunk, end = minimum(n, u + rows_in_chunk); u < end; ++u) {
      const T *row = row_of(a, u), *other = row_of(b, u);
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < k; ++j) {
        const double d = double(row[j]) - double(other[j]);
        total += d * d;
      }
    }
    partial.data[chunk] = total;
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial.data[chunk];
  return __builtin_sqrt(total);
}

#define HPF_INSTANTIATE(T)                                                                                        \
  template void gamma_update<T>(Matrix<T>, double, Rates<T>, Matrix<T>, double*, double*, double*, double, int);  \
  template void extrapolate<T>(Matrix<const T>, const double*, Matrix<const T>, const double*, double, Matrix<T>, \
                               double*, int);                                                                     \
  template void mean<T>(Matrix<const T>, Rates<T>, Matrix<T>, int);                                               \
  template double gamma_entropy<T>(Matrix<const T>, Rates<T>, double, double*, int);                              \
  template double distance<T>(Matrix<const T>, Matrix<const T>, int);
HPF_INSTANTIATE(float)
HPF_INSTANTIATE(double)
#undef HPF_INSTANTIATE

}  // namespace HPF_ISA
}  // namespace hpf
