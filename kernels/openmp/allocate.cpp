// Σ_i y_ui φ_uik of every row and Σ_u y_ui φ_uik of every column, in one pass over the nonzeros.
//
// φ is proportional to exp E[ln θ] · exp E[ln β], so a nonzero's weight is y/(u·v) with these as u and v.  Where that
// product underflows, a second pass takes the log-sum-exp.
#include "allocation.h"
#include "log_sum_exp.h"
#include "operations.h"

namespace hpf {
namespace HPF_ISA {
namespace {

template <class T>
struct Allocation {
  TilesView<T> tiles;
  Factor<T> users, items;
  Matrix<T> user_sums;  // (N, K), or null
  Matrix<T> item_sums;  // (M, K), or null

  // Of all matrices here.
  int64_t stride() const { return users.exp_log.stride; }
};

// Rows of up to so many vectors stay in registers, as far as there are any, while four nonzeros are worked on.
constexpr int most_in_registers = 7;

// Count nonzeros of one row, at most four: adds y/(u·v) v to `sum` and y/(u·v) u to the items' sums.
template <class T, int NV, bool Users, bool Items, int Count>
HPF_FN void add_few(const Vector<T>* own,   // (NV,)
                    const T* v,             // (M, NV * lanes)
                    const int32_t* column,  // (Count,), and nonzeros_beyond more
                    const T* value,         // (Count,)
                    Vector<T>* sum,         // (NV,)
                    T* item_sums,           // (M, NV * lanes), or null without Items
                    FourBits<T>& underflowed) {
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
int64_t allocate_short_rows(const Allocation<T>& work, int64_t tile) {
  constexpr int lanes = Simd<T>::lanes;
  constexpr int64_t stride = NV * lanes;
  const TilesView<T> tiles = work.tiles;
  const T *u = work.users.exp_log.data, *v = work.items.exp_log.data;
  T *user_sums = work.user_sums.data, *item_sums = work.item_sums.data;
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
// (still to be multiplied by v).  Returns how many nonzeros were left to the log-sum-exp.
template <class T, int NV, bool Users, bool Items>
int64_t allocate_tile(const Allocation<T>& work, int64_t tile,
                      T* weight,     // (piece + 4,) to work in
                      T* row_sum) {  // (stride,) to work in
  if constexpr (NV != 0 && NV <= most_in_registers) return allocate_short_rows<T, NV, Users, Items>(work, tile);
  constexpr int lanes = Simd<T>::lanes;
  const TilesView<T> tiles = work.tiles;
  const int64_t stride = work.stride();
  const T *u = work.users.exp_log.data, *v = work.items.exp_log.data;
  T *user_sums = work.user_sums.data, *item_sums = work.item_sums.data;
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
        spread_any<T, Users, Items>(own, v, stride, column, count, weight, row_sum, item_sums);
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

// The nonzeros of one tile that need it, or all, by the max-shifted log-sum-exp in double.
template <class T>
void allocate_tile_exactly(const Allocation<T>& work, int64_t tile, bool all,
                           double* scratch,  // (exact_rows, whole groups) to work in
                           T* product) {     // (4,) to work in
  const TilesView<T> tiles = work.tiles;
  const Factor<T>&users = work.users, &items = work.items;
  const int64_t k = users.shape.k, stride = work.stride(), width = whole_groups(k);
  const int vectors = static_cast<int>(stride / Simd<T>::lanes);
  double *buffer = scratch, *user_log = buffer + 3 * width, *phi = user_log + width;
  int64_t z = tiles.tiles[tile].first_nonzero;
  for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment; ++segment) {
    const int64_t row = tiles.segment_row[segment];
    bool known = false;
    for (int64_t end = z + tiles.segment_size[segment]; z < end; ++z) {
      const int64_t column = tiles.column[z];
      if (!all) {
        products<T, 0>(row_of(users.exp_log, row), items.exp_log.data, stride, tiles.column + z, 1, vectors, product);
        if (product[0] >= tiny_product<T>) continue;
      }
      if (!known) expected_log_of(users, row, buffer, user_log);
      known = true;
      const double share = double(tiles.value[z]) / shifted_phi(user_log, items, column, buffer, phi).sum;
      if (work.user_sums.data) {
        T* sum = row_of(work.user_sums, row);
        for (int64_t j = 0; j < k; ++j) sum[j] += T(share * phi[j]);
      }
      if (work.item_sums.data) {
        T* sum = row_of(work.item_sums, column);
        for (int64_t j = 0; j < k; ++j) sum[j] += T(share * phi[j]);
      }
    }
  }
}

template <class T, int NV, bool Users, bool Items>
void allocate_with(const Allocation<T>& work, bool exact, int threads) {
  const int team = threads_for_tiles(work.tiles, threads);
  Scratch<T> weights(piece + 4, team), row_sums(work.stride(), team);
  Scratch<double> logs(exact_rows * whole_groups(work.users.shape.k), team);
  in_two_passes(
      work.tiles, work.user_sums, Matrix<T>{}, work.item_sums, work.items.exp_log, exact, team,
      [&](int64_t tile) { return allocate_tile<T, NV, Users, Items>(work, tile, weights.share(), row_sums.share()); },
      [&](int64_t tile) { allocate_tile_exactly(work, tile, exact, logs.share(), weights.share()); });
}

template <class T, int NV>
void allocate_sides(const Allocation<T>& work, bool exact, int threads) {
  if (work.user_sums.data && work.item_sums.data)
    allocate_with<T, NV, true, true>(work, exact, threads);
  else if (work.user_sums.data)
    allocate_with<T, NV, true, false>(work, exact, threads);
  else
    allocate_with<T, NV, false, true>(work, exact, threads);
}

}  // namespace

template <class T>
void allocate(TilesView<T> tiles, Factor<T> users, Factor<T> items, Matrix<T> user_sums, Matrix<T> item_sums,
              bool exact, int threads) {
  const Allocation<T> work{tiles, users, items, user_sums, item_sums};
  with_vectors<T>(work.stride(),
                  [&](auto vectors) { allocate_sides<T, decltype(vectors)::count>(work, exact, threads); });
}

template void allocate<float>(TilesView<float>, Factor<float>, Factor<float>, Matrix<float>, Matrix<float>, bool, int);
template void allocate<double>(TilesView<double>, Factor<double>, Factor<double>, Matrix<double>, Matrix<double>, bool,
                               int);

}  // namespace HPF_ISA
}  // namespace hpf
