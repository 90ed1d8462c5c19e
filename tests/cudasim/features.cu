// Correct kernels that use all of CUDA that the simulator has.  REAL and K are compiler options.
#include <cuda_fp16.h>

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// out += A·B, a warp for each segment of a row of A and a lane for each column of B.
extern "C" __global__ void __launch_bounds__(4 * 32) csr_times_dense(const int* __restrict__ rows,  // (segments,)
                                                                     const long long* bounds,       // (segments + 1,)
                                                                     int segments, const int* columns,  // (nnz,)
                                                                     const REAL* values,                // (nnz,)
                                                                     const REAL* dense,                 // (M, K)
                                                                     REAL* out) {                       // (N, K)
  const int segment = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / warpSize);
  const int lane = static_cast<int>(threadIdx.x) % warpSize;
  if (segment >= segments) return;
  REAL sum = 0;
  for (long long z = bounds[segment]; z < bounds[segment + 1]; ++z) {
    if (lane < K) sum = fma(__ldg(values + z), dense[static_cast<size_t>(columns[z]) * K + lane], sum);
  }
  if (lane < K) atomicAdd(out + static_cast<size_t>(rows[segment]) * K + lane, sum);
}

// Sums of the columns of a matrix (rows, 4), halved: dynamic and static shared memory, vector loads, halves.
extern "C" __global__ void column_sums(const float* x,  // (rows, 4)
                                       int rows,
                                       __half* half_sums,  // (4,)
                                       float* sums) {      // (4,)
  extern __shared__ float4 partial[];                      // (blockDim.x,)
  __shared__ float total[4];
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += static_cast<int>(blockDim.x)) {
    const float4 four = reinterpret_cast<const float4*>(x)[row];
    sum = make_float4(sum.x + four.x, sum.y + four.y, sum.z + four.z, sum.w + four.w);
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < 4) {
    const float* const column = reinterpret_cast<const float*>(partial) + threadIdx.x;
    total[threadIdx.x] = 0.0f;
    for (unsigned i = 0; i < blockDim.x; ++i) total[threadIdx.x] += column[4 * i];
    sums[threadIdx.x] = total[threadIdx.x];
  }
  __syncthreads();
  if (threadIdx.x) return;
  __half2* const pairs = reinterpret_cast<__half2*>(half_sums);
  for (int i = 0; i < 2; ++i) pairs[i] = __floats2half2_rn(0.5f * total[2 * i], 0.5f * total[2 * i + 1]);
}

// What each lane of a warp gets from the collectives.
extern "C" __global__ void collectives(const int* x,      // (32,)
                                       long long* out) {  // (10, 32)
  const int lane = static_cast<int>(threadIdx.x), value = x[lane];
  const auto put = [&](int row, long long result) { out[32 * row + lane] = result; };
  put(0, __shfl_sync(~0u, value, lane + 1));
  put(1, __shfl_up_sync(~0u, value, 3));
  put(2, __shfl_down_sync(~0u, value, 3, 8));
  put(3, __shfl_xor_sync(~0u, value, 5));
  put(4, __ballot_sync(~0u, value & 1));
  put(5, __any_sync(~0u, value == 7));
  put(6, __all_sync(~0u, value >= 0));
  put(7, __match_any_sync(~0u, value % 4));
  put(8, warp_sum(value));
  if (lane < 8) put(9, __shfl_xor_sync(0xff, value, 7));
}

extern "C" __global__ void atomics(const int* x,             // (n,), n threads
                                   int* extremes,            // (2,)
                                   unsigned* count,          // (1,)
                                   unsigned long long* big,  // (1,)
                                   double* sum,              // (1,)
                                   unsigned* order) {        // (n,)
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicMin(extremes, x[i]);
  atomicMax(extremes + 1, x[i]);
  order[atomicAdd(count, 1u)] = i;
  atomicAdd(big, 1ull << 33);
  // As it was done before there was an atomicAdd for doubles.
  unsigned long long* const bits = reinterpret_cast<unsigned long long*>(sum);
  unsigned long long seen = *bits, expected;
  do {
    expected = seen;
    seen = atomicCAS(bits, expected, __double_as_longlong(x[i] + __longlong_as_double(expected)));
  } while (seen != expected);
}

extern "C" __global__ void arithmetic(const float* x,  // (n,), n threads
                                      float* out) {    // (6, n)
  const unsigned i = threadIdx.x, n = blockDim.x;
  out[i] = __fdividef(8.0f, x[i]);
  out[n + i] = __frcp_rn(x[i]);
  out[2 * n + i] = fmaf(x[i], x[i], 1.0f);
  out[3 * n + i] = sqrtf(x[i]) + fminf(x[i], 2.0f);
  out[4 * n + i] = expf(-x[i]) + logf(x[i]);
  out[5 * n + i] = __half2float(__float2half(x[i]));
}
