// Products of ln(1 + y) and a matrix, for start values.
#include "allocation.h"
#include "nonzero.h"
#include "operations.h"

namespace hpf {
namespace HPF_ISA {
namespace {

// Adds the weighted rows of `x` for the nonzeros of one tile to the rows of `out`.
template <class T, bool OfRows>
void add_tile(TilesView<T> tiles, int64_t tile, Matrix<const T> x, const double* scale, Matrix<T> out) {
  const int64_t stride = out.stride;
  T weight[piece];
  int64_t z = tiles.tiles[tile].first_nonzero;
  for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment; ++segment) {
    const int64_t row = tiles.segment_row[segment];
    for (const int64_t end = z + tiles.segment_size[segment]; z < end;) {
      const int32_t* column = tiles.column + z;
      const T* y = tiles.value + z;
      const int count = static_cast<int>(minimum(piece, end - z));
#pragma omp simd
      for (int i = 0; i < count; ++i) weight[i] = T(log_one_plus(double(y[i])) * scale[OfRows ? row : column[i]]);
      T* own = out.data + row * stride;
      if (OfRows)
        spread_any<T, true, false>(own, x.data, stride, column, count, weight, own, static_cast<T*>(nullptr));
      else
        spread_any<T, false, true>(x.data + row * stride, out.data, stride, column, count, weight,
                                   static_cast<T*>(nullptr), out.data);
      z += count;
    }
  }
}

template <class T, bool OfRows>
void log_count_products_of(TilesView<T> tiles, Matrix<const T> x, const double* scale, Matrix<T> out, int threads) {
#pragma omp parallel num_threads(threads_for_tiles(tiles, threads))
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < out.rows; ++row) __builtin_memset(row_of(out, row), 0, out.stride * sizeof(T));
    in_steps(tiles, [&](int64_t tile, int64_t, int64_t) { add_tile<T, OfRows>(tiles, tile, x, scale, out); });
  }
}

}  // namespace

template <class T>
void log_count_products(TilesView<T> tiles, Matrix<const T> x, const double* scale, bool of_rows, Matrix<T> out,
                        int threads) {
  if (of_rows)
    log_count_products_of<T, true>(tiles, x, scale, out, threads);
  else
    log_count_products_of<T, false>(tiles, x, scale, out, threads);
}

template void log_count_products<float>(TilesView<float>, Matrix<const float>, const double*, bool, Matrix<float>, int);
template void log_count_products<double>(TilesView<double>, Matrix<const double>, const double*, bool, Matrix<double>,
                                         int);

}  // namespace HPF_ISA
}  // namespace hpf
