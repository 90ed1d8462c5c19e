// The best items of every user: θ·βᵀ in register tiles, each forgotten as soon as it has been held
// against the last of each user's list.
#include "operations.h"
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

// θ and lists of the users that a thread meets all items with: enough of them for the panels' transposition
// not to count, few enough for L2.
constexpr int64_t chunk_bytes = 1 << 18;

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
struct List {
  T* score;         // (length,)
  int64_t* column;  // (length,)
  int64_t length, size;
  const int64_t *excluded, *excluded_end;  // of the items yet to come
};

template <class T>
List<T> empty_list(int64_t* columns,  // (length,)
                   T* scores,         // (length,)
                   int64_t length, Excluded excluded, int64_t u) {
  if (!excluded.start) return {scores, columns, length, 0, nullptr, nullptr};
  return {scores, columns, length, 0, excluded.items + excluded.start[u], excluded.items + excluded.start[u + 1]};
}

// Whether entry a ranks behind entry b.
template <class T>
inline bool behind(const List<T>& list, int64_t a, int64_t b) {
  return list.score[a] < list.score[b] || (list.score[a] == list.score[b] && list.column[a] > list.column[b]);
}

template <class T>
inline void exchange(List<T>& list, int64_t a, int64_t b) {
  const T score = list.score[a];
  const int64_t column = list.column[a];
  list.score[a] = list.score[b], list.column[a] = list.column[b];
  list.score[b] = score, list.column[b] = column;
}

// Lets entry i sink in the heap of the first `size`, the last-ranked in front.
template <class T>
inline void sink(List<T>& list, int64_t i, int64_t size) {
  for (int64_t child; (child = 2 * i + 1) < size; i = child) {
    if (child + 1 < size && behind(list, child + 1, child)) ++child;
    if (!behind(list, child, i)) return;
    exchange(list, i, child);
  }
}

template <class T>
void make_heap(List<T>& list) {
  for (int64_t i = list.size / 2; i-- > 0;) sink(list, i, list.size);
}

// Takes a score above the threshold in, and returns the threshold from now on.  Of equal scores the first
// to come stays, which has the lower number.
template <class T>
inline T take(List<T>& list, T score, int64_t column) {
  if (list.size < list.length) {
    list.score[list.size] = score, list.column[list.size] = column;
    if (++list.size < list.length) return -T(__builtin_inf());
    make_heap(list);
  } else {
    list.score[0] = score, list.column[0] = column;
    sink(list, 0, list.size);
  }
  return list.score[0];
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

// A tile of users against a panel of items.
template <class T>
inline void meet(const T* users,  // (K, users_in_tile)
                 const T* items,  // (K, items_in_panel)
                 int64_t k, int64_t first, int64_t count,
                 List<T>* lists,  // (users_in_tile,)
                 T* threshold,    // (users_in_tile,)
                 T* score) {      // (items_in_panel,)
  constexpr int lanes = Simd<T>::lanes;
  Vector<T> sum[users_in_tile][vectors_in_panel];
  HPF_UNROLL
  for (int u = 0; u < users_in_tile; ++u) {
    HPF_UNROLL
    for (int v = 0; v < vectors_in_panel; ++v) sum[u][v] = Vector<T>{};
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

// Best first; −1 and −∞ where there are no more.
template <class T>
void finish(List<T>& list) {
  if (list.size < list.length) make_heap(list);
  for (int64_t last = list.size; last-- > 1;) {
    exchange(list, 0, last);
    sink(list, 0, last);
  }
  for (int64_t i = list.size; i < list.length; ++i) list.column[i] = -1, list.score[i] = -T(__builtin_inf());
}

int64_t whole_tiles(int64_t users) {
  return (users + users_in_tile - 1) / users_in_tile * users_in_tile;
}

}  // namespace

template <class T>
void top_items(Matrix<const T> theta, Matrix<const T> beta, Excluded excluded, int64_t length, int64_t* columns,
               T* scores, int threads) {
  const int64_t n = theta.rows, m = beta.rows, k = theta.k;
  constexpr int panel = items_in_panel<T>;
  constexpr T infinity = __builtin_inf();
  const int64_t bytes_of_user = k * int64_t(sizeof(T)) + length * int64_t(sizeof(T) + sizeof(int64_t));
  const int64_t chunk = whole_tiles(1 + minimum(chunk_bytes / bytes_of_user, (n - 1) / threads));
  const int team = static_cast<int>(minimum(threads, 1 + (n - 1) / chunk));
  Scratch<T> all_users(chunk * k, team), all_items(panel * k, team), scores_of(panel, team), thresholds(chunk, team);
  Scratch<List<T>> all_lists(chunk, team);
#pragma omp parallel num_threads(team)
  {
    T *users = all_users.share(), *items = all_items.share(), *score = scores_of.share();
    T* threshold = thresholds.share();
    List<T>* lists = all_lists.share();
#pragma omp for schedule(dynamic, 1)
    for (int64_t begin = 0; begin < n; begin += chunk) {
      const int64_t own = minimum(chunk, n - begin);
      for (int64_t i = 0; i < own; ++i) {
        const int64_t u = begin + i;
        lists[i] = empty_list(columns + u * length, scores + u * length, length, excluded, u);
        threshold[i] = -infinity;
      }
      for (int64_t i = own; i < whole_tiles(own); ++i) threshold[i] = infinity;  // nobody's: never exceeded
      for (int64_t i = 0; i < own; i += users_in_tile)
        transpose(row_of(theta, begin + i), theta.stride, minimum(users_in_tile, own - i), k, users_in_tile,
                  users + i * k);
      for (int64_t first = 0; first < m; first += panel) {
        const int64_t count = minimum(panel, m - first);
        transpose(row_of(beta, first), beta.stride, count, k, panel, items);
        for (int64_t i = 0; i < own; i += users_in_tile)
          meet(users + i * k, items, k, first, count, lists + i, threshold + i, score);
      }
      for (int64_t i = 0; i < own; ++i) finish(lists[i]);
    }
  }
}

template void top_items<float>(Matrix<const float>, Matrix<const float>, Excluded, int64_t, int64_t*, float*, int);
template void top_items<double>(Matrix<const double>, Matrix<const double>, Excluded, int64_t, int64_t*, double*, int);

}  // namespace HPF_ISA
}  // namespace hpf
