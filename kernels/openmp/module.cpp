// Python's view of the kernels: arrays in, pointers out, nothing computed here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "fold.h"
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

// A matrix (N, K) with rows on whole cache lines; what lies beyond K is zero (and is there, in the last row, too).
template <class T>
using Padded = nb::ndarray<T, nb::ndim<2>, nb::device::cpu>;
using Vector = nb::ndarray<double, nb::ndim<1>, nb::device::cpu, nb::c_contig>;
// A matrix (N, K) of the caller's own: only its rows are contiguous.
template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::device::cpu>;
template <class T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::device::cpu, nb::c_contig>;
template <class T>
using Line = nb::ndarray<T, nb::ndim<1>, nb::device::cpu, nb::c_contig>;
// What an object of the module has, for NumPy to look at.
template <class T>
using View = nb::ndarray<nb::numpy, const T, nb::device::cpu, nb::c_contig>;

// What is wrong with an argument, put together of words and numbers.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// Thousands of threads can exhaust the system's, and then GNU OpenMP ends the process.
int most_threads() {
  static const int most = std::max(256, static_cast<int>(std::thread::hardware_concurrency()));
  return most;
}

int checked_threads(int64_t threads) {
  if (threads < 1 || threads > most_threads())
    refuse("threads must be between 1 and ", most_threads(), ", not ", threads);
  return static_cast<int>(threads);
}

// Kernels count the vectors of a row in 32 bits.
int64_t checked_factors(int64_t k) {
  if (k < 1 || k > INT32_MAX) refuse("the number of factors must be between 1 and ", INT32_MAX, ", not ", k);
  return k;
}

void check_length(const char* name, size_t length, int64_t wanted) {
  if (int64_t(length) != wanted) refuse(name, " has the length ", length, " instead of ", wanted);
}

void check_pairs(int64_t pairs, const int64_t* row, const int64_t* column, int64_t rows, int64_t columns) {
  for (int64_t z = 0; z < pairs; ++z)
    if (row[z] < 0 || row[z] >= rows || column[z] < 0 || column[z] >= columns)
      throw nb::index_error("a pair lies outside the matrices");
}

void check_temperature(double temperature) {
  if (!(temperature > 0 && temperature <= std::numeric_limits<double>::max()))
    refuse("the temperature must be positive and finite, not ", temperature);
}

// A vector in one of several types.
using AnyLine = nb::ndarray<nb::ro, nb::ndim<1>, nb::device::cpu, nb::c_contig>;

// An array's numbers, which compilers take to lie at multiples of their size; those of NumPy need not.
template <class Array>
auto* numbers_of(const Array& array) {
  auto* data = array.data();
  if (reinterpret_cast<uintptr_t>(data) % sizeof(*data) != 0)
    refuse("an array of ", sizeof(*data), "-byte numbers begins at an address that is no multiple of ", sizeof(*data));
  return data;
}

// An array's numbers, in whichever of some types they are.
template <class... Types>
std::variant<const Types*...> numbers_in_one_of(const char* name, const AnyLine& array) {
  std::variant<const Types*...> numbers;
  const auto are = [&](auto* data) {
    using Type = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if (array.dtype() != nb::dtype<Type>()) return false;
    numbers = numbers_of(nb::ndarray<const Type, nb::ndim<1>, nb::device::cpu, nb::c_contig>(array));
    return true;
  };
  if (!(are(static_cast<const Types*>(nullptr)) || ...)) refuse(name, " has a type that packed counts do not have");
  return numbers;
}

// Numbers from one row to the next, of which each fills whole cache lines.
template <class T>
int64_t stride_of(int64_t k) {
  constexpr int64_t in_line = 64 / sizeof(T);
  return (k + in_line - 1) / in_line * in_line;
}

// Kernels read and write whole rows of such a matrix, K to the stride included, so only one layout will do.
template <class Number, class T>
Matrix<Number> aligned(const char* name, const Padded<T>& m, int64_t n, int64_t k) {
  if (int64_t(m.shape(0)) != n || int64_t(m.shape(1)) != k)
    refuse(name, " has the shape (", m.shape(0), ", ", m.shape(1), ") instead of (", n, ", ", k, ")");
  if (m.stride(0) != stride_of<T>(k) || (m.stride(1) != 1 && k != 1) || reinterpret_cast<uintptr_t>(m.data()) % 64 != 0)
    refuse(name, " is not laid out in rows of whole cache lines: see OpenMPBackend.asarray");
  return {m.data(), n, k, m.stride(0)};
}

template <class T>
Rates<T> rates_of(int64_t n, int64_t k, const std::optional<Vector>& rows, const std::optional<Padded<T>>& matrix,
                  const Vector& columns) {
  if (rows.has_value() == matrix.has_value()) refuse("rates need either rate_rows or rate_matrix, not both or neither");
  if (rows) check_length("rate_rows", rows->shape(0), n);
  check_length("rate_columns", columns.shape(0), k);
  return {rows ? numbers_of(*rows) : nullptr,
          matrix ? aligned<const T>("rate_matrix", *matrix, n, k) : Matrix<const T>{}, numbers_of(columns)};
}

template <class T>
class Side {  // a Factor with the arrays behind it
 public:
  Side(Padded<T> shape,                       // (N, K)
       std::optional<Vector> rate_rows,       // (N,), or none
       std::optional<Padded<T>> rate_matrix,  // (N, K), or none
       Vector rate_columns,                   // (K,)
       Padded<T> exp_log,                     // (N, K)
       Vector log_scale,                      // (N,)
       double temperature)
      : shape_(shape),
        exp_log_(exp_log),
        rate_rows_(rate_rows),
        rate_matrix_(rate_matrix),
        rate_columns_(rate_columns),
        log_scale_(log_scale) {
    checked_factors(k());
    check_length("log_scale", log_scale.shape(0), n());
    check_temperature(temperature);
    factor_ = {aligned<const T>("shape", shape, n(), k()), rates_of(n(), k(), rate_rows, rate_matrix, rate_columns),
               aligned<const T>("exp_log", exp_log, n(), k()), numbers_of(log_scale), temperature};
  }

  int64_t n() const { return shape_.shape(0); }
  int64_t k() const { return shape_.shape(1); }
  const Factor<T>& factor() const { return factor_; }

 private:
  Padded<T> shape_, exp_log_;
  std::optional<Vector> rate_rows_;
  std::optional<Padded<T>> rate_matrix_;
  Vector rate_columns_, log_scale_;
  Factor<T> factor_;
};

// Whether these are sorted, distinct columns within the shape.  An index outside the matrix would read or
// write outside memory, so nothing is taken on trust.
template <class Start, class Index>
bool is_csr(int64_t rows, int64_t columns, int64_t nonzeros,
            const Start* indptr,     // (rows + 1,)
            const Index* indices) {  // (nonzeros,)
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
void check_counts(int64_t rows, int64_t columns, int64_t nonzeros,
                  const Index* indptr,     // (rows + 1,)
                  const Index* indices) {  // (nonzeros,)
  constexpr int64_t most = INT32_MAX;
  if (rows < 1 || rows > most || columns < 1 || columns > most || !is_csr(rows, columns, nonzeros, indptr, indices))
    throw std::invalid_argument("counts are not a CSR matrix with sorted, distinct columns within its shape");
}

// Neighbours (M, L) of items, below `items`, with −1 behind the last.
const int32_t* checked_sources(const Table<const int32_t>& sources, int64_t m, int64_t items) {
  const int32_t* source = numbers_of(sources);
  const int64_t l = checked_factors(sources.shape(1));
  if (int64_t(sources.shape(0)) != m) refuse("neighbours of ", sources.shape(0), " items instead of ", m);
  bool fits = true;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t z = i * l, last = -1; z < (i + 1) * l; last = source[z++])
      fits &= source[z] == -1 || (source[z] > last && source[z] < items && (last >= 0 || z == i * l));
  if (!fits) refuse("neighbours are not ascending numbers of items with -1 behind the last");
  return source;
}

template <class T>
Matrix<const T> rows_of(const Rows<T>& m) {
  return {numbers_of(m), int64_t(m.shape(0)), int64_t(m.shape(1)), m.stride(0)};
}

template <class T>
void check_rows(const Rows<T>& theta, const Rows<T>& beta) {
  checked_factors(int64_t(theta.shape(1)));
  if (theta.shape(1) != beta.shape(1)) refuse("theta has ", theta.shape(1), " factors and beta has ", beta.shape(1));
  for (const Rows<T>* m : {&theta, &beta})
    if (m->shape(1) > 1 && m->stride(1) != 1) refuse("the rows of a matrix are not contiguous");
}

void check_bounds(int64_t rows, int64_t k, size_t bytes, size_t scale) {
  const int64_t blocks = (rows + rows_in_block - 1) / rows_in_block;
  check_length("bounds", bytes, blocks * ((k + factors_in_four - 1) / factors_in_four) * bytes_in_block);
  check_length("scale", scale, k);
}

// Whether the nonzeros of `tiles` are those of CSR rows with as many in all, which the columns of the tiles must be:
// as many in each row and column block.
template <class T, class Index>
void check_transposed(const TilesView<T>& tiles,
                      const Index* indptr,     // (columns + 1,)
                      const Index* indices) {  // (nonzeros,)
  Numbers<int64_t> size(tiles.rows, 0);
  bool fits = true;
  for (int64_t c = 0; c < tiles.column_blocks; ++c) {
    for (int64_t z = int64_t(indptr[tiles.column_start[c]]); z < int64_t(indptr[tiles.column_start[c + 1]]); ++z)
      ++size[indices[z]];
    for (int64_t r = 0; r < tiles.row_blocks; ++r) {
      const Tile* tile = tiles.tiles + r * tiles.column_blocks + c;
      for (int64_t s = tile->first_segment; s < (tile + 1)->first_segment; ++s) {
        fits &= size[tiles.segment_row[s]] == tiles.segment_size[s];
        size[tiles.segment_row[s]] = 0;
      }
    }
  }
  if (!fits) refuse("these are not the counts' own columns");
}

// Only what the users' items lead to is looked at: for one user the rest would take longer than her list.
template <class T>
void check_item_scores(const ItemScores<T>& added, int64_t n, int64_t m, int64_t items, int64_t had, int64_t targets) {
  if (items < 0 || !is_csr(n, items, had, added.had_start, added.had))
    refuse("items of users are not CSR rows of sorted, distinct items within the shape");
  bool fits = added.start[0] == 0 && added.start[items] == targets;
  for (int64_t item = 0; item < items; ++item) fits &= added.start[item] <= added.start[item + 1];
  Numbers<uint8_t> known(items, uint8_t(0));
  for (int64_t z = 0; z < had && fits; ++z) {
    const int64_t item = added.had[z], begin = added.start[item], end = added.start[item + 1];
    if (known[item]) continue;
    known[item] = 1;
    for (int64_t p = begin; fits && p < end; ++p) fits = added.targets[p] >= 0 && added.targets[p] < m;
  }
  if (!fits) refuse("scores of items are not CSR rows of items within the shape");
}

// Items and users of `tiles`, with weights of the items' neighbours.
template <class T>
void check_neighbours(const TilesView<T>& tiles, const Had& had, int64_t nonzeros, int64_t m, int64_t l) {
  if (had.nonzeros() != nonzeros) refuse("neighbours of ", had.nonzeros(), " counts do not fit ", nonzeros, " counts");
  if (m != tiles.rows || l != had.neighbours())
    refuse("weights of the shape (", m, ", ", l, ") do not fit ", tiles.rows, " items with ", had.neighbours(),
           " neighbours");
}

// Two sides of `tiles`, as rows and columns.
template <class T>
void check_sides(const TilesView<T>& tiles, int64_t n, int64_t m, int64_t k_users, int64_t k_items) {
  if (tiles.rows != n || tiles.columns != m)
    refuse("counts of the shape (", tiles.rows, ", ", tiles.columns, ") do not fit ", n, " users and ", m, " items");
  if (k_users != k_items) refuse("users have ", k_users, " factors and items have ", k_items);
}

template <class T>
void check_temperatures(const Side<T>& items, const Side<T>& users, const Side<T>& weights) {
  const double t = users.factor().temperature;
  if (items.factor().temperature != t || weights.factor().temperature != t)
    refuse("users, items and weights have different temperatures");
}

void choose_neighbours(const Line<const int64_t>& user_indptr,   // (N + 1,)
                       const Line<const int32_t>& user_indices,  // (Z,)
                       const Line<const int64_t>& item_indptr,   // (M + 1,)
                       const Line<const int32_t>& item_indices,  // (Z,)
                       int64_t begin, int64_t end,
                       const Table<int32_t>& chosen,  // (end - begin, n)
                       int64_t threads) {
  const int64_t n = int64_t(user_indptr.shape(0)) - 1, m = int64_t(item_indptr.shape(0)) - 1;
  const int64_t z = user_indices.shape(0);
  if (n < 1 || m < 1 || m > INT32_MAX || int64_t(item_indices.shape(0)) != z ||
      !is_csr(n, m, z, numbers_of(user_indptr), numbers_of(user_indices)) ||
      !is_csr(m, n, z, numbers_of(item_indptr), numbers_of(item_indices)))
    refuse("counts and their transpose are not CSR matrices with sorted, distinct columns within their shapes");
  if (begin < 0 || begin > end || end > m) refuse("there are no items ", begin, " to ", end, " of ", m);
  check_length("chosen", chosen.shape(0), end - begin);
  const int64_t length = checked_factors(chosen.shape(1));
  const Incidence users{n, user_indptr.data(), user_indices.data()}, items{m, item_indptr.data(), item_indices.data()};
  kernels<float>().choose_neighbours(users, items, begin, end, length, numbers_of(chosen), checked_threads(threads));
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
        [](Counts* self, int64_t columns,
           const Line<Index>& indptr,   // (N + 1,)
           const Line<Index>& indices,  // (Z,)
           const Line<T>& data,         // (Z,)
           int64_t k, int64_t threads) {
          const int64_t rows = int64_t(indptr.shape(0)) - 1, nonzeros = indices.shape(0);
          const int team = checked_threads(threads);
          check_length("data", data.shape(0), nonzeros);
          check_counts(rows, columns, nonzeros, numbers_of(indptr), numbers_of(indices));
          const int64_t bytes_of_column = 2 * stride_of<T>(checked_factors(k)) * int64_t(sizeof(T));
          const int64_t width = std::max<int64_t>(64, column_block_bytes(team) / bytes_of_column);
          // A thread needs some thousands of nonzeros to earn its barriers.
          const int64_t blocks = std::clamp<int64_t>(nonzeros / 8192, 1, std::min<int64_t>(team, columns));
          new (self) Counts(rows, columns, indptr.data(), indices.data(), numbers_of(data), blocks, width);
        },
        "columns"_a, "indptr"_a.noconvert(), "indices"_a.noconvert(), "data"_a.noconvert(), "k"_a, "threads"_a,
        release);
  };
  define_init(int32_t{});
  define_init(int64_t{});
  counts.def(
      "__init__",
      [](Counts* self, int64_t rows, int64_t columns,
         const Line<const int64_t>& row_start,     // (R + 1,)
         const Line<const int64_t>& column_start,  // (C + 1,)
         const Table<const int64_t>& first,        // (RC + 1, 2)
         const AnyLine& segment_step,              // (S,)
         const AnyLine& segment_size,              // (S,)
         const AnyLine& column_offset,             // (Z,)
         const AnyLine& value,                     // (Z,)
         int64_t threads) {
        constexpr int64_t most = INT32_MAX;
        const int64_t row_blocks = int64_t(row_start.shape(0)) - 1, column_blocks = int64_t(column_start.shape(0)) - 1;
        const int64_t segments = segment_step.shape(0), nonzeros = column_offset.shape(0);
        if (rows < 1 || rows > most || columns < 1 || columns > most)
          refuse("there are no counts of ", rows, " rows and ", columns, " columns");
        if (row_blocks < 1 || column_blocks < 1) refuse("packed counts have no tiles");
        check_length("first", first.shape(0), row_blocks * column_blocks + 1);
        check_length("a row of first", first.shape(1), 2);
        check_length("segment_size", segment_size.shape(0), segments);
        check_length("value", value.shape(0), nonzeros);
        const auto integers = numbers_in_one_of<uint8_t, uint16_t, uint32_t>;
        const PackedTiles<T> packed{rows,
                                    columns,
                                    row_blocks,
                                    column_blocks,
                                    segments,
                                    nonzeros,
                                    numbers_of(row_start),
                                    numbers_of(column_start),
                                    numbers_of(first),
                                    integers("segment_step", segment_step),
                                    integers("segment_size", segment_size),
                                    integers("column_offset", column_offset),
                                    numbers_in_one_of<uint8_t, uint16_t, T>("value", value)};
        new (self) Counts(packed, checked_threads(threads));
      },
      "rows"_a, "columns"_a, "row_start"_a.noconvert(), "column_start"_a.noconvert(), "first"_a.noconvert(),
      "segment_step"_a.noconvert(), "segment_size"_a.noconvert(), "column_offset"_a.noconvert(), "value"_a.noconvert(),
      "threads"_a, release);
  counts.def_prop_ro("nnz", &Counts::nonzeros);

  // Their arrays, to be packed: views.
  using Lengths = std::initializer_list<size_t>;
  counts.def_prop_ro("row_start", [](const Counts& counts) {
    const TilesView<T> tiles = counts.view();
    return View<int64_t>(tiles.row_start, Lengths{size_t(tiles.row_blocks + 1)});
  });
  counts.def_prop_ro("column_start", [](const Counts& counts) {
    const TilesView<T> tiles = counts.view();
    return View<int64_t>(tiles.column_start, Lengths{size_t(tiles.column_blocks + 1)});
  });
  counts.def_prop_ro("first", [](const Counts& counts) {  // segment and nonzero of each tile
    const TilesView<T> tiles = counts.view();
    return View<int64_t>(&tiles.tiles->first_segment, Lengths{size_t(tiles.row_blocks * tiles.column_blocks + 1), 2});
  });
  counts.def_prop_ro("segment_row", [](const Counts& counts) {
    return View<int32_t>(counts.view().segment_row, Lengths{size_t(counts.segments())});
  });
  counts.def_prop_ro("segment_size", [](const Counts& counts) {
    return View<int32_t>(counts.view().segment_size, Lengths{size_t(counts.segments())});
  });
  counts.def_prop_ro("column", [](const Counts& counts) {
    return View<int32_t>(counts.view().column, Lengths{size_t(counts.nonzeros())});
  });
  counts.def_prop_ro(
      "value", [](const Counts& counts) { return View<T>(counts.view().value, Lengths{size_t(counts.nonzeros())}); });

  const auto define_had = [&](auto index) {
    using Index = decltype(index);
    m.def(
        "had_neighbours",
        [](const Counts& counts,                 // (M, N)
           const Line<Index>& indptr,            // (N + 1,)
           const Line<Index>& indices,           // (Z,)
           const Table<const int32_t>& sources,  // (M, L)
           int64_t threads) {
          const TilesView<T> tiles = counts.view();
          check_length("indptr", indptr.shape(0), tiles.columns + 1);
          check_length("indices", indices.shape(0), counts.nonzeros());
          check_counts(tiles.columns, tiles.rows, counts.nonzeros(), numbers_of(indptr), numbers_of(indices));
          const int32_t* source = checked_sources(sources, tiles.rows, tiles.rows);
          check_transposed(tiles, indptr.data(), indices.data());
          return Had(tiles, indptr.data(), indices.data(), source, sources.shape(1), checked_threads(threads));
        },
        "counts"_a, "indptr"_a.noconvert(), "indices"_a.noconvert(), "sources"_a.noconvert(), "threads"_a, release);
  };
  define_had(int32_t{});
  define_had(int64_t{});

  nb::class_<Side<T>>(m, side_name)
      .def(nb::init<Padded<T>, std::optional<Vector>, std::optional<Padded<T>>, Vector, Padded<T>, Vector, double>(),
           "shape"_a.noconvert(), "rate_rows"_a.noconvert().none(), "rate_matrix"_a.noconvert().none(),
           "rate_columns"_a.noconvert(), "exp_log"_a.noconvert(), "log_scale"_a.noconvert(), "temperature"_a);

  m.def(
      "gamma_update",
      [](const Padded<T>& shape,  // (N, K)
         double prior_shape,
         const std::optional<Vector>& rate_rows,       // (N,), or none
         const std::optional<Padded<T>>& rate_matrix,  // (N, K), or none
         const Vector& rate_columns,                   // (K,)
         const Padded<T>& exp_log,                     // (N, K)
         const Vector& log_scale,                      // (N,)
         const Vector& row_sums,                       // (N,)
         const Vector& column_sums,                    // (K,)
         double temperature, int64_t threads) {
        const int64_t n = shape.shape(0), k = checked_factors(shape.shape(1));
        check_length("log_scale", log_scale.shape(0), n);
        check_length("row_sums", row_sums.shape(0), n);
        check_length("column_sums", column_sums.shape(0), k);
        check_temperature(temperature);
        kernels<T>().gamma_update(aligned<T>("shape", shape, n, k), prior_shape,
                                  rates_of(n, k, rate_rows, rate_matrix, rate_columns),
                                  aligned<T>("exp_log", exp_log, n, k), numbers_of(log_scale), numbers_of(row_sums),
                                  numbers_of(column_sums), temperature, checked_threads(threads));
      },
      "shape"_a.noconvert(), "prior_shape"_a, "rate_rows"_a.noconvert().none(), "rate_matrix"_a.noconvert().none(),
      "rate_columns"_a.noconvert(), "exp_log"_a.noconvert(), "log_scale"_a.noconvert(), "row_sums"_a.noconvert(),
      "column_sums"_a.noconvert(), "temperature"_a, "threads"_a, release);

  m.def(
      "extrapolate",
      [](const Padded<T>& exp_log,     // (N, K)
         const Vector& log_scale,      // (N,)
         const Padded<T>& earlier,     // (N, K)
         const Vector& earlier_scale,  // (N,)
         const Vector& steps,          // (1,)
         const Padded<T>& out,         // (N, K)
         const Vector& out_scale,      // (N,)
         int64_t threads) {
        const int64_t n = exp_log.shape(0), k = checked_factors(exp_log.shape(1));
        check_length("log_scale", log_scale.shape(0), n);
        check_length("earlier_scale", earlier_scale.shape(0), n);
        check_length("steps", steps.shape(0), 1);
        check_length("out_scale", out_scale.shape(0), n);
        const double done = numbers_of(steps)[0] > 0 ? numbers_of(steps)[0] : 0.0;
        kernels<T>().extrapolate(aligned<const T>("exp_log", exp_log, n, k), numbers_of(log_scale),
                                 aligned<const T>("earlier", earlier, n, k), numbers_of(earlier_scale),
                                 done / (done + 1), aligned<T>("out", out, n, k), numbers_of(out_scale),
                                 checked_threads(threads));
      },
      "exp_log"_a.noconvert(), "log_scale"_a.noconvert(), "earlier"_a.noconvert(), "earlier_scale"_a.noconvert(),
      "steps"_a.noconvert(), "out"_a.noconvert(), "out_scale"_a.noconvert(), "threads"_a, release);

  m.def(
      "mean",
      [](const Side<T>& side,
         const Padded<T>& out,  // (N, K)
         int64_t threads) {
        const Factor<T>& factor = side.factor();
        kernels<T>().mean(factor.shape, factor.rates, aligned<T>("out", out, side.n(), side.k()),
                          checked_threads(threads));
      },
      "side"_a, "out"_a.noconvert(), "threads"_a, release);

  m.def(
      "gamma_entropy",
      [](const Side<T>& side, double prior_shape,
         const Vector& row_sums,  // (N,)
         int64_t threads) {
        check_length("row_sums", row_sums.shape(0), side.n());
        const Factor<T>& factor = side.factor();
        return kernels<T>().gamma_entropy(factor.shape, factor.rates, prior_shape, numbers_of(row_sums),
                                          checked_threads(threads));
      },
      "side"_a, "prior_shape"_a, "row_sums"_a.noconvert(), "threads"_a, release);

  m.def(
      "allocate",
      [](const Counts& counts, const Side<T>& users, const Side<T>& items,
         const std::optional<Padded<T>>& user_sums,  // (N, K), or none
         const std::optional<Padded<T>>& item_sums,  // (M, K), or none
         bool exact, int64_t threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t k = users.k();
        check_sides(tiles, users.n(), items.n(), k, items.k());
        if (!user_sums && !item_sums) refuse("allocate needs user_sums, item_sums or both");
        kernels<T>().allocate(tiles, users.factor(), items.factor(),
                              user_sums ? aligned<T>("user_sums", *user_sums, users.n(), k) : Matrix<T>{},
                              item_sums ? aligned<T>("item_sums", *item_sums, items.n(), k) : Matrix<T>{}, exact,
                              checked_threads(threads));
      },
      "counts"_a, "users"_a, "items"_a, "user_sums"_a.noconvert().none(), "item_sums"_a.noconvert().none(), "exact"_a,
      "threads"_a, release);

  m.def(
      "allocate_with_neighbours",
      [](const Counts& counts,  // (M, N)
         const Had& had, const Side<T>& items, const Side<T>& users, const Side<T>& weights,
         const std::optional<Padded<T>>& item_sums,    // (M, K), or none
         const std::optional<Padded<T>>& weight_sums,  // (M, L), or none
         const std::optional<Padded<T>>& user_sums,    // (N, K), or none
         bool exact, int64_t threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t k = users.k();
        check_sides(tiles, items.n(), users.n(), items.k(), k);
        check_neighbours(tiles, had, counts.nonzeros(), weights.n(), weights.k());
        check_temperatures(items, users, weights);
        if (item_sums.has_value() != weight_sums.has_value()) refuse("item_sums and weight_sums need one another");
        if (!user_sums && !item_sums) refuse("allocate needs user_sums, item_sums or both");
        kernels<T>().allocate_with_neighbours(
            tiles, had.view(), items.factor(), users.factor(), weights.factor(),
            item_sums ? aligned<T>("item_sums", *item_sums, items.n(), k) : Matrix<T>{},
            weight_sums ? aligned<T>("weight_sums", *weight_sums, items.n(), weights.k()) : Matrix<T>{},
            user_sums ? aligned<T>("user_sums", *user_sums, users.n(), k) : Matrix<T>{}, exact,
            checked_threads(threads));
      },
      "counts"_a, "had"_a, "items"_a, "users"_a, "weights"_a, "item_sums"_a.noconvert().none(),
      "weight_sums"_a.noconvert().none(), "user_sums"_a.noconvert().none(), "exact"_a, "threads"_a, release);

  m.def(
      "fold_in",
      [](const Counts& counts,  // (N, M); with weights (M, N)
         const Had* had, const Side<T>& users, const Side<T>& items, const Side<T>* weights,
         const Vector& columns,  // (K,)
         double prior_shape, double hyper_shape, double slope, double offset,
         const Line<const int64_t>& pinned_columns,  // (P,)
         const Line<const double>& pinned_shapes,    // (P,)
         int64_t most, double threshold, bool exact,
         const Padded<T>& shape,     // (N, K)
         const Vector& rate_rows,    // (N,)
         const Padded<T>& exp_log,   // (N, K)
         const Vector& log_scale,    // (N,)
         const Vector& hyper_rate,   // (N,)
         const Vector& column_sums,  // (K,)
         int64_t threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t n = users.n(), k = users.k(), pins = pinned_columns.shape(0);
        if ((had != nullptr) != (weights != nullptr)) refuse("had and weights need one another");
        if (weights) {
          check_sides(tiles, items.n(), n, items.k(), k);
          check_neighbours(tiles, *had, counts.nonzeros(), weights->n(), weights->k());
          check_temperatures(items, users, *weights);
        } else {
          check_sides(tiles, n, items.n(), k, items.k());
        }
        check_length("columns", columns.shape(0), k);
        check_length("pinned_shapes", pinned_shapes.shape(0), pins);
        check_length("rate_rows", rate_rows.shape(0), n);
        check_length("log_scale", log_scale.shape(0), n);
        check_length("hyper_rate", hyper_rate.shape(0), n);
        check_length("column_sums", column_sums.shape(0), k);
        if (most < 1) refuse("fold-in takes one iteration or more, not ", most);
        const int64_t* column = numbers_of(pinned_columns);
        const double* pinned_shape = numbers_of(pinned_shapes);
        Numbers<Pinned> pinned(pins);
        for (int64_t p = 0; p < pins; ++p) {
          if (column[p] < 0 || column[p] >= k) throw nb::index_error("a pinned column lies outside the matrix");
          pinned[p] = {column[p], pinned_shape[p]};
        }
        const Ascent<T> ascent{tiles,
                               weights ? had->view() : HadView{},
                               items.factor(),
                               weights ? &weights->factor() : nullptr,
                               numbers_of(columns),
                               prior_shape,
                               hyper_shape,
                               slope,
                               offset,
                               pinned,
                               exact,
                               checked_threads(threads)};
        fold_in(kernels<T>(), ascent, users.factor(), most, threshold, aligned<T>("shape", shape, n, k),
                numbers_of(rate_rows), aligned<T>("exp_log", exp_log, n, k), numbers_of(log_scale),
                numbers_of(hyper_rate), numbers_of(column_sums));
      },
      "counts"_a, "had"_a.none(), "users"_a, "items"_a, "weights"_a.none(), "columns"_a.noconvert(), "prior_shape"_a,
      "hyper_shape"_a, "slope"_a, "offset"_a, "pinned_columns"_a.noconvert(), "pinned_shapes"_a.noconvert(), "most"_a,
      "threshold"_a, "exact"_a, "shape"_a.noconvert(), "rate_rows"_a.noconvert(), "exp_log"_a.noconvert(),
      "log_scale"_a.noconvert(), "hyper_rate"_a.noconvert(), "column_sums"_a.noconvert(), "threads"_a, release);

  m.def(
      "log_rate_sum_with_neighbours",
      [](const Counts& counts,  // (M, N)
         const Had& had,
         const Padded<T>& beta,     // (M, K)
         const Padded<T>& theta,    // (N, K)
         const Padded<T>& weights,  // (M, L)
         int64_t threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t m_ = beta.shape(0), n = theta.shape(0), k = checked_factors(theta.shape(1));
        const int64_t l = weights.shape(1);
        check_sides(tiles, m_, n, int64_t(beta.shape(1)), k);
        check_neighbours(tiles, had, counts.nonzeros(), int64_t(weights.shape(0)), l);
        return kernels<T>().log_rate_sum_with_neighbours(
            tiles, had.view(), aligned<const T>("beta", beta, m_, k), aligned<const T>("theta", theta, n, k),
            aligned<const T>("weights", weights, m_, l), nullptr, nullptr, nullptr, checked_threads(threads));
      },
      "counts"_a, "had"_a, "beta"_a.noconvert(), "theta"_a.noconvert(), "weights"_a.noconvert(), "threads"_a, release);

  m.def(
      "log_normalizer_sum_with_neighbours",
      [](const Counts& counts,  // (M, N)
         const Had& had, const Side<T>& items, const Side<T>& users, const Side<T>& weights, int64_t threads) {
        const TilesView<T> tiles = counts.view();
        check_sides(tiles, items.n(), users.n(), items.k(), users.k());
        check_neighbours(tiles, had, counts.nonzeros(), weights.n(), weights.k());
        check_temperatures(items, users, weights);
        const Factor<T>&item = items.factor(), &user = users.factor(), &weight = weights.factor();
        return kernels<T>().log_rate_sum_with_neighbours(tiles, had.view(), item.exp_log, user.exp_log, weight.exp_log,
                                                         &item, &user, &weight, checked_threads(threads));
      },
      "counts"_a, "had"_a, "items"_a, "users"_a, "weights"_a, "threads"_a, release);

  m.def(
      "neighbour_rates",
      [](const Line<const int64_t>& indptr,    // (N + 1,)
         const Line<const int64_t>& indices,   // (Z',)
         int64_t j,                            // J
         const Table<const int32_t>& sources,  // (M, L)
         const Padded<T>& weights,             // (M, L)
         const Line<const int64_t>& rows,      // (pairs,)
         const Line<const int64_t>& columns,   // (pairs,)
         const Line<T>& out,                   // (pairs,)
         int64_t threads) {
        const int64_t pairs = rows.shape(0), m_ = weights.shape(0), l = checked_factors(weights.shape(1));
        const int64_t n = int64_t(indptr.shape(0)) - 1;
        check_length("columns", columns.shape(0), pairs);
        check_length("out", out.shape(0), pairs);
        check_length("a row of sources", sources.shape(1), l);
        if (n < 0 || j < 0 || j > INT32_MAX ||
            !is_csr(n, j, int64_t(indices.shape(0)), numbers_of(indptr), numbers_of(indices)))
          refuse("items of users are not CSR rows of sorted, distinct items within the shape");
        const int32_t* source = checked_sources(sources, m_, j);
        const int64_t *row = numbers_of(rows), *column = numbers_of(columns);
        check_pairs(pairs, row, column, n, m_);
        kernels<T>().neighbour_rates(indptr.data(), indices.data(), j, source,
                                     aligned<const T>("weights", weights, m_, l), pairs, row, column, numbers_of(out),
                                     checked_threads(threads));
      },
      "indptr"_a.noconvert(), "indices"_a.noconvert(), "j"_a, "sources"_a.noconvert(), "weights"_a.noconvert(),
      "rows"_a.noconvert(), "columns"_a.noconvert(), "out"_a.noconvert(), "threads"_a, release);

  m.def(
      "log_rate_sum",
      [](const Counts& counts,
         const Padded<T>& theta,  // (N, K)
         const Padded<T>& beta,   // (M, K)
         int64_t threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t n = theta.shape(0), m_ = beta.shape(0), k = checked_factors(theta.shape(1));
        check_sides(tiles, n, m_, k, int64_t(beta.shape(1)));
        return kernels<T>().log_rate_sum(tiles, aligned<const T>("theta", theta, n, k),
                                         aligned<const T>("beta", beta, m_, k), nullptr, nullptr,
                                         checked_threads(threads));
      },
      "counts"_a, "theta"_a.noconvert(), "beta"_a.noconvert(), "threads"_a, release);

  m.def(
      "log_normalizer_sum",
      [](const Counts& counts, const Side<T>& users, const Side<T>& items, int64_t threads) {
        const TilesView<T> tiles = counts.view();
        check_sides(tiles, users.n(), items.n(), users.k(), items.k());
        const Factor<T>&user = users.factor(), &item = items.factor();
        return kernels<T>().log_rate_sum(tiles, user.exp_log, item.exp_log, &user, &item, checked_threads(threads));
      },
      "counts"_a, "users"_a, "items"_a, "threads"_a, release);

  m.def(
      "log_count_products",
      [](const Counts& counts,                           // (N, M)
         const Padded<T>& x,                             // (M, K), or (N, K)
         const Line<const double>& scale, bool of_rows,  // (N,), or (M,)
         const Padded<T>& out,                           // (N, K), or (M, K)
         int64_t threads) {
        const TilesView<T> tiles = counts.view();
        const int64_t own = of_rows ? tiles.rows : tiles.columns, other = of_rows ? tiles.columns : tiles.rows;
        const int64_t k = checked_factors(x.shape(1));
        check_length("scale", scale.shape(0), own);
        kernels<T>().log_count_products(tiles, aligned<const T>("x", x, other, k), numbers_of(scale), of_rows,
                                        aligned<T>("out", out, own, k), checked_threads(threads));
      },
      "counts"_a, "x"_a.noconvert(), "scale"_a.noconvert(), "of_rows"_a, "out"_a.noconvert(), "threads"_a, release);

  m.def(
      "log_factorial_sum",
      [](const Counts& counts, int64_t threads) {
        return kernels<T>().log_factorial_sum(counts.view(), checked_threads(threads));
      },
      "counts"_a, "threads"_a, release);

  m.def(
      "predict_pairs",
      [](const Rows<T>& theta,                // (N, K)
         const Rows<T>& beta,                 // (M, K)
         const Line<const int64_t>& rows,     // (pairs,)
         const Line<const int64_t>& columns,  // (pairs,)
         const Line<T>& out,                  // (pairs,)
         int64_t threads) {
        const int64_t pairs = rows.shape(0), n = theta.shape(0), m_ = beta.shape(0);
        check_rows(theta, beta);
        check_length("columns", columns.shape(0), pairs);
        check_length("out", out.shape(0), pairs);
        const int64_t *row = numbers_of(rows), *column = numbers_of(columns);
        check_pairs(pairs, row, column, n, m_);
        kernels<T>().predict_pairs(rows_of(theta), rows_of(beta), pairs, row, column, numbers_of(out),
                                   checked_threads(threads));
      },
      "theta"_a.noconvert(), "beta"_a.noconvert(), "rows"_a.noconvert(), "columns"_a.noconvert(), "out"_a.noconvert(),
      "threads"_a, release);

  m.def(
      "byte_bounds",
      [](const Rows<T>& beta,         // (M, K)
         const Line<uint8_t>& bytes,  // as in ByteBounds
         const Line<double>& scale,   // (K,)
         int64_t threads) {
        const int team = checked_threads(threads);
        check_rows(beta, beta);
        check_bounds(beta.shape(0), beta.shape(1), bytes.shape(0), scale.shape(0));
        return kernels<T>().byte_bounds(rows_of(beta), bytes.data(), numbers_of(scale), team);
      },
      "beta"_a.noconvert(), "bytes"_a.noconvert(), "scale"_a.noconvert(), "threads"_a, release);

  m.def(
      "top_items",
      [](const Rows<T>& theta,                                  // (N, K)
         const Rows<T>& beta,                                   // (M, K)
         const std::optional<Line<const uint8_t>>& bounds,      // of beta as in ByteBounds, or none
         const std::optional<Line<const double>>& scale,        // (K,), or none
         const std::optional<Line<const int64_t>>& indptr,      // (N + 1,), or none
         const std::optional<Line<const int64_t>>& indices,     // (excluded,), or none
         const std::optional<Line<const int64_t>>& had_indptr,  // (N + 1,), or none
         const std::optional<Line<const int64_t>>& had,         // (Z',), or none
         const std::optional<Line<const int64_t>>& starts,      // (J + 1,), or none
         const std::optional<Line<const int32_t>>& targets,     // (P,), or none
         const std::optional<Line<const T>>& weights,           // (P,), or none
         const Table<int64_t>& columns,                         // (N, length)
         const Table<T>& scores,                                // (N, length)
         int64_t threads) {
        const int64_t n = theta.shape(0), m_ = beta.shape(0), length = scores.shape(1);
        const int team = checked_threads(threads);
        check_rows(theta, beta);
        check_length("columns", columns.shape(0), n);
        check_length("scores", scores.shape(0), n);
        check_length("a row of columns", columns.shape(1), length);
        if (length < 1) refuse("a list of the best items must have a length of 1 or more");
        if (bounds.has_value() != scale.has_value()) refuse("bounds need bytes and scale, or neither");
        if (bounds) check_bounds(m_, beta.shape(1), bounds->shape(0), scale->shape(0));
        const ByteBounds of_beta{bounds ? bounds->data() : nullptr, bounds ? numbers_of(*scale) : nullptr};
        if (indptr.has_value() != indices.has_value() ||
            (indptr && (int64_t(indptr->shape(0)) != n + 1 ||
                        !is_csr(n, m_, int64_t(indices->shape(0)), numbers_of(*indptr), numbers_of(*indices)))))
          refuse("excluded items are not CSR rows of sorted, distinct items within the shape");
        const Excluded excluded{indptr ? indptr->data() : nullptr, indptr ? indices->data() : nullptr};
        if (had_indptr.has_value() != had.has_value() || had.has_value() != starts.has_value() ||
            had.has_value() != targets.has_value() || had.has_value() != weights.has_value())
          refuse("scores of items need all five arrays, or none");
        ItemScores<T> added{};
        if (had) {
          check_length("had_indptr", had_indptr->shape(0), n + 1);
          check_length("weights", weights->shape(0), targets->shape(0));
          added = {numbers_of(*had_indptr), numbers_of(*had), numbers_of(*starts), numbers_of(*targets),
                   numbers_of(*weights)};
          check_item_scores(added, n, m_, int64_t(starts->shape(0)) - 1, int64_t(had->shape(0)),
                            int64_t(targets->shape(0)));
        }
        if (n == 0) return;
        kernels<T>().top_items(rows_of(theta), rows_of(beta), of_beta, excluded, added, length, numbers_of(columns),
                               numbers_of(scores), team);
      },
      "theta"_a.noconvert(), "beta"_a.noconvert(), "bounds"_a.noconvert().none(), "scale"_a.noconvert().none(),
      "indptr"_a.noconvert().none(), "indices"_a.noconvert().none(), "had_indptr"_a.noconvert().none(),
      "had"_a.noconvert().none(), "starts"_a.noconvert().none(), "targets"_a.noconvert().none(),
      "weights"_a.noconvert().none(), "columns"_a.noconvert(), "scores"_a.noconvert(), "threads"_a, release);

  m.def(
      "distance",
      [](const Padded<T>& a,  // (N, K)
         const Padded<T>& b,  // (N, K)
         int64_t threads) {
        const int64_t n = a.shape(0), k = checked_factors(a.shape(1));
        return kernels<T>().distance(aligned<const T>("a", a, n, k), aligned<const T>("b", b, n, k),
                                     checked_threads(threads));
      },
      "a"_a.noconvert(), "b"_a.noconvert(), "threads"_a, release);
}

}  // namespace
}  // namespace hpf

NB_MODULE(_openmp, m) {
  nb::class_<hpf::Had>(m, "Had");
  hpf::define<float>(m, "Counts32", "Side32");
  hpf::define<double>(m, "Counts64", "Side64");
  m.def("choose_neighbours", &hpf::choose_neighbours, "user_indptr"_a.noconvert(), "user_indices"_a.noconvert(),
        "item_indptr"_a.noconvert(), "item_indices"_a.noconvert(), "begin"_a, "end"_a, "chosen"_a.noconvert(),
        "threads"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("levels", &hpf::levels, "Instruction sets that this processor has, the best first.");
  m.def("level", [] { return std::string(hpf::active.name); }, "The instruction set in use.");
  m.def("use_level", &hpf::use_level, "level"_a, "Use another instruction set, for tests and comparisons.");
  m.def("fail_allocation", &hpf::fail_allocation, "n"_a,
        "For tests: let the n-th allocation from now on fail, the next one being number 0; none if n is negative.");
  m.def("pieces_in_use", &hpf::pieces_in_use, "For tests: pieces of memory that were taken and not given back.");
  m.attr("most_threads") = hpf::most_threads();
#if defined(_OPENMP)
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
}
