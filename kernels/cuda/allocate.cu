// Σ_i y_ui φ_uik for one side, and what the likelihoods take from the nonzeros.
//
// Rows are cut into segments of bounded length, a warp for each; the groups of lanes in a warp take one
// nonzero each.  A segment that is its whole row writes the result; the others write to `partial`, which
// join_segments adds up in order.  So no sum depends on chance.
#include "rows.cuh"

using namespace hpf;

using Own = Slice<Store>;

// The nonzeros of one side by rows, in segments.
struct Segments {
  const long long* __restrict__ begin;  // (S + 1,)
  const int* __restrict__ row;          // (S,)
  const int* __restrict__ slot;         // (S,) row of `partial`, or −1 where the segment is its whole row
  const int* __restrict__ column;       // (Z,)
  const Real* __restrict__ value;       // (Z,)
};

// Adds y/(U·V) V of `Count` nonzeros for every group; with Whole all of them exist, else only those before
// `size`.  Each lane has the value and the weight of its share of the nonzeros.
template <int Count, bool Whole>
__device__ __forceinline__ void add_nonzeros(const int* __restrict__ column,  // (size,)
                                             const Real* __restrict__ value,  // (size,)
                                             int first, int size, const Own& own,
                                             const Store* __restrict__ other,  // (M, width)
                                             int lane, Own& sum, bool& underflowed) {
  using L = Layout<Store>;
  using Sums = LaneSums<L::lanes, Count>;
  // The last nonzero stands in for those that do not exist, with y = 0.
  const auto place = [&](int j) {
    const int z = first + j * L::groups;
    return Whole || z < size ? z : size - 1;
  };
  Own row[Count];
  Real product[Count], weight[Sums::kept];
#pragma unroll
  for (int j = 0; j < Count; ++j) row[j].load(other, column[place(j)], lane);
#pragma unroll
  for (int i = 0; i < Sums::kept; ++i) {
    const int j = Sums::first(lane) + i;
    weight[i] = Whole || first + j * L::groups < size ? value[place(j)] : Real(0);
  }
#pragma unroll
  for (int j = 0; j < Count; ++j) product[j] = own.dot(row[j]);
  Sums::reduce(product, lane);
#pragma unroll
  for (int i = 0; i < Sums::kept; ++i) {
    const bool tiny = !(product[i] >= tiny_stored_product);
    underflowed |= tiny && weight[i] > Real(0);
    weight[i] = tiny ? Real(0) : quotient(weight[i], product[i]);
  }
#pragma unroll
  for (int j = 0; j < Count; ++j) sum.add(Sums::get(weight, j), row[j]);
}

// Nonzeros of a group in flight: enough loads to hide their latency, few enough to stay in registers.
constexpr int row_registers = Own::L::per_lane * Own::L::size * sizeof(Real) / 4;
constexpr int in_flight = row_registers <= 8 ? 4 : row_registers <= 16 ? 2 : 1;

extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    allocate(const long long* segment_begin,   // (S + 1,)
             const int* segment_row,           // (S,)
             const int* segment_slot,          // (S,)
             int segments,                     // S
             const int* column,                // (Z,)
             const Real* value,                // (Z,)
             const Store* __restrict__ own,    // (N, width) exp E[ln] of the rows
             const Store* __restrict__ other,  // (M, width) of the columns
             Real* out,                        // (N, width)
             Real* partial,                    // (P, width)
             unsigned char* underflowed,       // (S,) whether a nonzero was left to allocate_exactly
             int* any_underflowed) {           // (1,)
  using L = Layout<Store>;
  const Segments at{segment_begin, segment_row, segment_slot, column, value};
  const long long segment = global_warp();
  if (segment >= segments) return;
  const int in_warp = threadIdx.x % warp, lane = in_warp % L::lanes, group = in_warp / L::lanes;
  const long long begin = at.begin[segment], row = at.row[segment];
  const int size = int(at.begin[segment + 1] - begin);
  const int* columns = at.column + begin;
  const Real* values = at.value + begin;

  Own mine, sum;
  mine.load(own, row, lane);
  sum.clear();
  bool tiny = false;
  int z = 0;
  for (; z + in_flight * L::groups <= size; z += in_flight * L::groups)
    add_nonzeros<in_flight, true>(columns, values, z + group, size, mine, other, lane, sum, tiny);
  if (z < size) add_nonzeros<in_flight, false>(columns, values, z + group, size, mine, other, lane, sum, tiny);
  sum.add_groups();
  sum.multiply(mine);
  const int slot = at.slot[segment];
  if (group == 0) sum.store(slot < 0 ? out : partial, slot < 0 ? row : slot, lane);
  tiny = __any_sync(whole_warp, tiny);
  if (in_warp == 0) {
    underflowed[segment] = tiny;
    if (tiny) atomicExch(any_underflowed, 1);
  }
}

// The weights y/(U·V) alone: with them, Σ y φ is two sparse products.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1) weigh(const long long* segment_begin,   // (S + 1,)
                                                                   const int* segment_row,           // (S,)
                                                                   int segments,                     // S
                                                                   const int* column,                // (Z,)
                                                                   const Real* value,                // (Z,)
                                                                   const Store* __restrict__ own,    // (N, width)
                                                                   const Store* __restrict__ other,  // (M, width)
                                                                   Real* weight,                     // (Z,)
                                                                   unsigned char* underflowed,       // (S,)
                                                                   int* any_underflowed) {           // (1,)
  using L = Layout<Store>;
  const long long segment = global_warp();
  if (segment >= segments) return;
  const int in_warp = threadIdx.x % warp, lane = in_warp % L::lanes, group = in_warp / L::lanes;
  const long long begin = segment_begin[segment];
  const int size = int(segment_begin[segment + 1] - begin);
  Own mine, theirs;
  mine.load(own, segment_row[segment], lane);
  bool any = false;
  for (int first = 0; first < size; first += L::groups) {
    const int z = first + group;
    theirs.load(other, column[begin + (z < size ? z : size - 1)], lane);
    const Real product = sum_lanes<L::lanes>(mine.dot(theirs));
    const bool tiny = !(product >= tiny_stored_product);
    if (z < size && lane == 0) weight[begin + z] = tiny ? Real(0) : quotient(value[begin + z], product);
    any |= tiny && z < size;
  }
  any = __any_sync(whole_warp, any);
  if (in_warp == 0) {
    underflowed[segment] = any;
    if (any) atomicExch(any_underflowed, 1);
  }
}

// E[ln θ_uk] + E[ln β_ik] of one pair into log_phi (K,), each lane its own k; the largest in all lanes.
__device__ __forceinline__ double log_phi_of(const Gamma& rows, long long row, const Gamma& columns, long long column,
                                             int in_warp, double* log_phi) {
  double top = -__longlong_as_double(0x7ff0000000000000LL);
  for (int k = in_warp; k < K; k += warp) {
    const double x = rows.log_mean(row, k) + columns.log_mean(column, k);
    log_phi[k] = x;
    top = x > top ? x : top;
  }
  return max_lanes<warp>(top);
}

// Σ_k exp(log_phi − top) of log_phi (K,), in all lanes.
__device__ __forceinline__ double sum_exp(const double* log_phi, double top, int in_warp) {
  double sum = 0;
  for (int k = in_warp; k < K; k += warp) sum += exp_nonpositive(log_phi[k] - top);
  return sum_lanes<warp>(sum);
}

constexpr int exact_warps = 2;

// The nonzeros that `allocate` or `weigh` left out, or all, by the max-shifted log-sum-exp in double.
extern "C" __global__ void __launch_bounds__(exact_warps * 32, 1)
    allocate_exactly(const long long* segment_begin,    // (S + 1,)
                     const int* segment_row,            // (S,)
                     const int* segment_slot,           // (S,)
                     int segments,                      // S
                     const int* column,                 // (Z,)
                     const Real* value,                 // (Z,)
                     const Store* __restrict__ own,     // (N, width)
                     const Store* __restrict__ other,   // (M, width)
                     const Real* own_shape,             // (N, width)
                     const double* own_rate_rows,       // (N,) or null
                     const Real* own_rate_matrix,       // (N, width) or null
                     const double* own_rate_columns,    // (K,)
                     const Real* other_shape,           // (M, width)
                     const double* other_rate_rows,     // (M,) or null
                     const Real* other_rate_matrix,     // (M, width) or null
                     const double* other_rate_columns,  // (K,)
                     const unsigned char* underflowed,  // (S,), or null: all nonzeros, and out is overwritten
                     const int* any_underflowed,        // (1,), or null
                     Real* out,                         // (N, width)
                     Real* partial) {                   // (P, width)
  const bool all = underflowed == nullptr;
  if (!all && *any_underflowed == 0) return;
  using L = Layout<Store>;
  __shared__ double log_phi_of_warp[exact_warps][K], total_of_warp[exact_warps][K];
  const int in_warp = threadIdx.x % warp, lane = in_warp % L::lanes;
  double *log_phi = log_phi_of_warp[threadIdx.x / warp], *total = total_of_warp[threadIdx.x / warp];
  const Segments at{segment_begin, segment_row, segment_slot, column, value};
  const Gamma rows{own_shape, {own_rate_rows, own_rate_matrix, own_rate_columns}};
  const Gamma columns{other_shape, {other_rate_rows, other_rate_matrix, other_rate_columns}};

  for (long long segment = global_warp(); segment < segments; segment += (long long)gridDim.x * exact_warps) {
    if (!all && !underflowed[segment]) continue;
    const long long row = at.row[segment];
    Own mine, theirs;
    mine.load(own, row, lane);
    for (int k = in_warp; k < K; k += warp) total[k] = 0;
    for (long long z = at.begin[segment]; z < at.begin[segment + 1]; ++z) {
      const long long c = at.column[z];
      if (!all) {
        theirs.load(other, c, lane);
        if (sum_lanes<L::lanes>(mine.dot(theirs)) >= tiny_stored_product) continue;
      }
      const double top = log_phi_of(rows, row, columns, c, in_warp, log_phi);
      const double share = double(at.value[z]) / sum_exp(log_phi, top, in_warp);
      for (int k = in_warp; k < K; k += warp) total[k] += share * exp_nonpositive(log_phi[k] - top);
    }
    const int slot = at.slot[segment];
    Real* target = slot < 0 ? out + row * width : partial + (long long)slot * width;
    for (int k = in_warp; k < width; k += warp) {
      const Real sum = k < K ? Real(total[k]) : Real(0);
      target[k] = all ? sum : target[k] + sum;
    }
  }
}

// Rows of several segments: their parts in order, in double.
extern "C" __global__ void __launch_bounds__(256, 1)
    join_segments(const int* row,         // (L,) rows of several segments
                  const int* first_slot,  // (L + 1,) where their parts begin
                  int rows,               // L
                  const Real* partial,    // (P, width)
                  int add,                // whether to add to what is there
                  Real* out) {            // (N, width)
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= (long long)rows * width) return;
  const int r = int(i / width), k = int(i % width);
  Real* target = out + (long long)row[r] * width + k;
  double sum = add ? double(*target) : 0.0;
  for (int slot = first_slot[r]; slot < first_slot[r + 1]; ++slot) sum += double(partial[(long long)slot * width + k]);
  *target = Real(sum);
}

// Σ y ln(θ·β) over each segment.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    log_rate_sums(const long long* segment_begin,  // (S + 1,)
                  const int* segment_row,          // (S,)
                  int segments,                    // S
                  const int* column,               // (Z,)
                  const Real* value,               // (Z,)
                  const Real* __restrict__ theta,  // (N, width)
                  const Real* __restrict__ beta,   // (M, width)
                  double* out) {                   // (S,)
  using L = Layout<Real>;
  const long long segment = global_warp();
  if (segment >= segments) return;
  const int in_warp = threadIdx.x % warp, lane = in_warp % L::lanes, group = in_warp / L::lanes;
  const long long begin = segment_begin[segment], row = segment_row[segment];
  const int size = int(segment_begin[segment + 1] - begin);
  Slice<Real> mine, theirs;
  mine.load(theta, row, lane);
  double sum = 0;
  for (int first = 0; first < size; first += L::groups) {
    const int z = first + group;
    const long long c = column[begin + (z < size ? z : size - 1)];
    theirs.load(beta, c, lane);
    const Real rate = sum_lanes<L::lanes>(mine.dot(theirs));
    if (z >= size || lane > 0) continue;
    double log_rate;
    if (rate >= tiny_product<Real>) {
      log_rate = log_normal(double(rate));
    } else {
      double lifted = 0;
      for (int k = 0; k < K; ++k) lifted += double(theta[row * width + k]) * (double(beta[c * width + k]) * rate_lift);
      log_rate = log_lifted_rate(lifted);
    }
    sum += double(value[begin + z]) * log_rate;
  }
  sum = sum_lanes<warp>(sum);
  if (in_warp == 0) out[segment] = sum;
}

// Σ y ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]) over each segment.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    log_normalizer_sums(const long long* segment_begin,    // (S + 1,)
                        const int* segment_row,            // (S,)
                        int segments,                      // S
                        const int* column,                 // (Z,)
                        const Real* value,                 // (Z,)
                        const Store* __restrict__ own,     // (N, width)
                        const Store* __restrict__ other,   // (M, width)
                        const double* own_log_scale,       // (N,)
                        const double* other_log_scale,     // (M,)
                        const Real* own_shape,             // (N, width)
                        const double* own_rate_rows,       // (N,) or null
                        const Real* own_rate_matrix,       // (N, width) or null
                        const double* own_rate_columns,    // (K,)
                        const Real* other_shape,           // (M, width)
                        const double* other_rate_rows,     // (M,) or null
                        const Real* other_rate_matrix,     // (M, width) or null
                        const double* other_rate_columns,  // (K,)
                        double* out) {                     // (S,)
  using L = Layout<Store>;
  __shared__ double log_phi_of_warp[HPF_THREADS / warp][K];
  const long long segment = global_warp();
  if (segment >= segments) return;
  const int in_warp = threadIdx.x % warp, lane = in_warp % L::lanes, group = in_warp / L::lanes;
  double* log_phi = log_phi_of_warp[threadIdx.x / warp];
  const Gamma rows{own_shape, {own_rate_rows, own_rate_matrix, own_rate_columns}};
  const Gamma columns{other_shape, {other_rate_rows, other_rate_matrix, other_rate_columns}};
  const long long begin = segment_begin[segment], row = segment_row[segment];
  const int size = int(segment_begin[segment + 1] - begin);
  // What the stored rows were multiplied with.
  const double stored = 2 * log_normal(double(store_scale));
  Own mine, theirs;
  mine.load(own, row, lane);
  double sum = 0;
  for (int first = 0; first < size; first += L::groups) {
    const int z = first + group;
    const long long c = column[begin + (z < size ? z : size - 1)];
    theirs.load(other, c, lane);
    const Real product = sum_lanes<L::lanes>(mine.dot(theirs));
    const bool counts = z < size && lane == 0, tiny = !(product >= tiny_stored_product);
    if (counts && !tiny)
      sum +=
          double(value[begin + z]) * (log_normal(double(product)) - stored + own_log_scale[row] + other_log_scale[c]);
    // The whole warp does what underflowed, one nonzero after the other.
    for (unsigned left = __ballot_sync(whole_warp, counts && tiny); left; left &= left - 1) {
      const int source = __ffs(int(left)) - 1;
      const long long tiny_column = __shfl_sync(whole_warp, c, source);
      const double top = log_phi_of(rows, row, columns, tiny_column, in_warp, log_phi);
      const double log_rate = top + log_normal(sum_exp(log_phi, top, in_warp));
      if (in_warp == source) sum += double(value[begin + z]) * log_rate;
    }
  }
  sum = sum_lanes<warp>(sum);
  if (in_warp == 0) out[segment] = sum;
}

// θ·β of pairs of rows.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    predict_pairs(const Real* __restrict__ theta,  // (N, width)
                  const Real* __restrict__ beta,   // (M, width)
                  const long long* row,            // (Z,)
                  const long long* column,         // (Z,)
                  long long pairs,                 // Z
                  Real* out) {                     // (Z,)
  using L = Layout<Real>;
  const int in_warp = threadIdx.x % warp, lane = in_warp % L::lanes, group = in_warp / L::lanes;
  const long long first = global_warp() * L::groups;
  if (first >= pairs) return;
  const long long z = first + group, at = z < pairs ? z : pairs - 1;
  Slice<Real> mine, theirs;
  mine.load(theta, row[at], lane);
  theirs.load(beta, column[at], lane);
  const Real rate = sum_lanes<L::lanes>(mine.dot(theirs));
  if (z < pairs && lane == 0) out[z] = rate;
}
