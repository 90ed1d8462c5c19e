// The item-to-item term: counts that come from factors, or from those neighbours of the item that the user has.
//
// A block takes one segment of an item, whose neighbours it puts into a table in shared memory.  A warp looks up the
// items of one user after the other there; rows of factors it loads for as many users at once as it has groups of
// lanes.  Each warp adds up the shares of the neighbours in shared memory of its own, one nonzero after the other, so
// that no sum depends on chance.  What multiplies the rows of factors is kept for the sums of the users.
#include "join.cuh"
#include "neighbours.cuh"

using namespace hpf;

// In the place of y/Σ, for a nonzero that is left to the kernels that take the long way.
constexpr Real left_over = -1;

extern "C" __global__ void __launch_bounds__(table_threads, 1)
    allocate_with_neighbours(Segments segments,  // of items
                             Had had,
                             const int* __restrict__ source,               // (M, L)
                             const Store* __restrict__ own,                // (M, width) exp E[ln β]
                             const Store* __restrict__ other,              // (N, width) exp E[ln θ]
                             const Store* __restrict__ weight,             // (M, weights_width) exp E[ln w]
                             const double* __restrict__ own_log_scale,     // (M,)
                             const double* __restrict__ other_log_scale,   // (N,)
                             const double* __restrict__ weight_log_scale,  // (M,)
                             Real* ratio,                                  // (Z,) by users
                             int items_asked,                              // whether sums are
                             Sums sums,
                             Sums weight_sums,  // (M, weights_width)
                             Left left) {       // to allocate_exactly_with_neighbours
  using Lanes = Layout<Store>;
  __shared__ Table table;
  alignas(16) __shared__ Real sum_of_warp[table_warps][width];
  __shared__ Real share_of_warp[table_warps][neighbours];
  __shared__ unsigned short list_of_warp[table_warps][neighbours];
  __shared__ Queue queue_of_warp[table_warps];
  __shared__ int any_left;
  const long long number = blockIdx.x;
  const Segment at(segments, number);
  const Lane<Store> me;
  const int warp_number = threadIdx.x / warp;
  Real* share = share_of_warp[warp_number];
  unsigned short* list = list_of_warp[warp_number];

  if (threadIdx.x == 0) any_left = 0;
  table.fill(at.row, source, weight);
  for (int l = me.in_warp; l < neighbours; l += warp) share[l] = 0;
  __syncthreads();
  Slice<Store> mine, theirs, sum;
  mine.load(own, at.row, me.lane);
  sum.clear();
  for (int first = warp_number * Lanes::groups; first < at.size; first += table_warps * Lanes::groups) {
    const bool exists = first + me.group < at.size;
    const int z = exists ? first + me.group : at.size - 1, user = __ldg(at.column + z);
    theirs.load(other, user, me.lane);
    const Scales scale = Scales::of(own_log_scale[at.row] + other_log_scale[user], weight_log_scale[at.row]);
    const Real y = __ldg(at.value + z), of_factors = scale.factors * sum_lanes<Lanes::lanes>(mine.dot(theirs));
    const Real of_weights = scale.weights * store_scale;
    Real multiplier = 0;  // of this group's rows
    for (int group = 0; group < Lanes::groups && first + group < at.size; ++group) {
      const int lane = group * Lanes::lanes;
      const Items items(had, __shfl_sync(whole_warp, user, lane));
      const Found found(table, int(at.row), source + at.row * neighbours, items, queue_of_warp[warp_number],
                        items_asked ? list : nullptr);
      const Real scale_of_weights = __shfl_sync(whole_warp, of_weights, lane);
      const Real total = multiply_add(scale_of_weights, found.sum, __shfl_sync(whole_warp, of_factors, lane));
      const bool tiny = !(total >= least_product<Store>);
      const Real quotient_of_total = tiny ? Real(0) : quotient(__shfl_sync(whole_warp, y, lane), total);
      const Real of_rows = quotient_of_total * __shfl_sync(whole_warp, scale.factors, lane);
      if (found.own >= 0) {
        ratio[items.begin + found.own] = tiny ? left_over : of_rows;
        if (tiny) atomicExch(&any_left, 1);
      }
      if (me.group == group) multiplier = of_rows;
      __syncwarp();
      for (int i = me.in_warp; i < found.count; i += warp)
        share[list[i]] += quotient_of_total * scale_of_weights * table.weight[list[i]];
      __syncwarp();
    }
    sum.add(multiplier, theirs);
  }
  sum.add_groups();
  sum.multiply(mine);
  if (me.group == 0) sum.store(sum_of_warp[warp_number], me.lane);
  __syncthreads();
  if (warp_number == 0) left.note(number, any_left);
  if (!items_asked) return;
  Real *target = sums.row(segments, number), *weight_target = weight_sums.row<weights_width>(segments, number);
  for (int k = threadIdx.x; k < width; k += table_threads) {
    Real all = 0;
    for (int w = 0; w < table_warps; ++w) all += sum_of_warp[w][k];
    target[k] = all;
  }
  for (int l = threadIdx.x; l < weights_width; l += table_threads) {
    Real all = 0;
    for (int w = 0; w < table_warps && l < neighbours; ++w) all += share_of_warp[w][l];
    weight_target[l] = all;
  }
}

// Σ_i y φ of the users, from what allocate_with_neighbours has kept.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    allocate_by_ratio(Segments segments,                // of users
                      const Real* __restrict__ ratio,   // (Z,)
                      const Store* __restrict__ own,    // (N, width) exp E[ln θ]
                      const Store* __restrict__ other,  // (M, width) exp E[ln β]
                      Sums sums,
                      Left left) {  // to allocate_exactly_with_neighbours
  using Lanes = Layout<Store>;
  const long long number = global_warp();
  if (number >= segments.count) return;
  const Segment at(segments, number);
  const Real* __restrict__ ratios = ratio + segments.begin[number];
  const Lane<Store> me;
  Slice<Store> mine, theirs, sum;
  bool any = false;
  sum.clear();
  mine.load(own, at.row, me.lane);
  for (int z = me.group; z < at.size; z += Lanes::groups) {
    const Real multiplier = __ldg(ratios + z);
    any |= multiplier < 0;
    theirs.load(other, __ldg(at.column + z), me.lane);
    sum.add(multiplier < 0 ? Real(0) : multiplier, theirs);
  }
  sum.add_groups();
  sum.multiply(mine);
  if (me.group == 0) sum.store(sums.row(segments, number), me.lane);
  left.note(number, any);
}

// The nonzeros that were left out, or all, for one side: the shares of factors and, for items, those of neighbours.
extern "C" __global__ void __launch_bounds__(warp, 1)
    allocate_exactly_with_neighbours(Segments segments,
                                     int by_items,  // whether the segments are of items, or of users
                                     Had had,
                                     const int* __restrict__ source,  // (M, L)
                                     Gamma users, Gamma items, Gamma weights,
                                     const Real* __restrict__ ratio,  // (Z,) by users
                                     int all,  // whether the sums are overwritten with those of all nonzeros
                                     Left left, Sums sums,
                                     Sums weight_sums) {  // of items
  if (!all && *left.any == 0) return;
  __shared__ LogPhi log_phi;
  __shared__ double total[K + neighbours];
  const int in_warp = threadIdx.x, parts = by_items ? K + neighbours : K;
  for (LeftSegments at(segments, left, all); at.exists(); at.next()) {
    const Segment segment(segments, at.number);
    for (int k = in_warp; k < parts; k += warp) total[k] = 0;
    for (int z = 0; z < segment.size; ++z) {
      const int row = int(segment.row), column = segment.column[z];
      const int user = by_items ? column : row, item = by_items ? row : column;
      const Items items_of_user(had, user);
      if (!all && ratio[items_of_user.begin + items_of_user.find(item)] >= 0) continue;
      const double top = log_phi_with_neighbours(users, user, items, weights, item, source, items_of_user, log_phi);
      const double share = double(segment.value[z]) / log_phi.sum_exp(top);
      for (int k = in_warp; k < parts; k += warp) total[k] += share * exp_nonpositive(log_phi.value[k] - top);
    }
    __syncwarp();  // weights are written by other lanes
    Real* target = sums.row(segments, at.number);
    for (int k = in_warp; k < width; k += warp) {
      const Real sum = k < K ? Real(total[k]) : Real(0);
      target[k] = all ? sum : target[k] + sum;
    }
    if (!by_items) continue;
    target = weight_sums.row<weights_width>(segments, at.number);
    for (int l = in_warp; l < weights_width; l += warp) {
      const Real sum = l < neighbours ? Real(total[K + l]) : Real(0);
      target[l] = all ? sum : target[l] + sum;
    }
    __syncwarp();
  }
}

// join_segments for weights.
extern "C" __global__ void __launch_bounds__(HPF_JOIN_STRANDS * 32, 1)
    join_weights(const int* row,         // (L,) rows of several segments
                 const int* first_slot,  // (L + 1,) where their parts begin
                 const Real* partial,    // (P, weights_width)
                 Real* out) {            // (M, weights_width)
  __shared__ SumOfStrand sums;
  join<weights_width>(row, first_slot, partial, false, out, sums);
}

// What a block that sums logarithms has in shared memory.
struct LogSums {
  Table table;
  Queue queue_of_warp[table_warps];
  double of_warp[table_warps];
  int any_left;
};

// Σ y (ln Σ + what the sum was divided by) over one segment, by a block; scale_of(item, user).
template <class T, class ScaleOf>
__device__ __forceinline__ void sum_logs_with_neighbours(const Segments& segments, const Had& had,
                                                         const int* __restrict__ source,  // (M, L)
                                                         const T* __restrict__ own,       // (M, width)
                                                         const T* __restrict__ other,     // (N, width)
                                                         const T* __restrict__ weight,    // (M, weights_width)
                                                         unsigned char* is_left,          // (Z,)
                                                         double* out,                     // by number
                                                         const Left& left, LogSums& sums, ScaleOf scale_of) {
  using Lanes = Layout<T>;
  const long long number = blockIdx.x;
  const Segment at(segments, number);
  const Lane<T> me;
  const int warp_number = threadIdx.x / warp;
  if (threadIdx.x == 0) sums.any_left = 0;
  sums.table.fill(at.row, source, weight);
  __syncthreads();
  Slice<T> mine, theirs;
  mine.load(own, at.row, me.lane);
  double sum = 0;
  for (int first = warp_number * Lanes::groups; first < at.size; first += table_warps * Lanes::groups) {
    const bool exists = first + me.group < at.size;
    const int z = exists ? first + me.group : at.size - 1, user = __ldg(at.column + z);
    theirs.load(other, user, me.lane);
    const Scales scale = scale_of(at.row, user);
    Real total = scale.factors * sum_lanes<Lanes::lanes>(mine.dot(theirs));
    for (int group = 0; group < Lanes::groups && first + group < at.size; ++group) {
      const Items items(had, __shfl_sync(whole_warp, user, group * Lanes::lanes));
      const Found found(sums.table, int(at.row), source + at.row * neighbours, items, sums.queue_of_warp[warp_number],
                        nullptr);
      if (me.group == group) total = multiply_add(scale.weights, found.sum, total);
    }
    if (me.lane > 0 || !exists) continue;
    const bool tiny = !(total >= least_product<T>);
    is_left[segments.begin[number] + z] = tiny;
    if (tiny)
      atomicExch(&sums.any_left, 1);
    else
      sum += double(at.value[z]) * (double(log_of(total)) + scale.log);
  }
  sum = sum_lanes<warp>(sum);
  if (me.in_warp == 0) sums.of_warp[warp_number] = sum;
  __syncthreads();
  if (warp_number > 0) return;
  left.note(number, sums.any_left);
  if (threadIdx.x > 0) return;
  for (int w = 1; w < table_warps; ++w) sum += sums.of_warp[w];
  out[segments.number[number]] = sum;
}

// Σ y ln(θ·β + Σ w) over each segment.
extern "C" __global__ void __launch_bounds__(table_threads, 1)
    log_rate_sums_with_neighbours(Segments segments,  // of items
                                  Had had,
                                  const int* __restrict__ source,   // (M, L)
                                  const Real* __restrict__ beta,    // (M, width)
                                  const Real* __restrict__ theta,   // (N, width)
                                  const Real* __restrict__ weight,  // (M, weights_width)
                                  unsigned char* is_left,           // (Z,)
                                  double* out,                      // by number
                                  Left left) {                      // to log_rates_exactly_with_neighbours
  __shared__ LogSums sums;
  sum_logs_with_neighbours(segments, had, source, beta, theta, weight, is_left, out, left, sums,
                           [](long long, int) { return Scales{1, 1, 0}; });
}

// Adds what log_rate_sums_with_neighbours left out: see log_rates_exactly.
extern "C" __global__ void __launch_bounds__(warp, 1)
    log_rates_exactly_with_neighbours(Segments segments,  // of items
                                      Had had,
                                      const int* __restrict__ source,             // (M, L)
                                      const Real* __restrict__ beta,              // (M, width)
                                      const Real* __restrict__ theta,             // (N, width)
                                      const Real* __restrict__ weight,            // (M, weights_width)
                                      const unsigned char* __restrict__ is_left,  // (Z,)
                                      double* out,                                // by number
                                      Left left) {
  if (*left.any == 0) return;
  const int in_warp = threadIdx.x;
  for (LeftSegments at(segments, left); at.exists(); at.next()) {
    const Segment segment(segments, at.number);
    double sum = 0;
    for (int z = 0; z < segment.size; ++z) {
      if (!is_left[segments.begin[at.number] + z]) continue;
      const long long user = segment.column[z];
      const Items items(had, int(user));
      double lifted = 0;
      for (int k = in_warp; k < K; k += warp)
        lifted += double(theta[user * width + k]) * (double(beta[segment.row * width + k]) * rate_lift);
      for (int l = in_warp; l < neighbours; l += warp) {
        const int wanted = source[segment.row * neighbours + l];
        if (wanted >= 0 && items.find(wanted) >= 0)
          lifted += double(weight[segment.row * weights_width + l]) * rate_lift;
      }
      sum += double(segment.value[z]) * log_lifted_rate(sum_lanes<warp>(lifted));
    }
    if (in_warp == 0) out[segments.number[at.number]] += sum;
  }
}

// Σ y ln Σ φ over each segment, φ before it is normalized.
extern "C" __global__ void __launch_bounds__(table_threads, 1)
    log_normalizer_sums_with_neighbours(Segments segments,  // of items
                                        Had had,
                                        const int* __restrict__ source,               // (M, L)
                                        const Store* __restrict__ own,                // (M, width)
                                        const Store* __restrict__ other,              // (N, width)
                                        const Store* __restrict__ weight,             // (M, weights_width)
                                        const double* __restrict__ own_log_scale,     // (M,)
                                        const double* __restrict__ other_log_scale,   // (N,)
                                        const double* __restrict__ weight_log_scale,  // (M,)
                                        unsigned char* is_left,                       // (Z,)
                                        double* out,                                  // by number
                                        Left left) {  // to log_normalizers_exactly_with_neighbours
  __shared__ LogSums sums;
  // What stored rows were multiplied with is taken off again.
  const double stored = 2 * log_normal(double(store_scale));
  sum_logs_with_neighbours(
      segments, had, source, own, other, weight, is_left, out, left, sums, [&](long long item, int user) {
        const Scales scale = Scales::of(own_log_scale[item] + other_log_scale[user], weight_log_scale[item]);
        return Scales{scale.factors, scale.weights * store_scale, scale.log - stored};
      });
}

// Adds what log_normalizer_sums_with_neighbours left out.
extern "C" __global__ void __launch_bounds__(warp, 1)
    log_normalizers_exactly_with_neighbours(Segments segments,  // of items
                                            Had had,
                                            const int* __restrict__ source,  // (M, L)
                                            Gamma users, Gamma items, Gamma weights,
                                            const unsigned char* __restrict__ is_left,  // (Z,)
                                            double* out,                                // by number
                                            Left left) {
  if (*left.any == 0) return;
  __shared__ LogPhi log_phi;
  for (LeftSegments at(segments, left); at.exists(); at.next()) {
    const Segment segment(segments, at.number);
    double sum = 0;
    for (int z = 0; z < segment.size; ++z) {
      if (!is_left[segments.begin[at.number] + z]) continue;
      const int user = segment.column[z], item = int(segment.row);
      const double top = log_phi_with_neighbours(users, user, items, weights, item, source, Items(had, user), log_phi);
      sum += double(segment.value[z]) * (top + log_normal(log_phi.sum_exp(top)));
    }
    if (threadIdx.x == 0) out[segments.number[at.number]] += sum;
  }
}
