// Σ_i y_ui φ_uik for one side.  A segment that is its whole row writes the result; the others write to `partial`,
// which join_segments adds up in order.  So no sum depends on chance.
#include "exact.cuh"
#include "join.cuh"

using namespace hpf;

using Own = Slice<Store>;

// Adds y/(U·V) V of `Count` nonzeros for every group; with Whole all of them exist, else only those before the
// segment's end.  Each lane has the value and the weight of its share of the nonzeros.
template <int Count, bool Whole>
__device__ __forceinline__ void add_nonzeros(const Segment& at, const Columns<Store, Count>& columns, int first,
                                             const Own& own,
                                             const Store* __restrict__ other,  // (M, width)
                                             int lane, Own& sum, bool& left) {
  using L = Layout<Store>;
  using Sums = LaneSums<L::lanes, Count>;
  Own row[Count];
  Real product[Count], weight[Sums::kept];
#pragma unroll
  for (int j = 0; j < Count; ++j) row[j].load(other, columns.number[j], lane);
#pragma unroll
  for (int i = 0; i < Sums::kept; ++i) {
    const int z = first + (Sums::first(lane) + i) * L::groups;
    weight[i] = Whole || z < at.size ? __ldg(at.value + z) : Real(0);
  }
#pragma unroll
  for (int j = 0; j < Count; ++j) product[j] = own.dot(row[j]);
  Sums::reduce(product, lane);
#pragma unroll
  for (int i = 0; i < Sums::kept; ++i) {
    const bool tiny = !(product[i] >= least_product<Store>);
    left |= tiny && weight[i] > Real(0);
    weight[i] = tiny ? Real(0) : quotient(weight[i], product[i]);
  }
#pragma unroll
  for (int j = 0; j < Count; ++j) sum.add(Sums::get(weight, j), row[j]);
}

// Nonzeros of a group in flight: enough loads to hide their latency, few enough to stay in registers.
constexpr int in_flight = HPF_IN_FLIGHT ? HPF_IN_FLIGHT : Own::registers <= 8 ? 4 : Own::registers <= 16 ? 2 : 1;

// Blocks on a multiprocessor, for which the compiler keeps registers free.  From compute capability 10.0 on it needs
// more of them in double.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int usual_blocks = sizeof(Real) == 8 ? 4 : 5;
#else
constexpr int usual_blocks = 5;
#endif
constexpr int min_blocks = HPF_MIN_BLOCKS ? HPF_MIN_BLOCKS : usual_blocks;

extern "C" __global__ void __launch_bounds__(HPF_THREADS, min_blocks)
    allocate(Segments segments,
             const Store* __restrict__ own,    // (N, width) exp E[ln] of the rows
             const Store* __restrict__ other,  // (M, width) of the columns
             Sums sums,
             Left left) {  // to allocate_exactly
  constexpr int step = in_flight * Layout<Store>::groups;
  const long long number = global_warp();
  if (number >= segments.count) return;
  const Segment at(segments, number);
  const Lane<Store> me;

  Own mine, sum;
  mine.load(own, at.row, me.lane);
  sum.clear();
  bool tiny = false;
  if (at.size > 0) {
    int z = 0;  // of the first group
    Columns<Store, in_flight> columns, next;
    columns.load<false>(at, me.group);
    for (; z + 2 * step <= at.size; z += step) {
      next.load<true>(at, z + step + me.group);
      add_nonzeros<in_flight, true>(at, columns, z + me.group, mine, other, me.lane, sum, tiny);
      columns = next;
    }
    for (; z < at.size; z += step) {
      next.load<false>(at, z + step + me.group);
      add_nonzeros<in_flight, false>(at, columns, z + me.group, mine, other, me.lane, sum, tiny);
      columns = next;
    }
  }
  sum.add_groups();
  sum.multiply(mine);
  if (me.group == 0) sum.store(sums.row(segments, number), me.lane);
  left.note(number, tiny);
}

// The nonzeros that `allocate` or `weigh` left out, or all, by the max-shifted log-sum-exp in double.
extern "C" __global__ void __launch_bounds__(exact_threads, 1)
    allocate_exactly(Segments segments,
                     const Store* __restrict__ own,    // (N, width)
                     const Store* __restrict__ other,  // (M, width)
                     Gamma rows, Gamma columns,
                     int all,  // whether `left` is not looked at: all nonzeros, and the sums are overwritten
                     Left left, Sums sums) {
  if (!all && *left.any == 0) return;
  __shared__ double log_phi_of_warp[exact_warps][K], total_of_warp[exact_warps][K];
  double *log_phi = log_phi_of_warp[threadIdx.x / warp], *total = total_of_warp[threadIdx.x / warp];
  const int in_warp = threadIdx.x % warp;

  for (LeftSegments at(segments, left, all); at.exists(); at.next()) {
    const Segment segment(segments, at.number);
    const Pairs<Store> pairs(segment, own, other);
    for (int k = in_warp; k < K; k += warp) total[k] = 0;
    for (int z = 0; z < segment.size; ++z) {
      const int column = segment.column[z];
      if (!all && !pairs.is_tiny(column)) continue;
      const double top = log_phi_of(rows, segment.row, columns, column, in_warp, log_phi);
      const double share = double(segment.value[z]) / sum_exp(log_phi, top, in_warp);
      for (int k = in_warp; k < K; k += warp) total[k] += share * exp_nonpositive(log_phi[k] - top);
    }
    Real* target = sums.row(segments, at.number);
    for (int k = in_warp; k < width; k += warp) {
      const Real sum = k < K ? Real(total[k]) : Real(0);
      target[k] = all ? sum : target[k] + sum;
    }
  }
}

extern "C" __global__ void __launch_bounds__(HPF_JOIN_STRANDS * 32, 1)
    join_segments(const int* row,         // (L,) rows of several segments
                  const int* first_slot,  // (L + 1,) where their parts begin
                  const Real* partial,    // (P, width)
                  int add,                // whether to add to what is there
                  Real* out) {            // (N, width)
  __shared__ SumOfStrand sums;
  join<width>(row, first_slot, partial, add, out, sums);
}
