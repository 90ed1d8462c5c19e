// Bounds of the items' factors in a byte each, from which top_items tells which few items to look at.
#include "bounds.h"

#include "operations.h"
#include "rows.h"
#include "scratch.h"

namespace hpf {
namespace HPF_ISA {

template <class T>
bool byte_bounds(Matrix<const T> beta, uint8_t* bytes, double* scale, int threads) {
  const int64_t m = beta.rows, k = beta.k, fours = fours_of(k);
  if (!has_byte_products) return false;
  bool usable = true;
  Scratch<T> largest(k);
  Scratch<double> inverse(k);
  for (int64_t j = 0; j < k; ++j) largest.data[j] = 0;
  for (int64_t i = 0; i < m; ++i) {
    const T* row = row_of(beta, i);
    for (int64_t j = 0; j < k; ++j) {
      usable &= row[j] >= 0;  // false of NaN, too
      largest.data[j] = row[j] > largest.data[j] ? row[j] : largest.data[j];
    }
  }
  for (int64_t j = 0; j < k; ++j) {
    scale[j] = double(largest.data[j]) / largest_byte;
    inverse.data[j] = scale[j] > 0 ? 1 / scale[j] : 0;
    usable &= scale[j] == 0 || within_range(scale[j]);
  }
  if (!usable) return false;
#pragma omp parallel for num_threads(threads_for(m, k, threads)) schedule(static)
  for (int64_t block = 0; block < blocks_of(m); ++block) {
    uint8_t* out = bytes + block * fours * bytes_in_block;
    for (int64_t j = 0; j < fours * factors_in_four; ++j)
      for (int64_t i = 0; i < rows_in_block; ++i) {
        const int64_t row = block * rows_in_block + i;
        out[j / factors_in_four * bytes_in_block + i * factors_in_four + j % factors_in_four] =
            row < m && j < k ? byte_above(double(row_of(beta, row)[j]) * inverse.data[j]) : uint8_t(0);
      }
  }
  return true;
}

template bool byte_bounds<float>(Matrix<const float>, uint8_t*, double*, int);
template bool byte_bounds<double>(Matrix<const double>, uint8_t*, double*, int);

}  // namespace HPF_ISA
}  // namespace hpf
