// The gamma posteriors: E[θ], exp E[ln θ] and their sums.
//
// A group of lanes takes one row after the other, each lane its own factors.  Column sums are added up
// by group, by block and over all blocks, always in the same order.
#include "moments.cuh"

using namespace hpf;

// Lanes for one row: a power of two, so that the groups of a warp take rows of their own.
constexpr int gamma_lanes_for(int lanes = 1) {
  return lanes >= K || lanes == warp ? lanes : gamma_lanes_for(2 * lanes);
}
constexpr int gamma_lanes = gamma_lanes_for();
constexpr int gamma_groups = HPF_GAMMA_THREADS / gamma_lanes;

// The rows of one group: as many steps for every group, so that all lanes meet in the shuffles, the last
// ones without a row.
struct GroupRows {
  long long first, last, steps;
  int lane, group;

  __device__ __forceinline__ explicit GroupRows(long long n)
      : lane(threadIdx.x % gamma_lanes), group(threadIdx.x / gamma_lanes) {
    const long long groups = (long long)gridDim.x * gamma_groups;
    steps = (n + groups - 1) / groups;
    first = ((long long)blockIdx.x * gamma_groups + group) * steps;
    last = first + steps < n ? first + steps : n;
  }
};

// exp(E[ln θ]/T) of a row by its logarithms, in double, where the entries themselves are too small: the logarithm of
// the largest, in all lanes of the group.  The whole warp takes part, the other groups without a row.
__device__ __forceinline__ double exp_log_by_logs(const Gamma& gamma, bool wanted, long long row, int lane,
                                                  Store* exp_log) {
  double top = -__longlong_as_double(0x7ff0000000000000LL);
  if (wanted)
    for (int k = lane; k < K; k += gamma_lanes) {
      const double x = gamma.log_mean(row, k);
      top = x > top ? x : top;
    }
  top = max_lanes<gamma_lanes>(top);
  if (wanted)
    for (int k = lane; k < K; k += gamma_lanes)
      exp_log[row * width + k] = Store(store_scale * Real(exp_nonpositive(gamma.log_mean(row, k) - top)));
  return top;
}

// exp(E[ln θ]/T) of an entry over that of the largest.  Rows of double that have a temperature go by logarithms.
__device__ __forceinline__ float scaled(const Entry<float>& entry, const Entry<float>& top, double temperature) {
  if (temperature == 1) return entry.over(top);
  const double inverse = 1 / temperature;
  return entry.root_over(top, float(inverse), float(inverse - double(float(inverse))));
}
__device__ __forceinline__ double scaled(const Entry<double>& entry, const Entry<double>& top, double) {
  return entry.over(top);
}

// The posterior with shape `prior_shape` + statistic.
extern "C" __global__ void __launch_bounds__(HPF_GAMMA_THREADS, 1)
    gamma_update(Real* shape,  // (N, width) statistic, becomes the shape
                 double prior_shape,
                 Gamma gamma,             // the same shape, and the rates
                 long long n,             // N
                 Store* exp_log,          // (N, width) exp(E[ln θ]/T)
                 double* log_scale,       // (N,)
                 double* row_sums,        // (N,)
                 double* column_parts) {  // (blocks, K)
  // Each lane touches only its own factors.
  __shared__ Entry<Real> entries_of_group[gamma_groups][K];
  __shared__ Total<Real> totals_of_group[gamma_groups][K];
  __shared__ Real column_rate[K];
  const GroupRows rows(n);
  Entry<Real>* entries = entries_of_group[rows.group];
  Total<Real>* totals = totals_of_group[rows.group];
  for (int k = rows.lane; k < K; k += gamma_lanes) totals[k] = {};
  for (int k = threadIdx.x; k < K; k += HPF_GAMMA_THREADS) column_rate[k] = Real(gamma.rate_columns[k]);
  __syncthreads();

  const auto by_logs_with = [&](const Entry<Real>& top) {
    return top.is_tiny() || (sizeof(Real) == 8 && gamma.temperature != 1);
  };
  // The largest entry of one of the rows, until there is one for each lane: their logarithms are taken together.
  Entry<Real> kept = Entry<Real>::least();
  for (long long step = 0; step < rows.steps; ++step) {
    const long long row = rows.first + step;
    const bool exists = row < rows.last;
    Entry<Real> top = Entry<Real>::least();
    Real row_sum = 0;
    if (exists) {
      const Real row_rate = gamma.rate_rows ? Real(gamma.rate_rows[row]) : Real(0);
      for (int k = rows.lane; k < K; k += gamma_lanes) {
        const Real s = shape[row * width + k] + Real(prior_shape);
        shape[row * width + k] = s;
        const Real rest = gamma.rate_rows ? row_rate : gamma.rate_matrix[row * width + k];
        const Moments<Real> both = moments(s, rest + column_rate[k]);
        row_sum += both.mean;
        totals[k].add(both.mean);
        entries[k] = both.exp_log;
        if (top.below(both.exp_log)) top = both.exp_log;
      }
    }
    top = largest_of_lanes<gamma_lanes>(top);
    row_sum = sum_lanes<gamma_lanes>(row_sum);
    if (exists) {
      for (int k = rows.lane; k < width; k += gamma_lanes) {
        exp_log[row * width + k] =
            k < K ? Store(store_scale * scaled(entries[k], top, gamma.temperature)) : Store(0.0f);
        if (k >= K) shape[row * width + k] = 0;
      }
      if (rows.lane == 0) row_sums[row] = double(row_sum);
    }
    const bool by_logs = exists && by_logs_with(top);
    if (__any_sync(whole_warp, by_logs)) {
      const double log_top = exp_log_by_logs(gamma, by_logs, row, rows.lane, exp_log);
      if (by_logs && rows.lane == 0) log_scale[row] = log_top;
    }
    const int place = int(step % gamma_lanes);
    if (rows.lane == place) kept = top;
    if (place + 1 < gamma_lanes && step + 1 < rows.steps) continue;
    const long long row_of_lane = row - place + rows.lane;
    if (row_of_lane < rows.last && !by_logs_with(kept)) log_scale[row_of_lane] = kept.log() / gamma.temperature;
  }
  __syncthreads();
  for (int k = threadIdx.x; k < K; k += HPF_GAMMA_THREADS) {
    double sum = 0;
    for (int group = 0; group < gamma_groups; ++group) sum += totals_of_group[group][k].value();
    column_parts[(long long)blockIdx.x * K + k] = sum;
  }
}

constexpr int column_sum_threads = 1024;

// Σ over the first axis of (blocks, K): a block for every 32 columns.
extern "C" __global__ void __launch_bounds__(column_sum_threads, 1) sum_columns(const double* parts,  // (blocks, K)
                                                                                int blocks,
                                                                                double* out) {  // (K,)
  constexpr int strands = column_sum_threads / warp;
  __shared__ double sum_of_strand[strands][warp];
  const int lane = threadIdx.x % warp, strand = threadIdx.x / warp, k = blockIdx.x * warp + lane;
  double sum = 0;
  if (k < K) {
#pragma unroll 4
    for (int b = strand; b < blocks; b += strands) sum += parts[(long long)b * K + k];
  }
  sum_of_strand[strand][lane] = sum;
  __syncthreads();
  if (strand > 0 || k >= K) return;
  for (int s = 1; s < strands; ++s) sum += sum_of_strand[s][lane];
  out[k] = sum;
}

// ln of an entry of exp_log; of one that has underflowed, the logarithm of the smallest number less a million.
__device__ __forceinline__ Real log_of_entry(const Store* exp_log, long long i, bool* normal) {
  const Real x = Real(exp_log[i]) / Real(store_scale);
  *normal = x >= Real(sizeof(Real) == 4 ? 0x1p-126 : 0x1p-1022);
  return log_of(*normal ? x : Real(1));
}

// ln of an entry of exp_log, moved on by `momentum` times its change; far below all others if it has underflowed.
__device__ __forceinline__ Real moved_log(const Store* exp_log, const Store* earlier, long long i, Real momentum) {
  bool normal, was_normal;
  const Real now = log_of_entry(exp_log, i, &normal), then = log_of_entry(earlier, i, &was_normal);
  return normal ? now + (was_normal ? momentum * (now - then) : Real(0)) : Real(-1e30);
}

// E[ln θ] moved on by k/(k + 1) of its change since an earlier time, where k is `steps`.
extern "C" __global__ void __launch_bounds__(HPF_GAMMA_THREADS, 1) extrapolate(const Store* exp_log,     // (N, width)
                                                                               const double* log_scale,  // (N,)
                                                                               const Store* earlier,     // (N, width)
                                                                               const double* earlier_scale,  // (N,)
                                                                               const double* steps,          // (1,)
                                                                               long long n,                  // N
                                                                               Store* out,           // (N, width)
                                                                               double* out_scale) {  // (N,)
  const double done = steps[0] > 0 ? steps[0] : 0.0, momentum = done / (done + 1);
  const GroupRows rows(n);
  for (long long step = 0; step < rows.steps; ++step) {
    const long long row = rows.first + step, begin = row * width;
    const bool exists = row < rows.last;
    Real top = Real(-1e30);
    if (exists)
      for (int k = rows.lane; k < K; k += gamma_lanes) {
        const Real x = moved_log(exp_log, earlier, begin + k, Real(momentum));
        top = x > top ? x : top;
      }
    top = max_lanes<gamma_lanes>(top);
    if (!exists) continue;
    for (int k = rows.lane; k < width; k += gamma_lanes) {
      Store result = k < K ? exp_log[begin + k] : Store(0.0f);
      if (k < K && momentum > 0) {
        const Real x = moved_log(exp_log, earlier, begin + k, Real(momentum));
        result = Store(store_scale * exp_of<Real>(double(x - top)));
      }
      out[begin + k] = result;
    }
    if (rows.lane > 0) continue;
    const double scale = log_scale[row];
    out_scale[row] = momentum > 0 ? scale + momentum * (scale - earlier_scale[row]) + double(top) : scale;
  }
}

// E[θ].
extern "C" __global__ void __launch_bounds__(256, 1) mean(Gamma gamma,
                                                          long long n,  // N
                                                          Real* out) {  // (N, width)
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n * width) return;
  const long long row = i / width;
  const int k = int(i % width);
  const Real rest = gamma.rate_rows ? Real(gamma.rate_rows[row]) : gamma.rate_matrix[i];
  out[i] = k < K ? gamma.shape[i] / (rest + Real(gamma.rate_columns[k])) : Real(0);
}

// Of each row: Σ_k (a − s) E[ln θ] + ln Γ(s) − s ln r + s, and Σ_k E[θ].
extern "C" __global__ void __launch_bounds__(HPF_GAMMA_THREADS, 1) gamma_entropy(Gamma gamma,
                                                                                 long long n,         // N
                                                                                 double prior_shape,  // a
                                                                                 double* entropy,     // (N,)
                                                                                 double* row_sums) {  // (N,)
  const GroupRows rows(n);
  for (long long step = 0; step < rows.steps; ++step) {
    const long long row = rows.first + step;
    const bool exists = row < rows.last;
    double total = 0, row_sum = 0;
    if (exists)
      for (int k = rows.lane; k < K; k += gamma_lanes) {
        const double s = double(gamma.shape[row * width + k]), r = gamma.rate(row, k);
        total += (prior_shape - s) * expected_log(s, r) + log_gamma(s) - s * log_normal(r) + s;
        row_sum += s / r;
      }
    total = sum_lanes<gamma_lanes>(total);
    row_sum = sum_lanes<gamma_lanes>(row_sum);
    if (!exists || rows.lane > 0) continue;
    entropy[row] = total;
    row_sums[row] = row_sum;
  }
}

// Of each row: Σ_k (a − b)².
extern "C" __global__ void __launch_bounds__(HPF_GAMMA_THREADS, 1) squared_distance(const Real* a,  // (N, width)
                                                                                    const Real* b,  // (N, width)
                                                                                    long long n,    // N
                                                                                    double* out) {  // (N,)
  const GroupRows rows(n);
  for (long long step = 0; step < rows.steps; ++step) {
    const long long row = rows.first + step;
    const bool exists = row < rows.last;
    double total = 0;
    if (exists)
      for (int k = rows.lane; k < K; k += gamma_lanes) {
        const double difference = double(a[row * width + k]) - double(b[row * width + k]);
        total += difference * difference;
      }
    total = sum_lanes<gamma_lanes>(total);
    if (exists && rows.lane == 0) out[row] = total;
  }
}
