// How a row of K factors lies in memory and in the registers of a warp.
//
// One compilation serves one K and one precision, given as macros (backends/cuda_source.py):
//   HPF_K      number of factors
//   HPF_REAL   float or double: matrices and sums
//   HPF_WIDTH  numbers from one row to the next: K and zeros up to a whole number of 32-byte sectors
//   HPF_HALF   defined where exp E[ln θ] is stored in half precision
// and sizes of blocks and loops: HPF_THREADS, HPF_MIN_BLOCKS, HPF_IN_FLIGHT, HPF_JOIN_STRANDS, HPF_GAMMA_THREADS,
// HPF_TOP_ROWS and HPF_TOP_PLACES.
#pragma once

#include "nonzero.h"

#ifdef HPF_HALF
#include <cuda_fp16.h>
#endif

namespace hpf {

using Real = HPF_REAL;
#ifdef HPF_HALF
using Store = __half;
// Half precision has five bits of exponent.  Rows with a largest entry of 2^14 use all of them; φ does
// not change with the scale of a row.
constexpr Real store_scale = 16384;
#else
using Store = Real;
constexpr Real store_scale = 1;
#endif

// A product of two rows of T below this is neither divided by, nor is its logarithm taken: kernels leave it to those
// that take the long way.  Entries of half precision below 2^-14 lose bits, and below 2^-25 everything; of a product
// above 1e-8 of the largest possible, less than one rounding error of half precision is lost that way.
template <class T>
constexpr Real least_product = sizeof(T) == 2 ? Real(1e-8) * store_scale * store_scale : tiny_product<Real>;

constexpr int K = HPF_K, width = HPF_WIDTH;
constexpr int warp = 32;
constexpr unsigned whole_warp = 0xffffffffu;

// Lanes that hold a row of so many pieces: up to four pieces a lane, eight lanes (a whole cache line) at least.
constexpr int lanes_for(int pieces, int lanes = 1) {
  return lanes == warp || lanes >= pieces || (lanes >= 8 && lanes * 4 >= pieces) ? lanes : lanes_for(pieces, 2 * lanes);
}

// A row of T in 16-byte pieces.  Lane l of a group has the pieces l, l + lanes, ...; the other groups
// of the warp hold other rows.
template <class T>
struct Layout {
  static constexpr int size = 16 / sizeof(T);  // numbers in a piece
  static constexpr int pieces = width / size;
  static constexpr int lanes = lanes_for(pieces);
  static constexpr int groups = warp / lanes;
  static constexpr int per_lane = (pieces + lanes - 1) / lanes;
};

template <class T>
struct alignas(16) Piece {
  T item[16 / sizeof(T)];
};

__device__ __forceinline__ Real as_real(Real x) {
  return x;
}
#ifdef HPF_HALF
__device__ __forceinline__ Real as_real(__half x) {
  return __half2float(x);
}
#endif

__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

// What one lane holds of a row.
template <class T>
struct Slice {
  using L = Layout<T>;
  static constexpr int registers = L::per_lane * L::size * sizeof(Real) / 4;
  Real item[L::per_lane][L::size];

  // Whether piece p of this lane exists: the last ones of a row may not.
  static __device__ __forceinline__ bool has(int lane, int p) {
    return (p + 1) * L::lanes <= L::pieces || p * L::lanes + lane < L::pieces;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int p = 0; p < L::per_lane; ++p)
#pragma unroll
      for (int i = 0; i < L::size; ++i) item[p][i] = 0;
  }

  // From a matrix (N, width).
  __device__ __forceinline__ void load(const T* __restrict__ matrix, long long row, int lane) {
    const Piece<T>* pieces = reinterpret_cast<const Piece<T>*>(matrix + row * width) + lane;
    clear();
#pragma unroll
    for (int p = 0; p < L::per_lane; ++p)
      if (has(lane, p)) {
        const Piece<T> piece = pieces[p * L::lanes];
#pragma unroll
        for (int i = 0; i < L::size; ++i) item[p][i] = as_real(piece.item[i]);
      }
  }

  // To a row (width,), as numbers of type Real, whatever T is.
  __device__ __forceinline__ void store(Real* row, int lane) const {
    constexpr int size = 16 / sizeof(Real);
#pragma unroll
    for (int p = 0; p < L::per_lane; ++p)
      if (has(lane, p)) {
        Real* target = row + (p * L::lanes + lane) * L::size;
#pragma unroll
        for (int first = 0; first < L::size; first += size) {
          Piece<Real> piece;
#pragma unroll
          for (int i = 0; i < size; ++i) piece.item[i] = item[p][first + i];
          *reinterpret_cast<Piece<Real>*>(target + first) = piece;
        }
      }
  }

  // This lane's part of the product of two rows.  Every rounding is spelled out, so that all kernels
  // get the same bits and agree on which products underflow.
  __device__ __forceinline__ Real dot(const Slice& other) const {
    Real sum = 0;
#pragma unroll
    for (int p = 0; p < L::per_lane; ++p)
#pragma unroll
      for (int i = 0; i < L::size; ++i) sum = multiply_add(item[p][i], other.item[p][i], sum);
    return sum;
  }

  __device__ __forceinline__ void add(Real weight, const Slice& other) {
#pragma unroll
    for (int p = 0; p < L::per_lane; ++p)
#pragma unroll
      for (int i = 0; i < L::size; ++i) item[p][i] = multiply_add(weight, other.item[p][i], item[p][i]);
  }

  __device__ __forceinline__ void multiply(const Slice& other) {
#pragma unroll
    for (int p = 0; p < L::per_lane; ++p)
#pragma unroll
      for (int i = 0; i < L::size; ++i) item[p][i] *= other.item[p][i];
  }

  // Σ over the groups of the warp, in all of them.
  __device__ __forceinline__ void add_groups() {
#pragma unroll
    for (int step = L::lanes; step < warp; step *= 2)
#pragma unroll
      for (int p = 0; p < L::per_lane; ++p)
#pragma unroll
        for (int i = 0; i < L::size; ++i) item[p][i] += __shfl_xor_sync(whole_warp, item[p][i], step);
  }
};

__device__ __forceinline__ long long global_warp() {
  return (long long)blockIdx.x * (blockDim.x / warp) + threadIdx.x / warp;
}

// Where this thread is: its place in the warp, the group of lanes that shares a row of T, its place in the group.
template <class T>
struct Lane {
  int in_warp = threadIdx.x % warp, lane = in_warp % Layout<T>::lanes, group = in_warp / Layout<T>::lanes;
};

// Σ over groups of `lanes` lanes, in all of them; the whole warp takes part.
template <int lanes, class T>
__device__ __forceinline__ T sum_lanes(T value) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(whole_warp, value, step);
  return value;
}

// What sum_lanes gives for each of the values (Count,), bit by bit, with fewer shuffles: while a lane has several
// values, it gives half of them away and gets its partner's part of the others.  Four lanes with four values each,
// where a2 is lane a's part of sum 2 and ab2 that of lanes a and b:
//
//            lane a             lane b             lane c             lane d
//   before   a0 a1 a2 a3        b0 b1 b2 b3        c0 c1 c2 c3        d0 d1 d2 d3
//   step 2   ac0 ac1            bd0 bd1            ac2 ac3            bd2 bd3
//   step 1   abcd0              abcd1              abcd2              abcd3
//
// So the sums end up spread over the lanes: `kept` of them in a lane (more than one where there are more values than
// lanes), the same ones in `sharers` lanes side by side (more than one where there are fewer).
template <int lanes, int Count>
struct LaneSums {
  static constexpr int kept = Count > lanes ? Count / lanes : 1;
  static constexpr int sharers = Count < lanes ? lanes / Count : 1;

  // The first of the values whose sums this lane gets.
  static __device__ __forceinline__ int first(int lane) { return lane / sharers * kept; }

  template <class T>
  static __device__ __forceinline__ void reduce(T (&value)[Count], int lane) {
#pragma unroll
    for (int step = lanes / 2, half = Count / 2; step > 0; step /= 2, half /= 2) {
      const bool upper = lane & step;
#pragma unroll
      for (int j = 0; j < half; ++j) {
        const T given = upper ? value[j] : value[j + half];
        value[j] = (upper ? value[j + half] : value[j]) + __shfl_xor_sync(whole_warp, given, step);
      }
      if (half == 0) value[0] += __shfl_xor_sync(whole_warp, value[0], step);
    }
  }

  // Number j, in all lanes, of numbers that are spread like the sums.
  template <class T>
  static __device__ __forceinline__ T get(const T (&spread)[kept], int j) {
    return Count == 1 ? spread[0] : __shfl_sync(whole_warp, spread[j % kept], j / kept * sharers, lanes);
  }
};

template <int lanes>
__device__ __forceinline__ double max_lanes(double value) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(whole_warp, value, step);
    value = other > value ? other : value;
  }
  return value;
}

__device__ __forceinline__ float quotient(float y, float x) {
  return __fdividef(y, x);  // two units in the last place; x is far below 2^126
}
__device__ __forceinline__ double quotient(double y, double x) {
  return y * __drcp_rn(x);  // one more rounding than y / x, and no call of a subroutine
}

// Shapes and rates of one side, as kernels get them.  Rates are sums of rows and columns; start values come as a
// whole matrix.  `stride` is the width of a side that has other columns than the K factors.
struct Gamma {
  const Real* shape;           // (N, width)
  const double* rate_rows;     // (N,), or null
  const Real* rate_matrix;     // (N, width), where rate_rows is null
  const double* rate_columns;  // (K,)
  double temperature;          // T

  template <int stride = width>
  __device__ __forceinline__ double rate(long long row, int k) const {
    return (rate_rows ? rate_rows[row] : double(rate_matrix[row * stride + k])) + rate_columns[k];
  }
  // E[ln θ]/T.
  template <int stride = width>
  __device__ __forceinline__ double log_mean(long long row, int k) const {
    return expected_log(double(shape[row * stride + k]), rate<stride>(row, k)) / temperature;
  }
};

}  // namespace hpf
