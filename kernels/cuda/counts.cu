// What counts need once, whatever the number of factors.
//
// The same nonzeros by columns: a stable counting sort, so that the order never depends on chance.
//
// Segments, here in the order of their rows, are handed to C strands in order.  Each counts its columns; the running
// sum over columns, and within a column over strands, is where each strand writes.
#include "segments.cuh"

using namespace hpf;

__device__ __forceinline__ int strand_begin(int strand, int strands, int segments) {
  return int((long long)segments * strand / strands);
}

// Also notes whether any column is out of range; those are not counted.
extern "C" __global__ void __launch_bounds__(256, 1) count_columns(const long long* segment_begin,  // (S + 1,)
                                                                   int segments,                    // S
                                                                   const int* column,               // (Z,)
                                                                   int columns,                     // M
                                                                   unsigned* counts,                // (M, C)
                                                                   int* out_of_range) {             // (1,)
  const int strand = blockIdx.x, strands = gridDim.x;
  const long long last = segment_begin[strand_begin(strand + 1, strands, segments)];
  for (long long z = segment_begin[strand_begin(strand, strands, segments)] + threadIdx.x; z < last; z += blockDim.x) {
    const int c = column[z];
    if (c < 0 || c >= columns)
      atomicExch(out_of_range, 1);
    else
      atomicAdd(counts + (long long)c * strands + strand, 1u);
  }
}

// One warp a strand: it alone moves its places forward.
extern "C" __global__ void __launch_bounds__(32, 1)
    scatter(const long long* segment_begin,  // (S + 1,)
            const int* segment_row,          // (S,), or null where every nonzero has a row of its own
            int segments,                    // S
            const int* column,               // (Z,)
            const Real* value,               // (Z,)
            const int* row,                  // (Z,), or null
            long long* place,                // (M, C) where the next nonzero goes
            int* out_row,                    // (Z,)
            Real* out_value) {               // (Z,)
  const int strand = blockIdx.x, strands = gridDim.x, lane = threadIdx.x;
  const int last = strand_begin(strand + 1, strands, segments);
  for (int segment = strand_begin(strand, strands, segments); segment < last; ++segment) {
    const long long end = segment_begin[segment + 1];
    for (long long first = segment_begin[segment]; first < end; first += warp) {
      const long long z = first + lane;
      const int c = z < end ? column[z] : -1 - lane;  // a column of its own
      const unsigned same = __match_any_sync(whole_warp, c);
      const int leader = __ffs(int(same)) - 1;
      long long at = 0;
      if (lane == leader && z < end) {
        at = place[(long long)c * strands + strand];
        place[(long long)c * strands + strand] = at + __popc(same);
      }
      at = __shfl_sync(whole_warp, at, leader) + __popc(same & ((1u << lane) - 1));
      if (z < end) {
        out_row[at] = row ? row[z] : segment_row[segment];
        out_value[at] = value[z];
      }
      __syncwarp();  // the next leader may be another lane
    }
  }
}

// The sum of each run of values, in order.
extern "C" __global__ void __launch_bounds__(256, 1) sum_runs(const long long* begin,  // (R + 1,)
                                                              long long runs,          // R
                                                              const Real* value,       // (Z,)
                                                              Real* out) {             // (R,)
  const long long r = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= runs) return;
  double sum = 0;
  for (long long z = begin[r]; z < begin[r + 1]; ++z) sum += double(value[z]);
  out[r] = Real(sum);
}

// A part of streamed counts as the other kernels take it, from the narrow form in which it came: of the sources of
// columns and of values all but one are null.
extern "C" __global__ void __launch_bounds__(256, 1) widen(const unsigned short* column16,  // (Z,)
                                                           const int* column32,             // (Z,)
                                                           const unsigned char* value8,     // (Z,)
                                                           const unsigned short* value16,   // (Z,)
                                                           const Real* value_as_is,         // (Z,)
                                                           long long nnz,                   // Z
                                                           int* column,                     // (Z,)
                                                           Real* value) {                   // (Z,)
  const long long z = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (z >= nnz) return;
  column[z] = column16 ? int(column16[z]) : column32[z];
  value[z] = value8 ? Real(value8[z]) : value16 ? Real(value16[z]) : value_as_is[z];
}

// Σ ln y! over each segment.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1) log_factorial_sums(Segments segments,
                                                                                double* out) {  // by number
  const long long number = global_warp();
  if (number >= segments.count) return;
  const Segment at(segments, number);
  const int lane = threadIdx.x % warp;
  double sum = 0;
  for (int z = lane; z < at.size; z += warp) sum += log_gamma(double(at.value[z]) + 1.0);
  sum = sum_lanes<warp>(sum);
  if (lane == 0) out[segments.number[number]] = sum;
}
