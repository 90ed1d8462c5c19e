// Products u·v of the nonzeros in a tile, for what is made of them.
//
// Everything has internal linkage, as in simd.h.
#pragma once

#include "nonzero.h"
#include "simd.h"
#include "tiles.h"

namespace hpf {
namespace HPF_ISA {

// Row blocks were made for as many threads as the nonzeros earn.
template <class T>
static inline int threads_for_tiles(const TilesView<T>& tiles, int threads) {
  return tiles.row_blocks < threads ? static_cast<int>(tiles.row_blocks) : threads;
}

// Rows of a tile are short and its columns at random places, so what comes next is asked for in time: the rows
// of this many vectors' nonzeros ahead, and those of some segments ahead.  (Always inline: as calls they cost
// what they gain.)
constexpr int vectors_ahead = 64;
static_assert(vectors_ahead <= nonzeros_beyond);
constexpr int segments_ahead = 4;
static_assert(segments_ahead <= segments_beyond);

template <class T, bool Write>
HPF_FN void prefetch_row(const T* row,  // (vectors * lanes,)
                         int vectors) {
  for (int j = 0; j < vectors; ++j) __builtin_prefetch(row + j * Simd<T>::lanes, Write, 3);
}

// Asks for the rows of `count` nonzeros that come `ahead` after these.
template <class T, bool Items>
HPF_FN void prefetch_nonzeros(const T* v,          // (M, stride)
                              const T* item_sums,  // (M, stride), or null without Items
                              int64_t stride,
                              const int32_t* column,  // (count,), and nonzeros_beyond more
                              int64_t count, int vectors) {
  const int ahead = vectors_ahead / vectors;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = column[i + ahead] * stride;
    prefetch_row<T, false>(v + at, vectors);
    if (Items) prefetch_row<T, true>(item_sums + at, vectors);
  }
}

// u·v_z for nonzeros of one row.  NV vectors a row; 0 means `vectors` of them.  With Ahead, rows of nonzeros to come
// are asked for.
// Every product of two rows starts from zero, here and in allocate.cpp: a first term that is not a sum could be
// rounded one way here and another there, and two passes would not agree which nonzeros underflow.
template <class T, int NV, bool Ahead = false>
static inline void products(const T* u,  // (stride,)
                            const T* v,  // (M, stride)
                            int64_t given_stride,
                            const int32_t* column,  // (count,)
                            int count, int vectors,
                            T* out) {  // (count,), and room for three more
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
    sum_lanes_of_four<T>(sums[0], sums[1], sums[2], sums[3], out + z);
  }
}

constexpr int most_vectors = 8;  // of one row, held in registers

template <int N>
struct Vectors {
  static constexpr int count = N;
};

// Calls `body` with the vectors of a row as a constant: up to most_vectors, or 0 for any number.
template <class T, class Body>
static inline auto with_vectors(int64_t stride, Body body) {
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

}  // namespace HPF_ISA
}  // namespace hpf
