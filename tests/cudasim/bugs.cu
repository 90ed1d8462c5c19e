// Planted bugs, one in each kernel.  With `planted` 0 the kernel is correct; everything else is the same.

extern "C" __global__ void missing_syncthreads(const float* x,  // (64,)
                                               float* out,      // (64,)
                                               int planted) {
  __shared__ float copy[64];
  copy[threadIdx.x] = x[threadIdx.x];
  if (!planted) __syncthreads();
  out[threadIdx.x] = copy[63 - threadIdx.x];
}

// A shuffle brings all lanes together, and orders none of their memory accesses.
extern "C" __global__ void missing_syncwarp(const float* x,  // (32,)
                                            float* out,      // (32,)
                                            int planted) {
  __shared__ float copy[32];
  copy[threadIdx.x] = x[threadIdx.x];
  const float zero = __shfl_xor_sync(~0u, x[threadIdx.x], 0) - x[threadIdx.x];
  if (!planted) __syncwarp();
  out[threadIdx.x] = copy[31 - threadIdx.x] + zero;
}

// Lanes 0 to 19 exchange values, and so do lanes 20 to 31.
extern "C" __global__ void wrong_mask(const float* x,  // (32,)
                                      float* out,      // (32,)
                                      int planted) {
  const unsigned low = 0x000fffff, high = planted ? low : ~low;
  float value = x[threadIdx.x];
  if (threadIdx.x < 20) {
    value = __shfl_xor_sync(low, value, 1);
  } else {
    value = __shfl_xor_sync(high, value, 1);
  }
  out[threadIdx.x] = value;
}

// The lanes of the mask are there, but wait at the barrier.
extern "C" __global__ void mask_of_others(const float* x,  // (32,)
                                          float* out,      // (32,)
                                          int planted) {
  const unsigned low = planted ? ~0u : 0x000fffff;
  float value = x[threadIdx.x];
  if (threadIdx.x < 20) {
    value = __shfl_xor_sync(low, value, 1);
  } else {
    value = __shfl_xor_sync(0xfff00000, value, 1);
  }
  __syncthreads();
  out[threadIdx.x] = value;
}

extern "C" __global__ void divergent_barrier(const float* x,  // (64,)
                                             float* out,      // (64,)
                                             int planted) {
  if (!planted || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void barrier_after_exit(const float* x,  // (48,)
                                              int n,           // 48, with 64 threads
                                              float* out,      // (48,)
                                              int planted) {
  const int i = static_cast<int>(threadIdx.x);
  if (planted && i >= n) return;
  __syncthreads();
  if (i < n) out[i] = x[i];
}

// Half of the warp waits for the other half, which waits at the barrier.
extern "C" __global__ void deadlock(const float* x,  // (32,)
                                    float* out,      // (32,)
                                    int planted) {
  if (planted && threadIdx.x < 16) __syncwarp();
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}

// One thread sums a segment of a CSR row's nonzeros.
extern "C" __global__ void segment_off_by_one(const float* values,  // (nnz,)
                                              const int* bounds,    // (segments + 1,)
                                              float* out,           // (segments,)
                                              int planted) {
  const int segment = static_cast<int>(threadIdx.x);
  float sum = 0.0f, beyond = 0.0f;
  for (int z = bounds[segment]; z < bounds[segment + 1] + planted; ++z) {
    (z < bounds[segment + 1] ? sum : beyond) += values[z];
  }
  out[segment] = beyond == 12345.0f ? beyond : sum;
}

extern "C" __global__ void plain_add(const float* x,  // (32,)
                                     float* out,      // (1,)
                                     int planted) {
  if (planted) {
    out[0] += x[threadIdx.x];
  } else {
    atomicAdd(out, x[threadIdx.x]);
  }
}

extern "C" __global__ void misaligned_float4(const float* x,  // (132,)
                                             float* out,      // (32,)
                                             int planted) {
  const float4 four = *reinterpret_cast<const float4*>(x + planted + 4 * threadIdx.x);
  out[threadIdx.x] = four.x + four.w - 2 * planted;
}

// The last entry of a matrix (rows, k), of which x holds the last four.
extern "C" __global__ void index_overflow(const float* x,  // (4,)
                                          int rows, int k,
                                          float* out,  // (1,)
                                          int planted) {
  const long long entries = static_cast<long long>(rows) * k;
  const long long last = planted ? rows * k - 1 : entries - 1;
  out[0] = x[last - (entries - 4)];
}

// The sum runs over one entry that no thread has set.
extern "C" __global__ void uninitialised_shared(const float* x,  // (64,)
                                                float* out,      // (1,)
                                                int planted) {
  __shared__ float copy[64];
  if (threadIdx.x + planted < 64) copy[threadIdx.x + planted] = x[threadIdx.x];
  if (!planted) copy[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  if (threadIdx.x) return;
  out[0] = 0.0f;
  for (int i = 0; i < 64; ++i) out[0] += copy[i];
}

extern "C" __global__ void static_shared_overrun(const float* x,  // (32,)
                                                 float* out,      // (32,)
                                                 int planted) {
  __shared__ float copy[32];
  float* const shifted = copy + planted;
  shifted[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shifted[threadIdx.x];
}

extern "C" __global__ void dynamic_shared_overrun(const float* x,  // (32,), as is the shared memory
                                                  float* out,      // (32,)
                                                  int planted) {
  extern __shared__ float copy[];
  copy[threadIdx.x + planted] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = copy[threadIdx.x + planted];
}

// The block that is last to come sums what all have written.
extern "C" __global__ void missing_threadfence(const float* x,    // (8,), as many as blocks
                                               float* parts,      // (8,)
                                               unsigned* ticket,  // (1,), zero
                                               float* out,        // (1,)
                                               int planted) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = x[blockIdx.x];
    if (!planted) __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (!planted) __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x) return;
  out[0] = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) out[0] += parts[i];
}
