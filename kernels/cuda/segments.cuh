// The nonzeros of one side, and how warps share them.
//
// Rows are cut into segments of bounded length, a warp for each; the groups of lanes in a warp take one nonzero
// each.  Warps take segments in the order in which they are stored (backends/cuda_layout.py), which is not that of
// the rows.  A launch is for all segments of the side, or for those of one part, S and Z being those of the part.
#pragma once

#include "rows.cuh"

namespace hpf {

// As kernels get them.
struct Segments {
  const long long* begin;  // (S,) first nonzero
  const int* size;         // (S,)
  const int* row;          // (S,)
  const int* slot;         // (S,) row of `partial`, or −1 where the segment is its whole row
  const int* number;       // (S,) its number in the order of the rows, among all segments of the side
  const int* column;       // (Z,)
  const Real* value;       // (Z,)
  int count;               // S
};

// One of them.
struct Segment {
  const int* __restrict__ column;  // (size,)
  const Real* __restrict__ value;  // (size,)
  long long row;
  int size;

  __device__ __forceinline__ Segment(const Segments& all, long long number)
      : column(all.column + all.begin[number]),
        value(all.value + all.begin[number]),
        row(all.row[number]),
        size(all.size[number]) {}
};

// Where a segment's sum over its nonzeros goes.
struct Sums {
  Real* out;      // (N, width), of segments that are their whole row
  Real* partial;  // (P, width), of the others; join_segments adds them up

  template <int stride = width>
  __device__ __forceinline__ Real* row(const Segments& all, long long number) const {
    const int slot = all.slot[number];
    return slot < 0 ? out + (long long)all.row[number] * stride : partial + (long long)slot * stride;
  }
};

// Which segments have nonzeros that a kernel left to the one that follows it, which takes the long way.
struct Left {
  unsigned char* of_segment;  // (S,)
  int* any;                   // (1,), zero at first

  // Notes whether any lane of the warp left a nonzero of this segment.
  __device__ __forceinline__ void note(long long number, bool left) const {
    left = __any_sync(whole_warp, left);
    if (threadIdx.x % warp != 0) return;
    of_segment[number] = left;
    if (left) atomicExch(any, 1);
  }
};

// The columns of `Count` nonzeros of a group, from nonzero `first` on.  They are read a step ahead, so that the gather
// of rows does not wait for them.
template <class T, int Count>
struct Columns {
  int number[Count];

  // With Whole all of them exist; else the last nonzero of the segment stands in for those that do not.
  template <bool Whole>
  __device__ __forceinline__ void load(const Segment& at, int first) {
    const int* column = at.column + first;
#pragma unroll
    for (int j = 0; j < Count; ++j) {
      const int ahead = j * Layout<T>::groups;
      number[j] = __ldg(Whole || first + ahead < at.size ? column + ahead : at.column + at.size - 1);
    }
  }
};

}  // namespace hpf
