// Operations of the item-to-item term on the nonzeros: what allocate.cpp, log_rates.cpp and predict.cpp do, with the
// neighbours of items that users have beside the factors.
//
// Rows of the tiles are items, so that an item's weights and their sums stay in L1 while its nonzeros go by.  A
// nonzero's part of each is its row of bits (had.h).
#include "neighbours.h"

#include "allocation.h"
#include "log_sum_exp.h"
#include "operations.h"

namespace hpf {
namespace HPF_ISA {
namespace {

template <class T>
struct Sharing {
  TilesView<T> tiles;  // (M, N)
  HadView had;
  Factor<T> items, users, weights;
  Matrix<T> item_sums;    // (M, K), or null
  Matrix<T> weight_sums;  // (M, L), or null without item_sums
  Matrix<T> user_sums;    // (N, K), or null

  const uint32_t* bits_of(int64_t z) const { return had.bits + z * words_of(had.l); }
};

// What a thread works in, for pieces of an item's nonzeros.
template <class T>
struct Piece {
  T *of_factors, *of_weights;  // (piece + 4,) sums over either, then the count's share over the sum of both
  double* total;               // (piece,) that sum, over the exponential of the larger scale; 0 where it underflows
};

constexpr int piece_room = piece + 64;  // whole cache lines, with room for three numbers more

// One item's weights in a row of whole words.
template <class T>
void copy_weights(Matrix<const T> w, int64_t item, int64_t words, T* out) {  // (words * in_word,)
  const T* own = row_of(w, item);
  for (int64_t l = 0; l < w.stride; ++l) out[l] = own[l];
  for (int64_t l = w.stride; l < words * in_word; ++l) out[l] = 0;
}

// exp(x) and exp(y) over the larger of both.
struct Scales {
  double of_x, of_y;
};
template <class T>
HPF_FN Scales relative_scales(double x, double y) {
  const double d = x - y, smaller = exp_nonpositive<T>(d < 0 ? d : -d);
  return {d < 0 ? smaller : 1.0, d < 0 ? 1.0 : smaller};
}

// What each of `count` nonzeros of an item gives to a unit of either part.  Returns how many underflow, to which it
// gives nothing.  One function, because both passes have to agree on which these are.
template <class T>
__attribute__((noinline)) int shares_of(const Sharing<T>& work, int64_t item, int64_t z, int count,
                                        const T* w,  // (words * in_word,) of the item
                                        Piece<T> out) {
  const int64_t stride = work.items.exp_log.stride;
  const int vectors = static_cast<int>(stride / Simd<T>::lanes);
  const int32_t* user = work.tiles.column + z;
  const T* y = work.tiles.value + z;
  products<T, 0>(row_of(work.items.exp_log, item), work.users.exp_log.data, stride, user, count, vectors,
                 out.of_factors);
  sums_over_had<T>(w, work.bits_of(z), words_of(work.had.l), count, out.of_weights);
  const double log_item = work.items.log_scale[item], log_weights = work.weights.log_scale[item];
  const double* log_user = work.users.log_scale;
  int underflows = 0;
#pragma omp simd reduction(+ : underflows)
  for (int i = 0; i < count; ++i) {
    const Scales scales = relative_scales<T>(log_user[user[i]] + log_item, log_weights);
    const double total = scales.of_x * double(out.of_factors[i]) + scales.of_y * double(out.of_weights[i]);
    const bool under = !(total >= double(tiny_product<T>));
    const double ratio = under ? 0.0 : double(y[i]) / total;
    underflows += under;
    out.total[i] = under ? 0.0 : total;
    out.of_factors[i] = T(ratio * scales.of_x);
    out.of_weights[i] = T(ratio * scales.of_y);
  }
  return underflows;
}

// One tile; returns how many nonzeros were left to the log-sum-exp.
template <class T, bool Items, bool Users>
int64_t share_tile(const Sharing<T>& work, int64_t tile, Piece<T> parts,
                   T* memory) {  // (stride + 2 * words * in_word,) to work in
  constexpr int lanes = Simd<T>::lanes;
  const TilesView<T> tiles = work.tiles;
  const int64_t stride = work.items.exp_log.stride, words = words_of(work.had.l);
  const T *items = work.items.exp_log.data, *users = work.users.exp_log.data;
  T* user_sums = work.user_sums.data;
  const int vectors = static_cast<int>(stride / lanes);
  T *row_sum = memory, *w = row_sum + stride, *weight_sum = w + words * in_word;
  int64_t left = 0, z = tiles.tiles[tile].first_nonzero;
  for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment; ++segment) {
    const int64_t item = tiles.segment_row[segment];
    const T* own = items + item * stride;
    copy_weights(work.weights.exp_log, item, words, w);
    if (Items) {
      for (int j = 0; j < vectors; ++j) store(row_sum + j * lanes, Vector<T>{});
      for (int64_t l = 0; l < words * in_word; l += lanes) store(weight_sum + l, Vector<T>{});
    }
    for (int64_t end = z + tiles.segment_size[segment]; z < end;) {
      const int count = static_cast<int>(minimum(piece, end - z));
      const int32_t* column = tiles.column + z;
      if (vectors <= vectors_ahead) prefetch_nonzeros<T, Users>(users, user_sums, stride, column, count, vectors);
      left += shares_of(work, item, z, count, w, parts);
      spread_any<T, Items, Users>(own, users, stride, column, count, parts.of_factors, row_sum, user_sums);
      if (Items) spread_over_had<T>(work.bits_of(z), words, count, parts.of_weights, weight_sum);
      z += count;
    }
    if (Items) {
      T *total = row_of(work.item_sums, item), *weights_total = row_of(work.weight_sums, item);
      for (int j = 0; j < vectors; ++j)
        store(total + j * lanes, load(total + j * lanes) + load(own + j * lanes) * load(row_sum + j * lanes));
      for (int64_t l = 0; l < work.weight_sums.stride; l += lanes)
        store(weights_total + l, load(weights_total + l) + load(w + l) * load(weight_sum + l));
    }
  }
  return left;
}

// E[ln w]/T of an item's neighbours to `out` (whole groups of L,), with a `buffer` of two more such rows, and of its
// factors to the row (whole groups of K,) behind.
template <class T>
struct ItemLogs {
  double *weights, *factors, *buffer, *phi, *phi_had;

  static int64_t size(int64_t k, int64_t l) { return exact_rows * whole_groups(k) + 4 * whole_groups(l); }
  ItemLogs(double* memory, int64_t k, int64_t l)
      : weights(memory),
        factors(weights + whole_groups(l)),
        buffer(factors + whole_groups(k)),
        phi(buffer + 3 * whole_groups(k)),
        phi_had(phi + whole_groups(k)) {}
  void of(const Factor<T>& items, const Factor<T>& all_weights, int64_t item) {
    expected_log_of(all_weights, item, phi_had + whole_groups(all_weights.shape.k), weights);
    expected_log_of(items, item, buffer, factors);
  }
};

// The nonzeros of one tile that need it, or all, by the max-shifted log-sum-exp in double.
template <class T>
void share_tile_exactly(const Sharing<T>& work, int64_t tile, bool all, double* scratch, Piece<T> parts,
                        T* w) {  // (words * in_word,) to work in
  const TilesView<T> tiles = work.tiles;
  const int64_t k = work.users.shape.k, l = work.had.l, words = words_of(l);
  ItemLogs<T> logs(scratch, k, l);
  int64_t z = tiles.tiles[tile].first_nonzero;
  for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment; ++segment) {
    const int64_t item = tiles.segment_row[segment];
    bool known = false;
    if (!all) copy_weights(work.weights.exp_log, item, words, w);
    for (int64_t end = z + tiles.segment_size[segment]; z < end;) {
      const int count = static_cast<int>(minimum(piece, end - z));
      if (!all && !shares_of(work, item, z, count, w, parts)) {
        z += count;
        continue;
      }
      for (int i = 0; i < count; ++i, ++z) {
        if (!all && parts.total[i] != 0) continue;
        if (!known) logs.of(work.items, work.weights, item);
        known = true;
        const int64_t user = tiles.column[z];
        const ShiftedSum shifted = shifted_phi_with_had(logs.factors, logs.weights, work.users, user, work.bits_of(z),
                                                        l, logs.buffer, logs.phi, logs.phi_had);
        const double share = double(tiles.value[z]) / shifted.sum;
        if (work.user_sums.data) {
          T* sum = row_of(work.user_sums, user);
          for (int64_t j = 0; j < k; ++j) sum[j] += T(share * logs.phi[j]);
        }
        if (work.item_sums.data) {
          T *sum = row_of(work.item_sums, item), *weight_sum = row_of(work.weight_sums, item);
          for (int64_t j = 0; j < k; ++j) sum[j] += T(share * logs.phi[j]);
          for (int64_t j = 0; j < l; ++j) weight_sum[j] += T(share * logs.phi_had[j]);
        }
      }
    }
  }
}

template <class T, bool Items, bool Users>
void share_with(const Sharing<T>& work, bool exact, int threads) {
  const int64_t stride = work.items.exp_log.stride, words = words_of(work.had.l);
  const int team = threads_for_tiles(work.tiles, threads);
  Scratch<T> numbers(2 * piece_room + stride + 2 * words * in_word, team);
  Scratch<double> totals(piece, team), logs(ItemLogs<T>::size(work.users.shape.k, work.had.l), team);
  const auto parts = [&] { return Piece<T>{numbers.share(), numbers.share() + piece_room, totals.share()}; };
  const auto memory = [&] { return numbers.share() + 2 * piece_room; };
  in_two_passes(
      work.tiles, work.item_sums, work.weight_sums, work.user_sums, work.users.exp_log, exact, team,
      [&](int64_t tile) { return share_tile<T, Items, Users>(work, tile, parts(), memory()); },
      [&](int64_t tile) { share_tile_exactly(work, tile, exact, logs.share(), parts(), memory()); });
}

}  // namespace

template <class T>
void allocate_with_neighbours(TilesView<T> tiles, HadView had, Factor<T> items, Factor<T> users, Factor<T> weights,
                              Matrix<T> item_sums, Matrix<T> weight_sums, Matrix<T> user_sums, bool exact,
                              int threads) {
  const Sharing<T> work{tiles, had, items, users, weights, item_sums, weight_sums, user_sums};
  if (item_sums.data && user_sums.data)
    share_with<T, true, true>(work, exact, threads);
  else if (item_sums.data)
    share_with<T, true, false>(work, exact, threads);
  else
    share_with<T, false, true>(work, exact, threads);
}

template <class T>
double log_rate_sum_with_neighbours(TilesView<T> tiles, HadView had, Matrix<const T> b, Matrix<const T> a,
                                    Matrix<const T> w, const Factor<T>* items, const Factor<T>* users,
                                    const Factor<T>* weights, int threads) {
  const int64_t tile_count = tiles.row_blocks * tiles.column_blocks, words = words_of(had.l), k = a.k;
  const int vectors = static_cast<int>(a.stride / Simd<T>::lanes);
  const int team = threads_for_tiles(tiles, threads);
  Scratch<double> partial(tile_count), rates(2 * piece, team), log_memory(ItemLogs<T>::size(k, had.l), team);
  Scratch<T> numbers(2 * piece_room + words * in_word, team);
#pragma omp parallel num_threads(team)
  {
    T *of_factors = numbers.share(), *of_weights = of_factors + piece_room, *own_weights = of_weights + piece_room;
    double *rate = rates.share(), *log_scale = rate + piece;
    ItemLogs<T> logs(log_memory.share(), k, had.l);
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < tile_count; ++tile) {
      double total = 0;
      int64_t z = tiles.tiles[tile].first_nonzero;
      for (int64_t segment = tiles.tiles[tile].first_segment; segment < tiles.tiles[tile + 1].first_segment;
           ++segment) {
        const int64_t item = tiles.segment_row[segment];
        bool known = false;
        copy_weights(w, item, words, own_weights);
        for (int64_t end = z + tiles.segment_size[segment]; z < end;) {
          const int count = static_cast<int>(minimum(piece, end - z));
          const int32_t* user = tiles.column + z;
          const T* y = tiles.value + z;
          const uint32_t* bits = had.bits + z * words;
          products<T, 0, true>(row_of(b, item), a.data, a.stride, user, count, vectors, of_factors);
          sums_over_had<T>(own_weights, bits, words, count, of_weights);
          if (users) {
            const double log_weights = weights->log_scale[item];
            for (int i = 0; i < count; ++i) {
              const double log_factors = users->log_scale[user[i]] + items->log_scale[item];
              const Scales scales = relative_scales<double>(log_factors, log_weights);
              rate[i] = scales.of_x * double(of_factors[i]) + scales.of_y * double(of_weights[i]);
              log_scale[i] = log_factors > log_weights ? log_factors : log_weights;
            }
          } else {
            for (int i = 0; i < count; ++i) rate[i] = double(of_factors[i]) + double(of_weights[i]), log_scale[i] = 0;
          }
          int underflows = 0;
#pragma omp simd reduction(+ : underflows, total)
          for (int i = 0; i < count; ++i) {
            const bool under = !(rate[i] >= double(tiny_product<T>));
            underflows += under;
            total += under ? 0.0 : double(y[i]) * (log_normal(under ? 1.0 : rate[i]) + log_scale[i]);
          }
          for (int i = 0; underflows && i < count; ++i) {
            if (rate[i] >= double(tiny_product<T>)) continue;
            double log_rate;
            if (users) {
              if (!known) logs.of(*items, *weights, item);
              known = true;
              const ShiftedSum shifted =
                  shifted_phi_with_had(logs.factors, logs.weights, *users, user[i], bits + i * words, had.l,
                                       logs.buffer, logs.phi, logs.phi_had);
              log_rate = shifted.top + log_normal(shifted.sum);
            } else {
              const T *theta = row_of(a, user[i]), *beta = row_of(b, item);
              double sum = 0;
              for (int64_t j = 0; j < k; ++j) sum += double(theta[j]) * (double(beta[j]) * rate_lift);
              for (int64_t l = 0; l < had.l; ++l)
                if (bits[i * words + l / in_word] >> l % in_word & 1) sum += double(own_weights[l]) * rate_lift;
              log_rate = log_lifted_rate(sum);
            }
            total += double(y[i]) * log_rate;
          }
          z += count;
        }
      }
      partial.data[tile] = total;
    }
  }
  double total = 0;
  for (int64_t tile = 0; tile < tile_count; ++tile) total += partial.data[tile];
  return total;
}

template <class T>
void neighbour_rates(const int64_t* indptr, const int64_t* indices, int64_t items, const int32_t* sources,
                     Matrix<const T> w, int64_t pairs, const int64_t* rows, const int64_t* columns, T* out,
                     int threads) {
  const int64_t l = w.k, words = words_of(l);
  const int team = threads_for(pairs, l, threads);
  Scratch<uint8_t> has_item(items + 1, team);
  Scratch<uint32_t> bits_of_pair(words, team);
  Scratch<T> numbers(words * in_word + 4, team);
#pragma omp parallel num_threads(team)
  {
    uint8_t* has = has_item.share() + 1;
    for (int64_t i = -1; i < items; ++i) has[i] = 0;
    uint32_t* bits = bits_of_pair.share();
    T *own_weights = numbers.share(), *sum = own_weights + words * in_word;
    int64_t known = -1;  // the user whose items are marked
    const auto mark = [&](int64_t user, uint8_t mark) {
      for (int64_t z = indptr[user]; z < indptr[user + 1]; ++z) has[indices[z]] = mark;
    };
#pragma omp for schedule(static)
    for (int64_t z = 0; z < pairs; ++z) {
      if (rows[z] != known) {
        if (known >= 0) mark(known, 0);
        known = rows[z];
        mark(known, 1);
      }
      find_had(has, sources + columns[z] * l, l, bits);
      copy_weights(w, columns[z], words, own_weights);
      sums_over_had<T>(own_weights, bits, words, 1, sum);
      out[z] = sum[0];
    }
  }
}

#define HPF_INSTANTIATE(T)                                                                                            \
  template void allocate_with_neighbours<T>(TilesView<T>, HadView, Factor<T>, Factor<T>, Factor<T>, Matrix<T>,        \
                                            Matrix<T>, Matrix<T>, bool, int);                                         \
  template double log_rate_sum_with_neighbours<T>(TilesView<T>, HadView, Matrix<const T>, Matrix<const T>,            \
                                                  Matrix<const T>, const Factor<T>*, const Factor<T>*,                \
                                                  const Factor<T>*, int);                                             \
  template void neighbour_rates<T>(const int64_t*, const int64_t*, int64_t, const int32_t*, Matrix<const T>, int64_t, \
                                   const int64_t*, const int64_t*, T*, int);
HPF_INSTANTIATE(float)
HPF_INSTANTIATE(double)
#undef HPF_INSTANTIATE

}  // namespace HPF_ISA
}  // namespace hpf
