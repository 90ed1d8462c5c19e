// Sums of rows that were cut into several segments.
#pragma once

#include "segments.cuh"

namespace hpf {

// In shared memory: a sum of each strand.
using SumOfStrand = double[HPF_JOIN_STRANDS][warp];

// Rows of several segments: a block adds up `warp` columns of one row's parts, in double.  Each strand of the block
// takes every so many parts in order, and the strands are added in order.
template <int columns>
__device__ __forceinline__ void join(const int* row,         // (L,) rows of several segments
                                     const int* first_slot,  // (L + 1,) where their parts begin
                                     const Real* partial,    // (P, columns)
                                     int add,                // whether to add to what is there
                                     Real* out,              // (N, columns)
                                     SumOfStrand& sum_of_strand) {
  constexpr int blocks_of_row = (columns + warp - 1) / warp;
  const int lane = threadIdx.x % warp, strand = threadIdx.x / warp;
  const int r = blockIdx.x / blocks_of_row, k = blockIdx.x % blocks_of_row * warp + lane;
  double sum = 0;
  if (k < columns) {
#pragma unroll 4
    for (int slot = first_slot[r] + strand; slot < first_slot[r + 1]; slot += HPF_JOIN_STRANDS)
      sum += double(partial[(long long)slot * columns + k]);
  }
  sum_of_strand[strand][lane] = sum;
  __syncthreads();
  if (strand > 0 || k >= columns) return;
  Real* target = out + (long long)row[r] * columns + k;
  if (add) sum += double(*target);
  for (int s = 1; s < HPF_JOIN_STRANDS; ++s) sum += sum_of_strand[s][lane];
  *target = Real(sum);
}

}  // namespace hpf
