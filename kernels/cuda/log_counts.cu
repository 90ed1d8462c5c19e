// Products of ln(1 + y) and a matrix, for start values.
#include "join.cuh"

using namespace hpf;

// s Σ ln(1 + y) x over the nonzeros of each row, with the rows x of their columns.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    log_count_products(Segments segments,
                       const Real* __restrict__ x,  // (M, width)
                       const double* scale,         // (N,)
                       Sums sums) {
  using L = Layout<Real>;
  const long long number = global_warp();
  if (number >= segments.count) return;
  const Segment at(segments, number);
  const Lane<Real> me;
  const double own_scale = scale[at.row];
  Slice<Real> sum, row;
  sum.clear();
  for (int first = 0; first < at.size; first += warp) {
    // A lane has the weight of one nonzero; the groups then take one each.
    const int z = first + me.in_warp;
    const int own_column = at.column[z < at.size ? z : at.size - 1];
    const Real own_weight = z < at.size ? Real(own_scale * log_one_plus(double(at.value[z]))) : Real(0);
    for (int step = 0; step < warp && first + step < at.size; step += L::groups) {
      const int column = __shfl_sync(whole_warp, own_column, step + me.group);
      const Real weight = __shfl_sync(whole_warp, own_weight, step + me.group);
      row.load(x, column, me.lane);
      sum.add(weight, row);
    }
  }
  sum.add_groups();
  if (me.group == 0) sum.store(sums.row(segments, number), me.lane);
}

// join_segments for products.
extern "C" __global__ void __launch_bounds__(HPF_JOIN_STRANDS * 32, 1)
    join_products(const int* row,         // (L,) rows of several segments
                  const int* first_slot,  // (L + 1,) where their parts begin
                  const Real* partial,    // (P, width)
                  Real* out) {            // (N, width)
  __shared__ SumOfStrand sums;
  join<width>(row, first_slot, partial, false, out, sums);
}
