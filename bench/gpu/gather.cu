// Rows of a table, read by column numbers and summed: what a kernel that reads them can reach at best.
//
// Compiled for one row of ROW_BYTES, a multiple of 16 up to 512, and one number of loads IN_FLIGHT.
constexpr int warp = 32, threads = 128, chunk = 256;  // nonzeros of a warp
constexpr int lanes = ROW_BYTES / 16, groups = warp / lanes;

extern "C" __global__ void __launch_bounds__(threads) gather(const void* __restrict__ table,  // (M, ROW_BYTES)
                                                             const int* __restrict__ column,  // (Z,)
                                                             long long nonzeros,              // Z
                                                             float* out) {                    // (warps, 32)
  const long long thread = (long long)blockIdx.x * threads + threadIdx.x;
  const long long begin = thread / warp * chunk, end = begin + chunk < nonzeros ? begin + chunk : nonzeros;
  const int lane = threadIdx.x % warp % lanes, group = threadIdx.x % warp / lanes;
  if (begin >= nonzeros || group >= groups) return;
  const float4* pieces = static_cast<const float4*>(table) + lane;

  float sum = 0;
  long long z = begin + group;
  for (; z + (IN_FLIGHT - 1) * groups < end; z += IN_FLIGHT * groups) {
    float4 piece[IN_FLIGHT];
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; ++j) piece[j] = pieces[(long long)column[z + j * groups] * lanes];
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; ++j) sum += (piece[j].x + piece[j].y) + (piece[j].z + piece[j].w);
  }
  for (; z < end; z += groups) {
    const float4 piece = pieces[(long long)column[z] * lanes];
    sum += (piece.x + piece.y) + (piece.z + piece.w);
  }
  out[thread] = sum;
}
