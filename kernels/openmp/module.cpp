// Python's view of the kernels: arrays in, pointers out, nothing computed here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "kernels.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace hpf {

#define HPF_DECLARE(isa)                       \
  namespace isa {                              \
  extern const Kernels<float> kernels_float;   \
  extern const Kernels<double> kernels_double; \
  }
HPF_DECLARE(baseline)
#if defined(HPF_DISPATCH)
HPF_DECLARE(x86_64_v3)
HPF_DECLARE(x86_64_v4)
#endif

namespace {

struct Level {
  const char* name;
  const Kernels<float>* in_float;
  const Kernels<double>* in_double;
};

// Instruction sets that this processor has, the best first.
std::vector<Level> usable_levels() {
  std::vector<Level> levels;
#if defined(HPF_DISPATCH)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) levels.push_back({"x86-64-v4", &x86_64_v4::kernels_float, &x86_64_v4::kernels_double});
  if (v3) levels.push_back({"x86-64-v3", &x86_64_v3::kernels_float, &x86_64_v3::kernels_double});
#endif
  levels.push_back({"baseline", &baseline::kernels_float, &baseline::kernels_double});
  return levels;
}

Level active = usable_levels().front();

template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return *active.in_float;
  else
    return *active.in_double;
}

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Level& level : usable_levels()) names.push_back(level.name);
  return names;
}

void use_level(const std::string& name) {
  for (const Level& level : usable_levels())
    if (name == level.name) {
      active = level;
      return;
    }
  throw std::invalid_argument("this processor has no instruction set " + name);
}

// Processors that share the first one's L3 cache, which Linux lists as "0-7,64-71"; 0 where that is not told.
int64_t processors_of_one_l3() {
  std::ifstream list("/sys/devices/system/cpu/cpu0/cache/index3/shared_cpu_list");
  int64_t processors = 0;
  for (std::string range; std::getline(list, range, ',');) {
    std::istringstream bounds(range);
    int64_t first = 0, last = 0;
    char dash = 0;
    bounds >> first;
    processors += bounds >> dash >> last ? last - first + 1 : 1;
  }
  return processors;
}

// Bytes of cache for the two matrices of one thread's column block: half its part of L3, or L2 where that is more.
// Measured with two threads and 32 MiB of L3, K=30 and 17.5M nonzeros: 89 ms with 4 MiB, 80 to 88 with 6 or 8, 127
// with 16; K=200 and 2.0M nonzeros: 77 ms with 4 MiB, 56 with 8.
int64_t column_block_bytes(int threads) {
  constexpr int64_t unknown = int64_t(2) << 20, most = int64_t(8) << 20;
  int64_t l2 = 0, l3 = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE) && defined(_SC_LEVEL3_CACHE_SIZE)
  l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  if (l2 <= 0) return unknown;
  static const int64_t processors = processors_of_one_l3();
  const int64_t sharing = processors > 0 ? std::min<int64_t>(threads, processors) : threads;
  return std::clamp(l3 / 2 / std::max<int64_t>(sharing, 1), l2, std::max(l2, most));
}

// A matrix (N, K) with rows on whole cache lines; what lies beyond K is zero.
template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::device::cpu>;
using Vector = nb::ndarray<double, nb::ndim<1>, nb::device::cpu, nb::c_contig>;
// A matrix (N, K) of the caller's own: only its rows are contiguous.
template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::device::cpu>;
template <class T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::device::cpu, nb::c_contig>;
template <class T>
using Line = nb::ndarray<T, nb::ndim<1>, nb::device::cpu, nb::c_contig>;

template <class T>
T* aligned(const Matrix<T>& m, int64_t n, int64_t k, int64_t stride) {
  const bool fits = int64_t(m.shape(0)) == n && int64_t(m.shape(1)) == k && m.stride(0) == stride &&
                    (m.stride(1) == 1 || k == 1) && reinterpret_cast<uintptr_t>(m.data()) % 64 == 0 &&
                    stride * sizeof(T) % 64 == 0 && stride >= k;
  if (!fits) throw std::invalid_argument("a matrix is not laid out as this backend lays them out");
  return m.data();
}

template <class T>
struct Side {  // a Factor with the arrays behind it
  Matrix<T> shape, exp_log;
  std::optional<Vector> rate_rows;
  std::optional<Matrix<T>> rate_matrix;
  Vector rate_columns, log_scale;

  int64_t n() const { return shape.shape(0); }
  int64_t k() const { return shape.shape(1); }
  int64_t stride() const { return shape.stride(0); }

  Factor<T> view() const {
    if (int64_t(log_scale.shape(0)) != n()) throw std::invalid_argument("log_scale has the wrong length");
    return {aligned(shape, n(), k(), stride()), rates_of(n(), k(), stride(), rate_rows, rate_matrix, rate_columns),
            aligned(exp_log, n(), k(), stride()), log_scale.data()};
  }

  static Rates<T> rates_of(int64_t n, int64_t k, int64_t stride, const std::optional<Vector>& rows,
                           const std::optional<Matrix<T>>& matrix, const Vector& columns) {
    if (rows.has_value() == matrix.has_value() || (rows && int64_t(rows->shape(0)) != n) ||
        int64_t(columns.shape(0)) != k)
      throw std::invalid_argument("rates do not fit their shapes");
    return {rows ? rows->data() : nullptr, matrix ? aligned(*matrix, n, k, stride) : nullptr, columns.data()};
  }
};

// Whether these are sorted, distinct columns within the shape.  An index outside the matrix would read or
// write outside memory, so nothing is taken on trust.
template <class Index>
bool is_csr(int64_t rows, int64_t columns, int64_t nonzeros, const Index* indptr, const Index* indices) {
  bool fits = indptr[0] == 0 && int64_t(indptr[rows]) == nonzeros;
  for (int64_t u = 0; fits && u < rows; ++u) fits = indptr[u] <= indptr[u + 1];
  if (fits) {
    for (int64_t z = 0; z < nonzeros; ++z) fits &= indices[z] >= 0 && int64_t(indices[z]) < columns;
    for (int64_t u = 0; u < rows; ++u)
      for (int64_t z = int64_t(indptr[u]) + 1; z < int64_t(indptr[u + 1]); ++z) fits &= indices[z - 1] < indices[z];
  }
  return fits;
}

template <class Index>
void check_counts(int64_t rows, int64_t columns, int64_t nonzeros, const Index* indptr, const Index* indices) {
  constexpr int64_t most = INT32_MAX;
  if (rows < 1 || rows > most || columns < 1 || columns > most || !is_csr(rows, columns, nonzeros, indptr, indices))
    throw std::invalid_argument("counts are not a CSR matrix with sorted, distinct columns within its shape");
}

void check_lengths(bool fits) {
  if (!fits) throw std::invalid_argument("arrays of one call have different lengths");
}

template <class T>
void check_rows(const Rows<T>& theta, const Rows<T>& beta) {
  check_lengths(theta.shape(1) == beta.shape(1));
  for (const Rows<T>* m : {&theta, &beta})
    if (m->shape(1) > 1 && m->stride(1) != 1) throw std::invalid_argument("the rows of a matrix are not contiguous");
}

template <class T>
void define(nb::module_& m, const char* counts_name, const char* side_name) {
  using Counts = Tiles<T>;
  const auto release = nb::call_guard<nb::gil_scoped_release>();

  auto counts = nb::class_<Counts>(m, counts_name);
  const auto define_init = [&](auto index) {
    using Index = decltype(index);
    counts.def(
        "__init__",
        [](Counts* self, int64_t columns, const Line<Index>& indptr, const Line<Index>& indices, const Line<T>& data,
           int64_t k, int threads) {
          const int64_t rows = int64_t(indptr.shape(0)) - 1, nonzeros = indices.shape(0);
          check_lengths(rows >= 1 && data.shape(0) == indices.shape(0));
          check_counts(rows, columns, nonzeros, indptr.data(), indices.data());
          const int64_t bytes_of_column = 2 * ((k * sizeof(T) + 63) / 64 * 64);
          const int64_t width = std::max<int64_t>(64, column_block_bytes(threads) / bytes_of_column);
          // A thread needs some thousands of nonzeros to earn its barriers.
          const int64_t blocks = std::clamp<int64_t>(nonzeros / 8192, 1, std::min<int64_t>(threads, columns));
          new (self) Counts(rows, columns, indptr.data(), indices.data(), data.data(), blocks, width);
        },
        "columns"_a, "indptr"_a.noconvert(), "indices"_a.noconvert(), "data"_a.noconvert(), "k"_a, "threads"_a,
        release);
  };
  define_init(int32_t{});
  define_init(int64_t{});
  counts.def_prop_ro("nnz", &Counts::nonzeros);

  nb::class_<Side<T>>(m, side_name)
      .def(
          "__init__",
          [](Side<T>* self, Matrix<T> shape, std::optional<Vector> rate_rows, std::optional<Matrix<T>> rate_matrix,
             Vector rate_columns, Matrix<T> exp_log,
             Vector log_scale) { new (self) Side<T>{shape, exp_log, rate_rows, rate_matrix, rate_columns, log_scale}; },
          "shape"_a.noconvert(), "rate_rows"_a.noconvert().none(), "rate_matrix"_a.noconvert().none(),
          "rate_columns"_a.noconvert(), "exp_log"_a.noconvert(), "log_scale"_a.noconvert());

  m.def(
      "gamma_update",
      [](const Matrix<T>& shape, double prior_shape, const std::optional<Vector>& rate_rows,
         const std::optional<Matrix<T>>& rate_matrix, const Vector& rate_columns, const Matrix<T>& exp_log,
         const Vector& log_scale, const Vector& row_sums, const Vector& column_sums, int threads) {
        const int64_t n = shape.shape(0), k = shape.shape(1), stride = shape.stride(0);
        check_lengths(int64_t(log_scale.shape(0)) == n && int64_t(row_sums.shape(0)) == n &&
                      int64_t(column_sums.shape(0)) == k);
        kernels<T>().gamma_update(n, k, stride, aligned(shape, n, k, stride), prior_shape,
                                  Side<T>::rates_of(n, k, stride, rate_rows, rate_matrix, rate_columns),
                                  aligned(exp_log, n, k, stride), log_scale.data(), row_sums.data(), column_sums.data(),
                                  threads);
      },
      "shape"_a.noconvert(), "prior_shape"_a, "rate_rows"_a.noconvert().none(), "rate_matrix"_a.noconvert().none(),
      "rate_columns"_a.noconvert(), "exp_log"_a.noconvert(), "log_scale"_a.noconvert(), "row_sums"_a.noconvert(),
      "column_sums"_a.noconvert(), "threads"_a, release);

  m.def(
      "mean",
      [](const Side<T>& side, const Matrix<T>& out, int threads) {
        const Factor<T> factor = side.view();
        kernels<T>().mean(side.n(), side.k(), side.stride(), factor.shape, factor.rates,
                          aligned(out, side.n(), side.k(), side.stride()), threads);
      },
      "side"_a, "out"_a.noconvert(), "threads"_a, release);

  m.def(
      "gamma_entropy",
      [](const Side<T>& side, double prior_shape, const Vector& row_sums, int threads) {
        check_lengths(int64_t(row_sums.shape(0)) == side.n());
        const Factor<T> factor = side.view();
        return kernels<T>().gamma_entropy(side.n(), side.k(), side.stride(), factor.shape, factor.rates, prior_shape,
                                          row_sums.data(), threads);
      },
      "side"_a, "prior_shape"_a, "row_sums"_a.noconvert(), "threads"_a, release);

  const auto check_sides = [](const TilesView<T>& tiles, int64_t n, int64_t m_, int64_t k, int64_t k_, int64_t stride,
                              int64_t stride_) {
    check_lengths(tiles.rows == n && tiles.columns == m_ && k == k_ && stride == stride_);
  };

  m.def(
      "allocate",
      [check_sides](const Counts& counts, const Side<T>& users, const Side<T>& items,
                    const std::optional<Matrix<T>>& user_sums, const std::optional<Matrix<T>>& item_sums, bool exact,
                    int threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t k = users.k(), stride = users.stride();
        check_sides(tiles, users.n(), items.n(), k, items.k(), stride, items.stride());
        kernels<T>().allocate(tiles, k, stride, users.view(), items.view(),
                              user_sums ? aligned(*user_sums, users.n(), k, stride) : nullptr,
                              item_sums ? aligned(*item_sums, items.n(), k, stride) : nullptr, exact, threads);
      },
      "counts"_a, "users"_a, "items"_a, "user_sums"_a.noconvert().none(), "item_sums"_a.noconvert().none(), "exact"_a,
      "threads"_a, release);

  m.def(
      "log_rate_sum",
      [check_sides](const Counts& counts, const Matrix<T>& theta, const Matrix<T>& beta, int threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t n = theta.shape(0), m_ = beta.shape(0), k = theta.shape(1), stride = theta.stride(0);
        check_sides(tiles, n, m_, k, beta.shape(1), stride, beta.stride(0));
        return kernels<T>().log_rate_sum(tiles, k, stride, aligned(theta, n, k, stride), aligned(beta, m_, k, stride),
                                         nullptr, nullptr, threads);
      },
      "counts"_a, "theta"_a.noconvert(), "beta"_a.noconvert(), "threads"_a, release);

  m.def(
      "log_normalizer_sum",
      [check_sides](const Counts& counts, const Side<T>& users, const Side<T>& items, int threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t k = users.k(), stride = users.stride();
        check_sides(tiles, users.n(), items.n(), k, items.k(), stride, items.stride());
        const Factor<T> user = users.view(), item = items.view();
        return kernels<T>().log_rate_sum(tiles, k, stride, user.exp_log, item.exp_log, &user, &item, threads);
      },
      "counts"_a, "users"_a, "items"_a, "threads"_a, release);

  m.def(
      "log_factorial_sum",
      [](const Counts& counts, int threads) { return kernels<T>().log_factorial_sum(counts.view(), threads); },
      "counts"_a, "threads"_a, release);

  m.def(
      "predict_pairs",
      [](const Rows<T>& theta, const Rows<T>& beta, const Line<const int64_t>& rows, const Line<const int64_t>& columns,
         const Line<T>& out, int threads) {
        check_lengths(rows.shape(0) == columns.shape(0) && rows.shape(0) == out.shape(0));
        check_rows(theta, beta);
        for (size_t z = 0; z < rows.shape(0); ++z)
          if (rows.data()[z] < 0 || rows.data()[z] >= int64_t(theta.shape(0)) || columns.data()[z] < 0 ||
              columns.data()[z] >= int64_t(beta.shape(0)))
            throw nb::index_error("a pair lies outside the matrices");
        kernels<T>().predict_pairs(rows.shape(0), theta.shape(1), theta.data(), theta.stride(0), beta.data(),
                                   beta.stride(0), rows.data(), columns.data(), out.data(), threads);
      },
      "theta"_a.noconvert(), "beta"_a.noconvert(), "rows"_a.noconvert(), "columns"_a.noconvert(), "out"_a.noconvert(),
      "threads"_a, release);

  m.def(
      "top_items",
      [](const Rows<T>& theta, const Rows<T>& beta, const std::optional<Line<const int64_t>>& indptr,
         const std::optional<Line<const int64_t>>& indices, const Table<int64_t>& columns, const Table<T>& scores,
         int threads) {
        const int64_t n = theta.shape(0), m_ = beta.shape(0), k = theta.shape(1), length = scores.shape(1);
        check_rows(theta, beta);
        check_lengths(k >= 1 && length >= 1 && threads >= 1 && int64_t(columns.shape(0)) == n &&
                      int64_t(scores.shape(0)) == n && int64_t(columns.shape(1)) == length);
        if (indptr.has_value() != indices.has_value() ||
            (indptr && (int64_t(indptr->shape(0)) != n + 1 ||
                        !is_csr(n, m_, int64_t(indices->shape(0)), indptr->data(), indices->data()))))
          throw std::invalid_argument("excluded items are not CSR rows of sorted, distinct items within the shape");
        const Excluded excluded{indptr ? indptr->data() : nullptr, indptr ? indices->data() : nullptr};
        if (n == 0) return;
        kernels<T>().top_items(n, m_, k, theta.data(), theta.stride(0), beta.data(), beta.stride(0), excluded, length,
                               columns.data(), scores.data(), threads);
      },
      "theta"_a.noconvert(), "beta"_a.noconvert(), "indptr"_a.noconvert().none(), "indices"_a.noconvert().none(),
      "columns"_a.noconvert(), "scores"_a.noconvert(), "threads"_a, release);

  m.def(
      "distance",
      [](const Matrix<T>& a, const Matrix<T>& b, int threads) {
        const int64_t n = a.shape(0), k = a.shape(1), stride = a.stride(0);
        return kernels<T>().distance(n, k, stride, aligned(a, n, k, stride), aligned(b, n, k, stride), threads);
      },
      "a"_a.noconvert(), "b"_a.noconvert(), "threads"_a, release);
}

}  // namespace
}  // namespace hpf

NB_MODULE(_openmp, m) {
  hpf::define<float>(m, "Counts32", "Side32");
  hpf::define<double>(m, "Counts64", "Side64");
  m.def("levels", &hpf::levels, "Instruction sets that this processor has, the best first.");
  m.def("level", [] { return std::string(hpf::active.name); }, "The instruction set in use.");
  m.def("use_level", &hpf::use_level, "level"_a, "Use another instruction set, for tests and comparisons.");
#if defined(_OPENMP)
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
}
