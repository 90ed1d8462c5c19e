// What the likelihoods take from the nonzeros: sums of logarithms, in double.
#include "log_sum_exp.h"
#include "operations.h"
#include "products.h"
#include "rows.h"
#include "scratch.h"

namespace hpf {
namespace HPF_ISA {
namespace {

// ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]) for one pair, in double.  Works in `scratch`, exact_rows of whole groups.
template <class T>
double exact_log_rate(const Factor<T>& users, const Factor<T>& items, int64_t row, int64_t column, double* scratch) {
  const int64_t width = whole_groups(users.shape.k);
  double *buffer = scratch, *user_log = buffer + 3 * width, *phi = user_log + width;
  expected_log_of(users, row, buffer, user_log);
  const ShiftedSum shifted = shifted_phi(user_log, items, column, buffer, phi);
  return shifted.top + log_normal(shifted.sum);
}

// ln a·b of two rows (k,) where the product is below what T holds.
template <class T>
double log_small_product(const T* a, const T* b, int64_t k) {
  double sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += double(a[j]) * (double(b[j]) * rate_lift);
  return log_lifted_rate(sum);
}

constexpr int batch = 256;  // nonzeros of a tile, whatever their rows, whose logarithms are taken together

// As log_rate_sum, with NV vectors a row; 0 means any number.
template <class T, int NV>
double log_rate_sum_with(TilesView<T> tiles,
                         Matrix<const T> a,       // (N, K)
                         Matrix<const T> b,       // (M, K)
                         const Factor<T>* users,  // one, or null
                         const Factor<T>* items,  // one, or null
                         int threads) {
  const T *u = a.data, *v = b.data;
  const int64_t tile_count = tiles.row_blocks * tiles.column_blocks, k = a.k, stride = a.stride;
  const int vectors = static_cast<int>(stride / Simd<T>::lanes);
  const int team = threads_for_tiles(tiles, threads);
  Scratch<double> partial(tile_count), log_rates(batch, team), logs(exact_rows * whole_groups(k), team);
  Scratch<T> products_of(batch + 4, team);
  Scratch<int32_t> row_numbers(batch, team);
#pragma omp parallel num_threads(team)
  {
    T* product = products_of.share();
    int32_t* row = row_numbers.share();
    double* log_rate = log_rates.share();
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < tile_count; ++tile) {
      const int64_t last = tiles.tiles[tile + 1].first_nonzero;
      int64_t segment = tiles.tiles[tile].first_segment, z = tiles.tiles[tile].first_nonzero;
      int64_t end = z < last ? z + tiles.segment_size[segment] : z;  // of the segment
      double total = 0;
      while (z < last) {
        const int32_t* column = tiles.column + z;
        const T* y = tiles.value + z;
        const int size = static_cast<int>(minimum(batch, last - z));
        for (int done = 0; done < size;) {
          const int count = static_cast<int>(minimum(size - done, end - z));
          const int64_t own = tiles.segment_row[segment];
          products<T, NV, true>(u + own * stride, v, stride, column + done, count, vectors, product + done);
          for (int i = done; i < done + count; ++i) row[i] = static_cast<int32_t>(own);
          done += count;
          z += count;
          if (z == end && z < last) end += tiles.segment_size[++segment];
        }
        int underflows = 0;
#pragma omp simd reduction(+ : underflows)
        for (int i = 0; i < size; ++i) {
          const double rate = product[i];
          const bool under = !(rate >= double(tiny_product<T>));
          underflows += under;
          log_rate[i] = log_normal(under ? 1.0 : rate);
        }
        if (users)
          for (int i = 0; i < size; ++i) log_rate[i] += users->log_scale[row[i]] + items->log_scale[column[i]];
        if (underflows)
          for (int i = 0; i < size; ++i) {
            if (product[i] >= tiny_product<T>) continue;
            log_rate[i] = users ? exact_log_rate(*users, *items, row[i], column[i], logs.share())
                                : log_small_product(u + row[i] * stride, v + column[i] * stride, k);
          }
#pragma omp simd reduction(+ : total)
        for (int i = 0; i < size; ++i) total += double(y[i]) * log_rate[i];
      }
      partial.data[tile] = total;
    }
  }
  double total = 0;
  for (int64_t tile = 0; tile < tile_count; ++tile) total += partial.data[tile];
  return total;
}

}  // namespace

template <class T>
double log_rate_sum(TilesView<T> tiles, Matrix<const T> a, Matrix<const T> b, const Factor<T>* users,
                    const Factor<T>* items, int threads) {
  return with_vectors<T>(a.stride, [&](auto vectors) {
    return log_rate_sum_with<T, decltype(vectors)::count>(tiles, a, b, users, items, threads);
  });
}

template <class T>
double log_factorial_sum(TilesView<T> tiles, int threads) {
  constexpr int64_t in_chunk = 4096;
  const int64_t nonzeros = tiles.tiles[tiles.row_blocks * tiles.column_blocks].first_nonzero;
  const int64_t chunks = (nonzeros + in_chunk - 1) / in_chunk;
  Scratch<double> partial(chunks);
#pragma omp parallel for num_threads(threads_for(nonzeros, 1, threads)) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * in_chunk, end = minimum(nonzeros, begin + in_chunk);
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t z = begin; z < end; ++z) total += log_gamma(double(tiles.value[z]) + 1.0);
    partial.data[chunk] = total;
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial.data[chunk];
  return total;
}

#define HPF_INSTANTIATE(T)                                                                                            \
  template double log_rate_sum<T>(TilesView<T>, Matrix<const T>, Matrix<const T>, const Factor<T>*, const Factor<T>*, \
                                  int);                                                                               \
  template double log_factorial_sum<T>(TilesView<T>, int);
HPF_INSTANTIATE(float)
HPF_INSTANTIATE(double)
#undef HPF_INSTANTIATE

}  // namespace HPF_ISA
}  // namespace hpf
