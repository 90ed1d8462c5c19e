// The long way for the few nonzeros whose product underflows: in double, by the max-shifted log-sum-exp, the whole warp
// for one nonzero after the other.
#pragma once

#include "segments.cuh"

namespace hpf {

constexpr int exact_warps = 2, exact_threads = exact_warps * warp;

// The segments that a warp finds nonzeros left in, or all, one after the other.
struct LeftSegments {
  const Segments& segments;
  const Left& left;
  const bool all;
  long long number;

  __device__ __forceinline__ LeftSegments(const Segments& segments_, const Left& left_, bool all_ = false)
      : segments(segments_), left(left_), all(all_), number(global_warp()) {
    skip();
  }
  __device__ __forceinline__ bool exists() const { return number < segments.count; }
  __device__ __forceinline__ void next() {
    number += stride();
    skip();
  }

 private:
  static __device__ __forceinline__ long long stride() { return (long long)gridDim.x * (blockDim.x / warp); }
  __device__ __forceinline__ void skip() {
    while (!all && exists() && !left.of_segment[number]) number += stride();
  }
};

// The products of a segment's row with others, as the kernel that left nonzeros out computed them.
template <class T>
struct Pairs {
  const T* __restrict__ other;  // (M, width)
  Slice<T> mine;

  __device__ __forceinline__ Pairs(const Segment& at, const T* own, const T* other_) : other(other_) {
    mine.load(own, at.row, Lane<T>().lane);
  }
  __device__ __forceinline__ bool is_tiny(int column) const {
    Slice<T> theirs;
    theirs.load(other, column, Lane<T>().lane);
    return !(sum_lanes<Layout<T>::lanes>(mine.dot(theirs)) >= least_product<T>);
  }
};

// E[ln θ_uk] + E[ln β_ik] of one pair into log_phi (K,), each lane its own k; the largest in all lanes.
__device__ __forceinline__ double log_phi_of(const Gamma& rows, long long row, const Gamma& columns, long long column,
                                             int in_warp, double* log_phi) {
  double top = -__longlong_as_double(0x7ff0000000000000LL);
  for (int k = in_warp; k < K; k += warp) {
    const double x = rows.log_mean(row, k) + columns.log_mean(column, k);
    log_phi[k] = x;
    top = x > top ? x : top;
  }
  return max_lanes<warp>(top);
}

// Σ_k exp(log_phi − top) of log_phi (K,), in all lanes.
__device__ __forceinline__ double sum_exp(const double* log_phi, double top, int in_warp) {
  double sum = 0;
  for (int k = in_warp; k < K; k += warp) sum += exp_nonpositive(log_phi[k] - top);
  return sum_lanes<warp>(sum);
}

}  // namespace hpf
