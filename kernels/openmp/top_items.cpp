// The best items of every user: θ·βᵀ in register tiles, each forgotten as soon as it has been held
// against the last of each user's list.
#include "bounds.h"
#include "operations.h"
#include "ranking.h"
#include "rows.h"
#include "scratch.h"
#include "simd.h"

namespace hpf {
namespace HPF_ISA {
namespace {

// A tile is users_in_tile × vectors_in_panel vectors of sums: what fits in the registers beside the
// operands.  Its loops are unrolled, or the sums would live in memory.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int users_in_tile = 6, vectors_in_panel = 4;
#else
constexpr int users_in_tile = 4, vectors_in_panel = 3;
#endif
#define HPF_UNROLL _Pragma("GCC unroll 8")

template <class T>
constexpr int items_in_panel = vectors_in_panel * Simd<T>::lanes;

// So many users meet the items one by one: to transpose a panel takes as long as two users' products.
constexpr int64_t few_users = 2;
// To so many users bounds are worth a look at each of them.
constexpr int64_t few_bounded_users = 8;
// So many items are looked at one by one before the others are, too: it takes as long as five in a panel.
int64_t most_looked_at(int64_t items) {
  return 256 + items / 32;
}

// θ and lists of the users that a thread meets all items with: enough of them for the panels' transposition
// not to count, few enough for L2.
constexpr int64_t chunk_bytes = 1 << 18;
// What the items of these users add, a number for each user and item: some tiles of users, to the same end.
constexpr int64_t sums_bytes = 1 << 21;

// Rows as columns, zero beyond `count`.
template <class T>
void transpose(const T* rows,  // (count, K)
               int64_t stride, int64_t count, int64_t k, int width,
               T* out) {  // (K, width)
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < k; ++j) out[j * width + i] = rows[i * stride + j];
  for (int64_t j = 0; j < k; ++j)
    for (int64_t i = count; i < width; ++i) out[j * width + i] = 0;
}

// The list of one user while items go by, in ascending order.
template <class T>
struct List : Ranking<T> {
  const int64_t *excluded, *excluded_end;  // of the items yet to come
};

template <class T>
List<T> empty_list(int64_t* columns,  // (length,)
                   T* scores,         // (length,)
                   int64_t length, Excluded excluded, int64_t u) {
  if (!excluded.start) return {{scores, columns, length, 0}, nullptr, nullptr};
  return {{scores, columns, length, 0}, excluded.items + excluded.start[u], excluded.items + excluded.start[u + 1]};
}

// Looks through a panel in which something exceeds the threshold: `count` items from number `first` on.
template <class T>
__attribute__((noinline)) T take_panel(List<T>& list, T threshold,
                                       T* score,  // (items_in_panel,)
                                       int64_t first, int64_t count) {
  constexpr int lanes = Simd<T>::lanes;
  for (int64_t i = count; i < items_in_panel<T>; ++i) score[i] = -T(__builtin_inf());
  for (; list.excluded < list.excluded_end && *list.excluded < first + count; ++list.excluded)
    if (*list.excluded >= first) score[*list.excluded - first] = -T(__builtin_inf());
  for (int v = 0; v < vectors_in_panel; ++v)
    for (uint32_t above = lanes_above<T>(load(score + v * lanes), Vector<T>{} + threshold); above; above &= above - 1) {
      const int i = v * lanes + __builtin_ctz(above);
      if (score[i] > threshold) threshold = take(list, score[i], first + i);
    }
  return threshold;
}

// Adds to `sums` of one user what each of her items adds.
template <class T>
void add_scores(const ItemScores<T>& added, int64_t u, int64_t width,
                T* sums) {  // (width,)
  for (int64_t i = 0; i < width; ++i) sums[i] = 0;
  for (int64_t z = added.had_start[u]; z < added.had_start[u + 1]; ++z)
    for (int64_t p = added.start[added.had[z]]; p < added.start[added.had[z] + 1]; ++p)
      sums[added.targets[p]] += added.weights[p];
}

// A tile of users against a panel of items.
template <class T, bool Added>
inline void meet(const T* users,  // (K, users_in_tile)
                 const T* items,  // (K, items_in_panel)
                 const T* added,  // (users_in_tile, width) from the panel on, or null without Added
                 int64_t width, int64_t k, int64_t first, int64_t count,
                 List<T>* lists,  // (users_in_tile,)
                 T* threshold,    // (users_in_tile,)
                 T* score) {      // (items_in_panel,)
  constexpr int lanes = Simd<T>::lanes;
  Vector<T> sum[users_in_tile][vectors_in_panel];
  HPF_UNROLL
  for (int u = 0; u < users_in_tile; ++u) {
    HPF_UNROLL
    for (int v = 0; v < vectors_in_panel; ++v) sum[u][v] = Added ? load(added + u * width + v * lanes) : Vector<T>{};
  }
  for (int64_t j = 0; j < k; ++j) {
    Vector<T> item[vectors_in_panel];
    HPF_UNROLL
    for (int v = 0; v < vectors_in_panel; ++v) item[v] = load(items + (j * vectors_in_panel + v) * lanes);
    HPF_UNROLL
    for (int u = 0; u < users_in_tile; ++u) {
      HPF_UNROLL
      for (int v = 0; v < vectors_in_panel; ++v) sum[u][v] += users[j * users_in_tile + u] * item[v];
    }
  }
  HPF_UNROLL
  for (int u = 0; u < users_in_tile; ++u) {
    Vector<T> best = sum[u][0];
    HPF_UNROLL
    for (int v = 1; v < vectors_in_panel; ++v) best = sum[u][v] > best ? sum[u][v] : best;
    if (lanes_above<T>(best, Vector<T>{} + threshold[u])) {
      HPF_UNROLL
      for (int v = 0; v < vectors_in_panel; ++v) store(score + v * lanes, sum[u][v]);
      threshold[u] = take_panel(lists[u], threshold[u], score, first, count);
    }
  }
}

// One user against a panel of items, whose columns are made in registers and not stored.  Products are added up in the
// order of the factors, as in a tile: nobody's list depends on who else asks.
template <class T, bool Added>
inline void meet_one(const T* user,   // (K,)
                     const T* items,  // (count, K)
                     int64_t stride,
                     const T* added,  // (items_in_panel,), or null without Added
                     int64_t k, int64_t first, int64_t count, List<T>& list, T& threshold,
                     T* score) {  // (items_in_panel,)
  using Block = Columns<T>;
  constexpr int blocks = items_in_panel<T> / Block::rows, lanes = Simd<T>::lanes;
  static_assert(blocks * Block::rows == items_in_panel<T>);
  for (int64_t i = 0; i < items_in_panel<T>; ++i) score[i] = Added ? added[i] : T(0);
  if (count == items_in_panel<T>) {
    typename Block::Column sum[blocks];
    HPF_UNROLL
    for (int b = 0; b < blocks; ++b) __builtin_memcpy(&sum[b], score + b * Block::rows, sizeof(sum[b]));
    const T* ahead = items + items_in_panel<T> * stride;  // the panel to come: asked for as this one is used up
    int64_t j = 0;
    for (; j + Block::count <= k; j += Block::count) {
      HPF_UNROLL
      for (int b = 0; b < blocks; ++b) {
        for (int i = 0; i < Block::rows * Block::count * int(sizeof(T)); i += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(ahead) + i);
        ahead += Block::rows * Block::count;
        const Block block = columns_of(items + b * Block::rows * stride + j, stride);
        HPF_UNROLL
        for (int c = 0; c < Block::count; ++c) sum[b] += user[j + c] * block.column[c];
      }
    }
    for (; j < k; ++j)
      for (int b = 0; b < blocks; ++b)
        for (int i = 0; i < Block::rows; ++i) sum[b][i] += user[j] * items[(b * Block::rows + i) * stride + j];
    HPF_UNROLL
    for (int b = 0; b < blocks; ++b) __builtin_memcpy(score + b * Block::rows, &sum[b], sizeof(sum[b]));
  } else {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < k; ++j) score[i] += user[j] * items[i * stride + j];
  }
  Vector<T> best = load(score);
  for (int v = 1; v < vectors_in_panel; ++v) {
    const Vector<T> other = load(score + v * lanes);
    best = other > best ? other : best;
  }
  if (lanes_above<T>(best, Vector<T>{} + threshold)) threshold = take_panel(list, threshold, score, first, count);
}

// θ·β of one item, rounded as a tile's: in a vector of equal lanes, for compilers would take a sum of scalars apart
// into products that are rounded and their sum.
template <class T>
inline T score_of(const T* user,  // (K,)
                  const T* item,  // (K,)
                  int64_t k) {
  Vector<T> sum = {};
  for (int64_t j = 0; j < k; ++j) sum += user[j] * (Vector<T>{} + item[j]);
  return sum[0];
}

// One user against the items, of which only those are looked at whose bound exceeds the threshold.  Returns the first
// item that is left to others: M, or less where too many have been looked at, one by one and in vain.
template <class T>
int64_t meet_bounded(const T* user,  // (K,)
                     Matrix<const T> beta, const uint8_t* bounds,
                     const int8_t* bytes,  // (whole fours,) of the user
                     const UserBytes& units, List<T>& list, T& threshold) {
  const int64_t m = beta.rows, k = beta.k, fours = fours_of(k);
  int64_t left = most_looked_at(m);
  int32_t least = bound_of(threshold, units);
  for (int64_t first = 0; first < m; first += rows_in_block, bounds += fours * bytes_in_block) {
    if (left < 0) return first;
    for (uint32_t above = rows_above(bounds, bytes, fours, least); above; above &= above - 1) {
      const int64_t item = first + __builtin_ctz(above);
      if (item >= m) break;
      while (list.excluded < list.excluded_end && *list.excluded < item) ++list.excluded;
      if (list.excluded < list.excluded_end && *list.excluded == item) continue;
      const T score = score_of(user, row_of(beta, item), k);
      --left;
      if (!(score > threshold)) continue;
      threshold = take(list, score, item);
      least = bound_of(threshold, units);
    }
  }
  return m;
}

int64_t whole_tiles(int64_t users) {
  return (users + users_in_tile - 1) / users_in_tile * users_in_tile;
}

template <class T, bool Added>
void top_items_with(Matrix<const T> theta, Matrix<const T> beta, Excluded excluded, ItemScores<T> added, int64_t length,
                    int64_t* columns, T* scores, int threads) {
  const int64_t n = theta.rows, m = beta.rows, k = theta.k;
  constexpr int panel = items_in_panel<T>;
  constexpr T infinity = __builtin_inf();
  const int64_t bytes_of_user = k * int64_t(sizeof(T)) + length * int64_t(sizeof(T) + sizeof(int64_t));
  const int64_t width = Added ? (m + panel - 1) / panel * panel : 0;  // whole panels
  const int64_t most = Added ? minimum(chunk_bytes / bytes_of_user, sums_bytes / (1 + width * int64_t(sizeof(T))))
                             : chunk_bytes / bytes_of_user;
  const int64_t chunk = whole_tiles(1 + minimum(most, (n - 1) / threads));
  const int team = static_cast<int>(minimum(threads, 1 + (n - 1) / chunk));
  Scratch<T> all_users(chunk * k, team), all_items(panel * k, team), scores_of(panel, team), thresholds(chunk, team);
  Scratch<T> all_sums(chunk * width, team);
  Scratch<List<T>> all_lists(chunk, team);
#pragma omp parallel num_threads(team)
  {
    T *users = all_users.share(), *items = all_items.share(), *score = scores_of.share();
    T *threshold = thresholds.share(), *sums = all_sums.share();
    List<T>* lists = all_lists.share();
#pragma omp for schedule(dynamic, 1)
    for (int64_t begin = 0; begin < n; begin += chunk) {
      const int64_t own = minimum(chunk, n - begin);
      const bool few = own <= few_users;
      for (int64_t i = 0; i < own; ++i) {
        const int64_t u = begin + i;
        lists[i] = empty_list(columns + u * length, scores + u * length, length, excluded, u);
        threshold[i] = -infinity;
      }
      for (int64_t i = own; i < whole_tiles(own); ++i) threshold[i] = infinity;  // nobody's: never exceeded
      if (Added) {
        for (int64_t i = 0; i < own; ++i) add_scores(added, begin + i, width, sums + i * width);
        for (int64_t i = own * width; !few && i < whole_tiles(own) * width; ++i) sums[i] = 0;
      }
      for (int64_t i = 0; !few && i < own; i += users_in_tile)
        transpose(row_of(theta, begin + i), theta.stride, minimum(users_in_tile, own - i), k, users_in_tile,
                  users + i * k);
      for (int64_t first = 0; first < m; first += panel) {
        const int64_t count = minimum(panel, m - first);
        if (few) {
          for (int64_t i = 0; i < own; ++i)
            meet_one<T, Added>(row_of(theta, begin + i), row_of(beta, first), beta.stride, sums + i * width + first, k,
                               first, count, lists[i], threshold[i], score);
          continue;
        }
        transpose(row_of(beta, first), beta.stride, count, k, panel, items);
        for (int64_t i = 0; i < own; i += users_in_tile)
          meet<T, Added>(users + i * k, items, sums + i * width + first, width, k, first, count, lists + i,
                         threshold + i, score);
      }
      for (int64_t i = 0; i < own; ++i) finish(lists[i]);
    }
  }
}

// The lists of few users by bounds, or false if those of one of them are of no use.
template <class T>
bool top_items_by_bounds(Matrix<const T> theta, Matrix<const T> beta, ByteBounds bounds, Excluded excluded,
                         int64_t length, int64_t* columns, T* scores, int threads) {
  const int64_t n = theta.rows, bytes_of_user = fours_of(theta.k) * factors_in_four;
  Scratch<int8_t> bytes(n * bytes_of_user);
  Scratch<UserBytes> units(n);
  for (int64_t u = 0; u < n; ++u)
    if (!user_bytes(row_of(theta, u), bounds.scale, theta.k, bytes.data + u * bytes_of_user, units.data[u]))
      return false;
  constexpr int panel = items_in_panel<T>;
  const int team = static_cast<int>(minimum(threads, n));
  Scratch<T> scores_of(panel, team);
#pragma omp parallel for num_threads(team) schedule(static)
  for (int64_t u = 0; u < n; ++u) {
    const T* user = row_of(theta, u);
    List<T> list = empty_list(columns + u * length, scores + u * length, length, excluded, u);
    T threshold = -T(__builtin_inf());
    int64_t first =
        meet_bounded(user, beta, bounds.bytes, bytes.data + u * bytes_of_user, units.data[u], list, threshold);
    for (; first < beta.rows; first += panel)
      meet_one<T, false>(user, row_of(beta, first), beta.stride, nullptr, theta.k, first,
                         minimum(panel, beta.rows - first), list, threshold, scores_of.share());
    finish(list);
  }
  return true;
}

}  // namespace

template <class T>
void top_items(Matrix<const T> theta, Matrix<const T> beta, ByteBounds bounds, Excluded excluded, ItemScores<T> added,
               int64_t length, int64_t* columns, T* scores, int threads) {
  if (bounds.bytes && !added.had_start && theta.rows <= few_bounded_users &&
      top_items_by_bounds(theta, beta, bounds, excluded, length, columns, scores, threads))
    return;
  const auto best = added.had_start ? top_items_with<T, true> : top_items_with<T, false>;
  best(theta, beta, excluded, added, length, columns, scores, threads);
}

template void top_items<float>(Matrix<const float>, Matrix<const float>, ByteBounds, Excluded, ItemScores<float>,
                               int64_t, int64_t*, float*, int);
template void top_items<double>(Matrix<const double>, Matrix<const double>, ByteBounds, Excluded, ItemScores<double>,
                                int64_t, int64_t*, double*, int);

}  // namespace HPF_ISA
}  // namespace hpf
