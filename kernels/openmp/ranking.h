// The best of what goes by: a heap with the last-ranked in front.
//
// Everything has internal linkage, as in simd.h.
#pragma once

#include <cstdint>

namespace hpf {
namespace HPF_ISA {

template <class T>
struct Ranking {
  T* score;         // (length,)
  int64_t* column;  // (length,)
  int64_t length, size;
};

// Whether entry a ranks behind entry b.
template <class T>
static inline bool behind(const Ranking<T>& list, int64_t a, int64_t b) {
  return list.score[a] < list.score[b] || (list.score[a] == list.score[b] && list.column[a] > list.column[b]);
}

// Whether a score that may come in any order belongs into a full list.
template <class T>
static inline bool precedes_last(const Ranking<T>& list, T score, int64_t column) {
  return score > list.score[0] || (score == list.score[0] && column < list.column[0]);
}

template <class T>
static inline void exchange(Ranking<T>& list, int64_t a, int64_t b) {
  const T score = list.score[a];
  const int64_t column = list.column[a];
  list.score[a] = list.score[b], list.column[a] = list.column[b];
  list.score[b] = score, list.column[b] = column;
}

// Lets entry i sink in the heap of the first `size`, the last-ranked in front.
template <class T>
static inline void sink(Ranking<T>& list, int64_t i, int64_t size) {
  for (int64_t child; (child = 2 * i + 1) < size; i = child) {
    if (child + 1 < size && behind(list, child + 1, child)) ++child;
    if (!behind(list, child, i)) return;
    exchange(list, i, child);
  }
}

template <class T>
static inline void make_heap(Ranking<T>& list) {
  for (int64_t i = list.size / 2; i-- > 0;) sink(list, i, list.size);
}

// Takes a score above the threshold in, and returns the threshold from now on.  Of equal scores the first
// to come stays, which has the lower number.
template <class T>
static inline T take(Ranking<T>& list, T score, int64_t column) {
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

// Best first; −1 and −∞ where there are no more.
template <class T>
static inline void finish(Ranking<T>& list) {
  if (list.size < list.length) make_heap(list);
  for (int64_t last = list.size; last-- > 1;) {
    exchange(list, 0, last);
    sink(list, 0, last);
  }
  for (int64_t i = list.size; i < list.length; ++i) list.column[i] = -1, list.score[i] = -T(__builtin_inf());
}

}  // namespace HPF_ISA
}  // namespace hpf
