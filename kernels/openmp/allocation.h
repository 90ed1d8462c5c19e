// What passes over the tiles that allocate counts have in common: shares are spread to the sums of rows and columns, a
// tile at a time, and what underflows comes in a second pass.
//
// Everything has internal linkage, as in simd.h.
#pragma once

#include "products.h"
#include "rows.h"
#include "scratch.h"

namespace hpf {
namespace HPF_ISA {

constexpr int piece = 64;  // nonzeros of a row whose factors stay in L1 between two uses

// Adds w_z v_z to `row` and w_z u to the items' sums, NV vectors of each.
template <class T, int NV, bool Users, bool Items>
static inline void spread(const T* u,  // (NV * lanes,)
                          const T* v,  // (M, stride) from the same vector on
                          int64_t stride,
                          const int32_t* column,  // (count,)
                          int count,
                          const T* weight,  // (count,)
                          T* row,           // (NV * lanes,), or null without Users
                          T* item_sums) {   // (M, stride) from the same vector on, or null without Items
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

// The same for rows (stride,) of any number of vectors.
template <class T, bool Users, bool Items>
static inline void spread_any(const T* u,  // (stride,)
                              const T* v,  // (M, stride)
                              int64_t stride,
                              const int32_t* column,  // (count,)
                              int count,
                              const T* weight,  // (count,)
                              T* row,           // (stride,), or null without Users
                              T* item_sums) {   // (M, stride), or null without Items
  constexpr int lanes = Simd<T>::lanes;
  const int vectors = static_cast<int>(stride / lanes);
  int j = 0;
  for (; j + most_vectors <= vectors; j += most_vectors)
    spread<T, most_vectors, Users, Items>(u + j * lanes, v + j * lanes, stride, column, count, weight, row + j * lanes,
                                          item_sums + j * lanes);
  for (; j + 4 <= vectors; j += 4)
    spread<T, 4, Users, Items>(u + j * lanes, v + j * lanes, stride, column, count, weight, row + j * lanes,
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
HPF_FN void prefetch_segment(const TilesView<T>& tiles, int64_t segment,
                             const T* u,          // (N, stride)
                             const T* user_sums,  // (N, stride), or null without Users
                             int64_t stride, int vectors) {
  const int64_t next = tiles.segment_row[segment + segments_ahead] * stride;
  prefetch_row<T, false>(u + next, vectors);
  if (Users) prefetch_row<T, true>(user_sums + next, vectors);
}

// The column block that row block r meets in a step.
template <class T>
static inline int64_t column_block(TilesView<T> tiles, int64_t r, int64_t step) {
  return (r * (tiles.column_blocks / tiles.row_blocks) + step) % tiles.column_blocks;
}

// Runs `body(tile, column block, step)` over all tiles.  A step is a set of tiles that
// share neither rows nor columns, and ends with a barrier.
template <class T, class Body>
static inline void in_steps(TilesView<T> tiles, Body body) {
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
static inline int64_t step_of(TilesView<T> tiles, int64_t r, int64_t c) {
  const int64_t offset = column_block(tiles, r, 0);
  return c >= offset ? c - offset : c - offset + tiles.column_blocks;
}

// Goes through all tiles with `shares(tile)`, which adds to the sums of the tile's rows and columns and returns how
// many nonzeros were left to the log-sum-exp; then with `exactly(tile)` through those where any were, or all if
// `exact`. Sums of columns are multiplied by `v` between the two.
template <class T, class Shares, class Exactly>
static inline void in_two_passes(TilesView<T> tiles,
                                 Matrix<T> row_sums,       // (rows, K), or null
                                 Matrix<T> more_row_sums,  // (rows, L), or null
                                 Matrix<T> column_sums,    // (columns, K), or null
                                 Matrix<const T> v,        // (columns, K)
                                 bool exact, int team, Shares shares, Exactly exactly) {
  const int64_t tile_count = tiles.row_blocks * tiles.column_blocks;
  Scratch<int64_t> left(tile_count);
  int64_t total_left = 0;
  const Matrix<T> sums_of_rows[] = {row_sums, more_row_sums};
#pragma omp parallel num_threads(team)
  {
#pragma omp for schedule(static, 1)
    for (int64_t r = 0; r < tiles.row_blocks; ++r)
      for (const Matrix<T>& sums : sums_of_rows)
        if (sums.data)
          __builtin_memset(sums.data + tiles.row_start[r] * sums.stride, 0,
                           (tiles.row_start[r + 1] - tiles.row_start[r]) * sums.stride * sizeof(T));
    in_steps(tiles, [&](int64_t tile, int64_t c, int64_t step) {
      const int64_t begin = tiles.column_start[c] * v.stride, end = tiles.column_start[c + 1] * v.stride;
      bool first = true, last = true;
      for (int64_t other = 0; other < tiles.row_blocks; ++other) {
        first &= step_of(tiles, other, c) >= step;
        last &= step_of(tiles, other, c) <= step;
      }
      T* sums = column_sums.data;
      if (sums && first) __builtin_memset(sums + begin, 0, (end - begin) * sizeof(T));
      left.data[tile] = exact ? 0 : shares(tile);
      if (sums && last)  // while the block is in cache
        for (int64_t j = begin; j < end; j += Simd<T>::lanes) store(sums + j, load(sums + j) * load(v.data + j));
    });
#pragma omp single
    for (int64_t tile = 0; tile < tile_count; ++tile) total_left += left.data[tile];
    if (exact || total_left) {
      in_steps(tiles, [&](int64_t tile, int64_t, int64_t) {
        if (exact || left.data[tile]) exactly(tile);
      });
    }
  }
}

}  // namespace HPF_ISA
}  // namespace hpf
