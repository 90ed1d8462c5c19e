// The best columns of each row by θ·β, and what neighbours add, without ever holding all scores.
//
// A block takes a few rows and goes over all columns.  Columns that beat the worst of the best so far
// are collected; when there is no room for another step, the collection is sorted and cut.
#include "rows.cuh"

using namespace hpf;

constexpr int top_threads = HPF_TOP_PLACES;  // also columns in a step
constexpr int top_room = 2 * top_threads;    // of a row's collection: the best, and one step
constexpr int top_rows = HPF_TOP_ROWS;

__device__ __forceinline__ bool before(Real score, int column, Real other_score, int other_column) {
  return score > other_score || (score == other_score && column < other_column);
}

// Bitonic sort of one collection, scores and columns (top_room,), by the whole block, best first.
__device__ __forceinline__ void sort_collection(Real* score, int* column) {
  for (int size = 2; size <= top_room; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      const int low = 2 * threadIdx.x - (threadIdx.x & (step - 1)), high = low + step;
      const bool descending = (low & size) == 0;
      if (before(score[high], column[high], score[low], column[low]) == descending) {
        const Real s = score[low];
        const int c = column[low];
        score[low] = score[high];
        column[low] = column[high];
        score[high] = s;
        column[high] = c;
      }
    }
  __syncthreads();
}

// Whether `sorted` (last,) has the column from `first` on.
__device__ __forceinline__ bool contains(const int* __restrict__ sorted, long long first, long long last, int wanted) {
  while (first < last) {
    const long long middle = (first + last) / 2;
    if (sorted[middle] < wanted)
      first = middle + 1;
    else if (sorted[middle] > wanted)
      last = middle;
    else
      return true;
  }
  return false;
}

// Places `first` to `first + count` of each row's ranking; those before are there already.
extern "C" __global__ void __launch_bounds__(top_threads, 1)
    top_items(const Real* __restrict__ theta,   // (N, width)
              const Real* __restrict__ beta,    // (M, width)
              int rows,                         // N
              int columns,                      // M
              const Real* added,                // (N, M) to the scores, or null
              const long long* exclude_begin,   // (N + 1,), or null
              const int* __restrict__ exclude,  // sorted columns to leave out, by rows
              int first,
              int count,              // at most top_threads
              int places,             // P
              long long* out_column,  // (N, P), −1 where nothing is left
              Real* out_score) {      // (N, P), −∞ there
  __shared__ Real score[top_rows][top_room];
  __shared__ int column[top_rows][top_room], held[top_rows];
  __shared__ Real worst_score[top_rows];
  __shared__ int worst_column[top_rows];
  const Real infinity = Real(__int_as_float(0x7f800000));
  const int first_row = blockIdx.x * top_rows;
  const int row_count = rows - first_row < top_rows ? rows - first_row : top_rows;
  // What comes after the last place that is filled already, and whether there is anything.
  Real last_score[top_rows];
  int last_column[top_rows];
#pragma unroll
  for (int r = 0; r < top_rows; ++r) {
    last_score[r] = infinity;
    last_column[r] = -1;
    if (first > 0 && r < row_count) {
      const long long at = (long long)(first_row + r) * places + first - 1;
      last_score[r] = out_score[at];
      last_column[r] = int(out_column[at]);
    }
  }
  if (threadIdx.x < top_rows) {
    held[threadIdx.x] = 0;
    worst_score[threadIdx.x] = -infinity;
    worst_column[threadIdx.x] = 0;
  }
  __syncthreads();

  for (int start = 0; start < columns; start += top_threads) {
    const int c = start + threadIdx.x;
    if (c < columns) {
      Real sum[top_rows] = {};
      constexpr int size = 16 / sizeof(Real);
      const Piece<Real>* items = reinterpret_cast<const Piece<Real>*>(beta + (long long)c * width);
#pragma unroll 2
      for (int p = 0; p < width / size; ++p) {
        const Piece<Real> item = items[p];
#pragma unroll
        for (int r = 0; r < top_rows; ++r) {
          const long long row = first_row + (r < row_count ? r : 0);
          const Piece<Real> user = *(reinterpret_cast<const Piece<Real>*>(theta + row * width) + p);
#pragma unroll
          for (int i = 0; i < size; ++i) sum[r] = multiply_add(user.item[i], item.item[i], sum[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < top_rows; ++r) {
        if (added && r < row_count) sum[r] += added[(long long)(first_row + r) * columns + c];
        if (r >= row_count || !before(sum[r], c, worst_score[r], worst_column[r])) continue;
        if (!before(last_score[r], last_column[r], sum[r], c)) continue;
        const int row = first_row + r;
        if (exclude_begin && contains(exclude, exclude_begin[row], exclude_begin[row + 1], c)) continue;
        const int at = atomicAdd(&held[r], 1);
        score[r][at] = sum[r];
        column[r][at] = c;
      }
    }
    __syncthreads();
    const bool last = start + top_threads >= columns;
    for (int r = 0; r < row_count; ++r) {
      const int had = held[r];  // the same in all threads: nobody writes before the next barrier
      if (had <= top_threads && !last) continue;
      for (int i = had + threadIdx.x; i < top_room; i += top_threads) {
        score[r][i] = -infinity;
        column[r][i] = 0x7fffffff;
      }
      sort_collection(score[r], column[r]);
      if (threadIdx.x == 0) {
        held[r] = had < count ? had : count;
        if (had >= count) {
          worst_score[r] = score[r][count - 1];
          worst_column[r] = column[r][count - 1];
        }
      }
    }
    __syncthreads();
  }

  for (int r = 0; r < row_count; ++r)
    for (int i = threadIdx.x; i < count; i += top_threads) {
      const long long at = (long long)(first_row + r) * places + first + i;
      const bool found = i < held[r];
      out_column[at] = found ? column[r][i] : -1;
      out_score[at] = found ? score[r][i] : -infinity;
    }
}
