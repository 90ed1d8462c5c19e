// The weights y/(U·V) alone: with them, Σ y φ is two sparse products, which allocate="cusparse" leaves to cuSPARSE.
#include "segments.cuh"

using namespace hpf;

extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    weigh(Segments segments,
          const Store* __restrict__ own,    // (N, width) exp E[ln] of the rows
          const Store* __restrict__ other,  // (M, width) of the columns
          Real* weight,                     // (Z,)
          Left left) {                      // to allocate_exactly
  using L = Layout<Store>;
  const long long number = global_warp();
  if (number >= segments.count) return;
  const Segment at(segments, number);
  const Lane<Store> me;
  Slice<Store> mine, theirs;
  mine.load(own, at.row, me.lane);
  bool any = false;
  for (int first = 0; first < at.size; first += L::groups) {
    const int z = first + me.group;
    theirs.load(other, at.column[z < at.size ? z : at.size - 1], me.lane);
    const Real product = sum_lanes<L::lanes>(mine.dot(theirs));
    const bool tiny = !(product >= least_product<Store>);
    if (z < at.size && me.lane == 0)
      weight[segments.begin[number] + z] = tiny ? Real(0) : quotient(at.value[z], product);
    any |= tiny && z < at.size;
  }
  left.note(number, any);
}
