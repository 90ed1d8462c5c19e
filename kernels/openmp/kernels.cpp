// Compiled once for every instruction set, with HPF_ISA as its namespace.
#include "kernels.h"

#include "nonzero.h"
#include "scratch.h"
#include "simd.h"
#include "top_items.h"

namespace hpf {
namespace HPF_ISA {
namespace {

constexpr int64_t rows_in_chunk = 256;  // a unit of work, and of summation in a fixed order
constexpr int piece = 64;               // nonzeros of a row whose factors stay in L1 between two uses

// Threads that a sweep over n rows of k numbers earns: waking one takes as long as some thousand numbers.
int threads_for(int64_t n, int64_t k, int threads) {
  const int64_t earned = 1 + n * k / 16384;
  return earned < threads ? static_cast<int>(earned) : threads;
}

// Row blocks were made for as many threads as the nonzeros earn.
template <class T>
inline int threads_for_tiles(const TilesView<T>& tiles, int threads) {
  return tiles.row_blocks < threads ? static_cast<int>(tiles.row_blocks) : threads;
}

// Rows of double that special functions run over come in groups of eight, the last filled up with
// numbers that do no harm: a remainder of two would take as long as a whole vector.
constexpr int64_t group = 8;

template <int64_t Group = group>
int64_t whole_groups(int64_t k) {
  return (k + Group - 1) / Group * Group;
}

template <class T>
inline void row_as_double(const T* row, int64_t k, double* out) {
  for (int64_t j = 0; j < k; ++j) out[j] = double(row[j]);
  for (int64_t j = k; j < whole_groups(k); ++j) out[j] = 1.0;
}

// The rates of row u.
template <class T>
inline void row_rates(Rates<T> rates, int64_t u, int64_t k, int64_t stride, double* out) {
  if (rates.matrix) {
    const T* row = rates.matrix + u * stride;
    for (int64_t j = 0; j < k; ++j) out[j] = double(row[j]) + rates.columns[j];
  } else {
    const double row = rates.rows[u];
    for (int64_t j = 0; j < k; ++j) out[j] = row + rates.columns[j];
  }
  for (int64_t j = k; j < whole_groups(k); ++j) out[j] = 1.0;
}

// E[ln θ] of a row.
inline void row_expected_log(const double* __restrict shape, const double* __restrict rate, int64_t k,
                             double* __restrict out) {
  for (int64_t first = 0; first < k; first += group)
#pragma omp simd
    for (int64_t j = first; j < first + group; ++j) out[j] = expected_log(shape[j], rate[j]);
}

// e^(x − shift) of a row with all x ≤ shift.
inline void row_exp(const double* __restrict x, double shift, int64_t k, double* __restrict out) {
  for (int64_t first = 0; first < k; first += group)
#pragma omp simd
    for (int64_t j = first; j < first + group; ++j) out[j] = exp_nonpositive(x[j] - shift);
}

// The expected log of a row (of any matrix), with a buffer of two more rows.
template <class T>
inline void expected_log_of(const Factor<T>& factor, int64_t u, int64_t k, int64_t stride, double* buffer,
                            double* out) {
  double *shape = buffer, *rate = buffer + whole_groups(k);
  row_as_double(factor.shape + u * stride, k, shape);
  row_rates(factor.rates, u, k, stride, rate);
  row_expected_log(shape, rate, k, out);
}

inline double maximum(const double* v, int64_t k) {
  double best = v[0];
#pragma omp simd reduction(max : best)
  for (int64_t j = 1; j < k; ++j) best = v[j] > best ? v[j] : best;
  return best;
}

// The sum and the maximum of a group of numbers, halved until one is left; in place.  (One after
// the other they would be a tenth of gamma_update at k=30.)
template <int64_t Group>
inline double sum_of(double* v) {
  for (int64_t half = Group / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

template <int64_t Group>
inline double maximum_of(double* v) {
  for (int64_t half = Group / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
  return v[0];
}

// -- the gamma posteriors ------------------------------------------------------------------------

// Pads a row for gamma_moments: its exp E[ln] is zero, its mean adds nothing.
constexpr double next_to_nothing = 1e-290;
// Where the largest exp E[ln θ] of a row is below this, others may have underflowed that count beside it.
constexpr double tiny_row = 1e-150;

template <class T, int64_t Group>
void gamma_update_by(int64_t n, int64_t k, int64_t stride, T* shape, double prior_shape, Rates<T> rates, T* exp_log,
                     double* log_scale, double* row_sums, double* column_sums, int threads) {
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
        T *s = shape + u * stride, *out = exp_log + u * stride;
        // Rates of rank one are summed on the way; a matrix of them, which start values have, is laid out before.
        if (rates.matrix) row_rates(rates, u, k, stride, rate);
        const double row_rate = rates.matrix ? 0.0 : rates.rows[u];
        const double* rest = rates.matrix ? rate : columns;
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
        row_as_double(shape + u * stride, k, wide);
        row_rates(rates, u, k, stride, rate);
        row_expected_log(wide, rate, k, log_mean);
        log_scale[u] = maximum(log_mean, k);
        row_exp(log_mean, log_scale[u], k, exp_logs);
        for (int64_t j = 0; j < k; ++j) exp_log[u * stride + j] = T(exp_logs[j]);
      }
    }
  }
  for (int64_t j = 0; j < k; ++j) column_sums[j] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < k; ++j) column_sums[j] += partial.data[chunk * row + j];
}

template <class T>
void gamma_update(int64_t n, int64_t k, int64_t stride, T* shape, double prior_shape, Rates<T> rates, T* exp_log,
                  double* log_scale, double* row_sums, double* column_sums, int threads) {
  const auto update = sizeof(T) == 4 && k > group ? gamma_update_by<T, 2 * group> : gamma_update_by<T, group>;
  update(n, k, stride, shape, prior_shape, rates, exp_log, log_scale, row_sums, column_sums, threads);
}

template <class T>
void mean(int64_t n, int64_t k, int64_t stride, const T* shape, Rates<T> rates, T* out, int threads) {
  const int team = threads_for(n, k, threads);
  Scratch<double> memory(whole_groups(k), team);
#pragma omp parallel num_threads(team)
  {
    double* rate = memory.share();
#pragma omp for schedule(static)
    for (int64_t u = 0; u < n; ++u) {
      row_rates(rates, u, k, stride, rate);
      for (int64_t j = 0; j < k; ++j) out[u * stride + j] = T(double(shape[u * stride + j]) / rate[j]);
      for (int64_t j = k; j < stride; ++j) out[u * stride + j] = 0;
    }
  }
}

template <class T>
double gamma_entropy(int64_t n, int64_t k, int64_t stride, const T* shape, Rates<T> rates, double prior_shape,
                     double* row_sums, int threads) {
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
        row_as_double(shape + u * stride, k, wide);
        row_rates(rates, u, k, stride, rate);
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
double distance(int64_t n, int64_t k, int64_t stride, const T* a, const T* b, int threads) {
  const int64_t chunks = (n + rows_in_chunk - 1) / rows_in_chunk;
  Scratch<double> partial(chunks);
#pragma omp parallel for num_threads(threads_for(n, k, threads)) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    double total = 0;
    for (int64_t u = chunk * rows_in_chunk, end = minimum(n, u + rows_in_chunk); u < end; ++u)
#pragma omp simd reduction(+ : total)
      for (int64_t j = 0; j < k; ++j) {
        const double d = double(a[u * stride + j]) - double(b[u * stride + j]);
        total += d * d;
      }
    partial.data[chunk] = total;
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial.data[chunk];
  return __builtin_sqrt(total);
}

// -- the nonzeros --------------------------------------------------------------------------------

// Rows of a tile are short and its columns at random places, so what comes next is asked for in time: the rows
// of this many vectors' nonzeros ahead, and those of some segments ahead.  (Always inline: as calls they cost
// what they gain.)
constexpr int vectors_ahead = 64;
static_assert(vectors_ahead <= nonzeros_beyond);
constexpr int segments_ahead = 4;
static_assert(segments_ahead <= segments_beyond);

template <class T, bool Write>
HPF_FN void prefetch_row(const T* row, int vectors) {
  for (int j = 0; j < vectors; ++j) __builtin_prefetch(row + j * Simd<T>::lanes, Write, 3);
}

// Asks for the rows of `count` nonzeros that come `ahead` after these.
template <class T, bool Items>
HPF_FN void prefetch_nonzeros(const T* v, const T* item_sums, int64_t stride, const int32_t* column, int64_t count,
                              int vectors) {
  const int ahead = vectors_ahead / vectors;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = column[i + ahead] * stride;
    prefetch_row<T, false>(v + at, vectors);
    if (Items) prefetch_row<T, true>(item_sums + at, vectors);
  }
}

// u·v_z for up to `piece` nonzeros of one row.  NV vectors a row; 0 means `vectors` of them.  With Ahead, rows of
// nonzeros to come are asked for.
// Every product of two rows in this file starts from zero: a first term that is not a sum could be rounded one way
// here and another there, and two passes would not agree which nonzeros underflow.
template <class T, int NV, bool Ahead = false>
inline void products(const T* u, const T* v, int64_t given_stride, const int32_t* column, int count, int vectors,
                     T* out) {
  constexpr int lanes = Simd<T>::lanes;
  const int nv = NV ? NV : vectors;
  const int64_t stride = NV ? NV * lanes : given_stride;
  int z = 0;
  for (; z + 4 <= count; z += 4) {
    if (Ahead) prefetch_nonzeros<T, false>(v, static_cast<T*>(nullptr), stride, column + z, 4, nv);
    const T *v0 = v + column[z] * stride, *v1 = v + column[z + 1] * stride;
    const T *v2 = v + column[z + 2] * stride, *v3 = v + column[z + 3] * stride;
    Vector<T> a = {}, b = {}, c = {}, d = {};
    for (int j = 0; j < nv; ++j) {
      const Vector<T> w = load(u + j * lanes);
      a += w * load(v0 + j * lanes);
      b += w * load(v1 + j * lanes);
      c += w * load(v2 + j * lanes);
      d += w * load(v3 + j * lanes);
    }
    sum_lanes_of_four<T>(a, b, c, d, out + z);
  }
  if (z < count) {  // the last one to three, the last repeated
    if (Ahead) prefetch_nonzeros<T, false>(v, static_cast<T*>(nullptr), stride, column + z, count - z, nv);
    const T* rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = v + column[z + i < count ? z + i : count - 1] * stride;
    Vector<T> sums[4] = {};
    for (int j = 0; j < nv; ++j)
      for (int i = 0; i < 4; ++i) sums[i] += load(u + j * lanes) * load(rows[i] + j * lanes);
    sum_lanes_of_four<T>(sums[0], sums[1], sums[2], sums[3], out + z);  // `out` has room for the repeats
  }
}

// Adds w_z v_z to `row` and w_z u to the items' sums, NV vectors from `offset` on.
template <class T, int NV, bool Users, bool Items>
inline void spread(const T* u, const T* v, int64_t stride, const int32_t* column, int count, const T* weight, T* row,
                   T* item_sums) {
  constexpr int lanes = Simd<T>::lanes;
  Vector<T> own[NV], sum[NV];
  for (int j = 0; j < NV; ++j) {
    own[j] = load(u + j * lanes);
    if (Users) sum[j] = load(row + j * lanes);
  }
  for (int z = 0; z < count; ++z) {
    const T w = weight[z];
    const T* other = v + column[z] * stride;
    if (Users)
      for (int j = 0; j < NV; ++j) sum[j] += w * load(other + j * lanes);
    if (Items) {
      T* target = item_sums + column[z] * stride;
      for (int j = 0; j < NV; ++j) store(target + j * lanes, load(target + j * lanes) + w * own[j]);
    }
  }
  if (Users)
    for (int j = 0; j < NV; ++j) store(row + j * lanes, sum[j]);
}

constexpr int most_vectors = 8;  // of one row, held in registers

template <class T, bool Users, bool Items>
inline void spread_any(const T* u, const T* v, int64_t stride, const int32_t* column, int count, const T* weight,
                       T* row, T* item_sums, int vectors) {
  constexpr int lanes = Simd<T>::lanes;
  int j = 0;
  for (; j + most_vectors <= vectors; j += most_vectors)
    spread<T, most_vectors, Users, Items>(u + j * lanes, v + j * lanes, stride, column, count, weight, row + j * lanes,
                                          item_sums + j * lanes);
  for (; j + 2 <= vectors; j += 2)
    spread<T, 2, Users, Items>(u + j * lanes, v + j * lanes, stride, column, count, weight, row + j * lanes,
                               item_sums + j * lanes);
  if (j < vectors)
    spread<T, 1, Users, Items>(u + j * lanes, v + j * lanes, stride, column, count, weight, row + j * lanes,
                               item_sums + j * lanes);
}

// Asks for the rows of the segment that comes segments_ahead after this one.
template <class T, bool Users>
HPF_FN void prefetch_segment(const TilesView<T>& tiles, int64_t segment, const T* u, const T* user_sums, int64_t stride,
                             int vectors) {
  const int64_t next = tiles.segment_row[segment + segments_ahead] * stride;
  prefetch_row<T, false>(u + next, vectors);
  if (Users) prefetch_row<T, true>(user_sums + next, vectors);
}

// Rows of up to so many vectors stay in registers, as far as there are any, while four nonzeros are worked on.
constexpr int most_in_registers = 7;

// Count nonzeros of one row, at most four: adds y/(u·v) v to `sum` and y/(u·v) u to the items' sums.
template <class T, int NV, bool Users, bool Items, int Count>
HPF_FN void add_few(const Vector<T>* own, const T* v, const int32_t* column, const T* value, Vector<T>* sum,
                    T* item_sums, FourBits<T>& underflowed) {
  constexpr int lanes = Simd<T>::lanes;
  constexpr int64_t stride = NV * lanes;
  prefetch_nonzeros<T, Items>(v, item_sums, stride, column, Count, NV);
  int64_t at[Count];
  Vector<T> row[Count][NV], product[4];
  Four<T> y = {};
  for (int i = 0; i < Count; ++i) {
    at[i] = column[i] * stride;
    y[i] = value[i];
    for (int j = 0; j < NV; ++j) row[i][j] = load(v + at[i] + j * lanes);
    product[i] = Vector<T>{};
    for (int j = 0; j < NV; ++j) product[i] += own[j] * row[i][j];
  }
  for (int i = Count; i < 4; ++i) product[i] = product[0];  // of those that do not exist, with y = 0
  const Four<T> u_v = lane_sums_of_four<T>(product[0], product[1], product[2], product[3]);
  const FourBits<T> fits = u_v >= tiny_product<T>;
  underflowed |= ~fits;
  Four<T> weight = y / u_v;
  weight = reinterpret_cast<Four<T>>(reinterpret_cast<FourBits<T>>(weight) & fits);
  for (int i = 0; i < Count; ++i) {
    if (Users)
      for (int j = 0; j < NV; ++j) sum[j] += weight[i] * row[i][j];
    if (Items) {
      T* target = item_sums + at[i];
      for (int j = 0; j < NV; ++j) store(target + j * lanes, load(target + j * lanes) + weight[i] * own[j]);
    }
  }
}

// One tile with rows of few vectors; as allocate_tile.
template <class T, int NV, bool Users, bool Items>
int64_t allocate_short_rows(TilesView<T> tiles, int64_t tile, const T* u, const T* v, T* user_sums, T* item_sums) {
  constexpr int lanes = Simd<T>::lanes;
  constexpr int64_t stride = NV * lanes;
  FourBits<T> underflowed = {};
  int64_t z = tiles.tiles[tile].first_nonzero;
  for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment; ++segment) {
    const int64_t row = tiles.segment_row[segment], end = z + tiles.segment_size[segment];
    prefetch_segment<T, Users>(tiles, segment, u, user_sums, stride, NV);
    Vector<T> own[NV], sum[NV];
    for (int j = 0; j < NV; ++j) {
      own[j] = load(u + row * stride + j * lanes);
      sum[j] = Vector<T>{};
    }
    for (; z + 4 <= end; z += 4)
      add_few<T, NV, Users, Items, 4>(own, v, tiles.column + z, tiles.value + z, sum, item_sums, underflowed);
    if (end - z == 1)
      add_few<T, NV, Users, Items, 1>(own, v, tiles.column + z, tiles.value + z, sum, item_sums, underflowed);
    else if (end - z == 2)
      add_few<T, NV, Users, Items, 2>(own, v, tiles.column + z, tiles.value + z, sum, item_sums, underflowed);
    else if (end - z == 3)
      add_few<T, NV, Users, Items, 3>(own, v, tiles.column + z, tiles.value + z, sum, item_sums, underflowed);
    z = end;
    if (Users) {
      T* total = user_sums + row * stride;
      for (int j = 0; j < NV; ++j) store(total + j * lanes, load(total + j * lanes) + own[j] * sum[j]);
    }
  }
  return (underflowed[0] | underflowed[1] | underflowed[2] | underflowed[3]) != 0;
}

// One tile: Σ w v to the users' sums (times u, so that they are complete), Σ w u to the items'
// (still to be multiplied by v).  Returns how many nonzeros were left to the log-sum-exp.  Works in `weight`
// (piece + 4,) and `row_sum` (stride,).
template <class T, int NV, bool Users, bool Items>
int64_t allocate_tile(TilesView<T> tiles, int64_t tile, int64_t stride, const T* u, const T* v, T* user_sums,
                      T* item_sums, T* weight, T* row_sum) {
  if constexpr (NV != 0 && NV <= most_in_registers)
    return allocate_short_rows<T, NV, Users, Items>(tiles, tile, u, v, user_sums, item_sums);
  constexpr int lanes = Simd<T>::lanes;
  const int vectors = static_cast<int>(stride / lanes);
  int64_t left = 0, z = tiles.tiles[tile].first_nonzero;
  for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment; ++segment) {
    const int64_t row = tiles.segment_row[segment];
    const T* own = u + row * stride;
    prefetch_segment<T, Users>(tiles, segment, u, user_sums, stride, vectors);
    if (Users)
      for (int j = 0; j < vectors; ++j) store(row_sum + j * lanes, Vector<T>{});
    for (int64_t end = z + tiles.segment_size[segment]; z < end;) {
      const int count = static_cast<int>(minimum(piece, end - z));
      const int32_t* column = tiles.column + z;
      const T* y = tiles.value + z;
      if (vectors <= vectors_ahead) prefetch_nonzeros<T, Items>(v, item_sums, stride, column, count, vectors);
      products<T, NV>(own, v, stride, column, count, vectors, weight);
      int underflows = 0;
#pragma omp simd reduction(+ : underflows)
      for (int i = 0; i < count; ++i) {
        const T product = weight[i];
        const bool under = !(product >= tiny_product<T>);
        underflows += under;
        weight[i] = under ? T(0) : y[i] / product;
      }
      left += underflows;
      if constexpr (NV != 0)
        spread<T, NV, Users, Items>(own, v, stride, column, count, weight, row_sum, item_sums);
      else
        spread_any<T, Users, Items>(own, v, stride, column, count, weight, row_sum, item_sums, vectors);
      z += count;
    }
    if (Users) {
      T* total = user_sums + row * stride;
      for (int j = 0; j < vectors; ++j)
        store(total + j * lanes, load(total + j * lanes) + load(own + j * lanes) * load(row_sum + j * lanes));
    }
  }
  return left;
}

// φ of one pair by the max-shifted log-sum-exp, in double: e^(x − top) of x = E[ln θ] + E[ln β], with
// their sum.  `buffer` takes three rows of whole groups.
struct ShiftedSum {
  double top, sum;
};

template <class T>
ShiftedSum shifted_phi(const double* user_log, const Factor<T>& items, int64_t column, int64_t k, int64_t stride,
                       double* buffer, double* phi) {
  const int64_t width = whole_groups(k);
  double* logs = buffer + 2 * width;
  expected_log_of(items, column, k, stride, buffer, logs);
  for (int64_t j = 0; j < width; ++j) logs[j] += user_log[j];
  const double top = maximum(logs, k);
  row_exp(logs, top, k, phi);
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < k; ++j) sum += phi[j];
  return {top, sum};
}

constexpr int64_t exact_rows = 5;  // rows of whole groups that the exact path works in

// The nonzeros of one tile that need it, or all, by the max-shifted log-sum-exp in double.
template <class T>
void allocate_tile_exactly(TilesView<T> tiles, int64_t tile, int64_t k, int64_t stride, Factor<T> users,
                           Factor<T> items, T* user_sums, T* item_sums, bool all, double* scratch, T* product) {
  const int vectors = static_cast<int>(stride / Simd<T>::lanes);
  const int64_t width = whole_groups(k);
  double *buffer = scratch, *user_log = buffer + 3 * width, *phi = user_log + width;
  int64_t z = tiles.tiles[tile].first_nonzero;
  for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment; ++segment) {
    const int64_t row = tiles.segment_row[segment];
    bool known = false;
    for (int64_t end = z + tiles.segment_size[segment]; z < end; ++z) {
      const int64_t column = tiles.column[z];
      if (!all) {
        products<T, 0>(users.exp_log + row * stride, items.exp_log, stride, tiles.column + z, 1, vectors, product);
        if (product[0] >= tiny_product<T>) continue;
      }
      if (!known) expected_log_of(users, row, k, stride, buffer, user_log);
      known = true;
      const double share = double(tiles.value[z]) / shifted_phi(user_log, items, column, k, stride, buffer, phi).sum;
      if (user_sums)
        for (int64_t j = 0; j < k; ++j) user_sums[row * stride + j] += T(share * phi[j]);
      if (item_sums)
        for (int64_t j = 0; j < k; ++j) item_sums[column * stride + j] += T(share * phi[j]);
    }
  }
}

// The column block that row block r meets in a step.
template <class T>
inline int64_t column_block(TilesView<T> tiles, int64_t r, int64_t step) {
  return (r * (tiles.column_blocks / tiles.row_blocks) + step) % tiles.column_blocks;
}

// Runs `body(tile, column block, step)` over all tiles.  A step is a set of tiles that
// share neither rows nor columns, and ends with a barrier.
template <class T, class Body>
inline void in_steps(TilesView<T> tiles, Body body) {
  for (int64_t step = 0; step < tiles.column_blocks; ++step) {
#pragma omp for schedule(static, 1)
    for (int64_t r = 0; r < tiles.row_blocks; ++r) {
      const int64_t c = column_block(tiles, r, step);
      body(r * tiles.column_blocks + c, c, step);
    }
  }
}

// The step in which a row block meets a column block.
template <class T>
inline int64_t step_of(TilesView<T> tiles, int64_t r, int64_t c) {
  const int64_t offset = column_block(tiles, r, 0);
  return c >= offset ? c - offset : c - offset + tiles.column_blocks;
}

template <class T, int NV, bool Users, bool Items>
void allocate_with(TilesView<T> tiles, int64_t k, int64_t stride, Factor<T> users, Factor<T> items, T* user_sums,
                   T* item_sums, bool exact, int threads) {
  const int64_t tile_count = tiles.row_blocks * tiles.column_blocks;
  const int team = threads_for_tiles(tiles, threads);
  Scratch<int64_t> left(tile_count);
  Scratch<T> weights(piece + 4, team), row_sums(stride, team);
  Scratch<double> logs(exact_rows * whole_groups(k), team);
  int64_t total_left = 0;
#pragma omp parallel num_threads(team)
  {
    if (Users) {
#pragma omp for schedule(static, 1)
      for (int64_t r = 0; r < tiles.row_blocks; ++r)
        __builtin_memset(user_sums + tiles.row_start[r] * stride, 0,
                         (tiles.row_start[r + 1] - tiles.row_start[r]) * stride * sizeof(T));
    }
    T *weight = weights.share(), *row_sum = row_sums.share();
    in_steps(tiles, [&](int64_t tile, int64_t c, int64_t step) {
      const int64_t begin = tiles.column_start[c] * stride, end = tiles.column_start[c + 1] * stride;
      bool first = true, last = true;
      for (int64_t other = 0; other < tiles.row_blocks; ++other) {
        first &= step_of(tiles, other, c) >= step;
        last &= step_of(tiles, other, c) <= step;
      }
      if (Items && first) __builtin_memset(item_sums + begin, 0, (end - begin) * sizeof(T));
      left.data[tile] = 0;
      if (!exact)
        left.data[tile] = allocate_tile<T, NV, Users, Items>(tiles, tile, stride, users.exp_log, items.exp_log,
                                                             user_sums, item_sums, weight, row_sum);
      if (Items && last)  // while the block is in cache
        for (int64_t j = begin; j < end; j += Simd<T>::lanes)
          store(item_sums + j, load(item_sums + j) * load(items.exp_log + j));
    });
#pragma omp single
    for (int64_t tile = 0; tile < tile_count; ++tile) total_left += left.data[tile];
    if (exact || total_left) {
      in_steps(tiles, [&](int64_t tile, int64_t, int64_t) {
        if (exact || left.data[tile])
          allocate_tile_exactly(tiles, tile, k, stride, users, items, user_sums, item_sums, exact, logs.share(),
                                weight);
      });
    }
  }
}

template <class T, int NV>
void allocate_sides(TilesView<T> tiles, int64_t k, int64_t stride, Factor<T> users, Factor<T> items, T* user_sums,
                    T* item_sums, bool exact, int threads) {
  if (user_sums && item_sums)
    allocate_with<T, NV, true, true>(tiles, k, stride, users, items, user_sums, item_sums, exact, threads);
  else if (user_sums)
    allocate_with<T, NV, true, false>(tiles, k, stride, users, items, user_sums, item_sums, exact, threads);
  else
    allocate_with<T, NV, false, true>(tiles, k, stride, users, items, user_sums, item_sums, exact, threads);
}

template <int N>
struct Vectors {
  static constexpr int count = N;
};

// Calls `body` with the vectors of a row as a constant: up to most_vectors, or 0 for any number.
template <class T, class Body>
inline auto with_vectors(int64_t stride, Body body) {
  switch (stride / Simd<T>::lanes) {
#define HPF_CASE(N) \
  case N:           \
    return body(Vectors<N>{});
    HPF_CASE(1)
    HPF_CASE(2)
    HPF_CASE(3)
    HPF_CASE(4)
    HPF_CASE(5)
    HPF_CASE(6)
    HPF_CASE(7)
    HPF_CASE(8)
#undef HPF_CASE
    default:
      return body(Vectors<0>{});
  }
}

template <class T>
void allocate(TilesView<T> tiles, int64_t k, int64_t stride, Factor<T> users, Factor<T> items, T* user_sums,
              T* item_sums, bool exact, int threads) {
  with_vectors<T>(stride, [&](auto vectors) {
    allocate_sides<T, decltype(vectors)::count>(tiles, k, stride, users, items, user_sums, item_sums, exact, threads);
  });
}

// ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]) for one pair, in double.
template <class T>
double exact_log_rate(int64_t k, int64_t stride, const Factor<T>& users, const Factor<T>& items, int64_t row,
                      int64_t column, double* scratch) {
  const int64_t width = whole_groups(k);
  double *buffer = scratch, *user_log = buffer + 3 * width, *phi = user_log + width;
  expected_log_of(users, row, k, stride, buffer, user_log);
  const ShiftedSum shifted = shifted_phi(user_log, items, column, k, stride, buffer, phi);
  return shifted.top + log_normal(shifted.sum);
}

// ln a·b where the product is below what T holds.
template <class T>
double log_small_product(const T* a, const T* b, int64_t k) {
  double sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += double(a[j]) * (double(b[j]) * rate_lift);
  return log_lifted_rate(sum);
}

constexpr int batch = 256;  // nonzeros of a tile, whatever their rows, whose logarithms are taken together

template <class T, int NV>
double log_rate_sum_with(TilesView<T> tiles, int64_t k, int64_t stride, const T* a, const T* b, const Factor<T>* users,
                         const Factor<T>* items, int threads) {
  const int64_t tile_count = tiles.row_blocks * tiles.column_blocks;
  const int vectors = static_cast<int>(stride / Simd<T>::lanes);
  const int team = threads_for_tiles(tiles, threads);
  Scratch<double> partial(tile_count), log_rates(batch, team), logs(exact_rows * whole_groups(k), team);
  Scratch<T> products_of(batch + 4, team);
  Scratch<int32_t> rows_of(batch, team);
#pragma omp parallel num_threads(team)
  {
    T* product = products_of.share();
    int32_t* row = rows_of.share();
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
          const int64_t u = tiles.segment_row[segment];
          products<T, NV, true>(a + u * stride, b, stride, column + done, count, vectors, product + done);
          for (int i = done; i < done + count; ++i) row[i] = static_cast<int32_t>(u);
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
            log_rate[i] = users ? exact_log_rate(k, stride, *users, *items, row[i], column[i], logs.share())
                                : log_small_product(a + row[i] * stride, b + column[i] * stride, k);
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

template <class T>
double log_rate_sum(TilesView<T> tiles, int64_t k, int64_t stride, const T* a, const T* b, const Factor<T>* users,
                    const Factor<T>* items, int threads) {
  return with_vectors<T>(stride, [&](auto vectors) {
    return log_rate_sum_with<T, decltype(vectors)::count>(tiles, k, stride, a, b, users, items, threads);
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

template <class T>
void predict_pairs(int64_t pairs, int64_t k, const T* theta, int64_t theta_stride, const T* beta, int64_t beta_stride,
                   const int64_t* rows, const int64_t* columns, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (pairs > 10000)
  for (int64_t z = 0; z < pairs; ++z) {
    const T *a = theta + rows[z] * theta_stride, *b = beta + columns[z] * beta_stride;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < k; ++j) sum += a[j] * b[j];
    out[z] = sum;
  }
}

}  // namespace

template <class T>
constexpr Kernels<T> table = {gamma_update<T>,      mean<T>,          gamma_entropy<T>, allocate<T>, log_rate_sum<T>,
                              log_factorial_sum<T>, predict_pairs<T>, top_items<T>,     distance<T>};

extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
const Kernels<float> kernels_float = table<float>;
const Kernels<double> kernels_double = table<double>;

}  // namespace HPF_ISA
}  // namespace hpf
