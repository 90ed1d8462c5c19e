// What the likelihoods take from the nonzeros: Σ y ln(θ·β), and Σ y ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]).
#include "exact.cuh"
#include "single.cuh"

using namespace hpf;

// Nonzeros of a group in one step: as many as registers allow.  A lane gets the product of one of eight, or of fewer,
// so that it takes one logarithm where a lane for each group would take eight.
template <class T>
constexpr int in_step = Slice<T>::registers <= 8 ? 8 : 4;

// Those whose rows are loaded together.
template <class T>
constexpr int at_once = Slice<T>::registers <= 4   ? 8
                        : Slice<T>::registers <= 8 ? 4
                                                   : 2;

// Blocks on a multiprocessor, for which the compiler keeps registers free: else it loads more rows at once.
template <class T>
constexpr int likelihood_blocks = Slice<T>::registers <= 8 && sizeof(Real) == 4 ? 5 : 4;

// Σ y·term over one segment, in all lanes; term_of(product, column) is in the precision that terms are added up in.
template <class T, class TermOf>
__device__ __forceinline__ double sum_logs(const Segment& at,
                                           const T* __restrict__ own,    // (N, width)
                                           const T* __restrict__ other,  // (M, width)
                                           bool& left, TermOf term_of) {
  using L = Layout<T>;
  using Sums = LaneSums<L::lanes, in_step<T>>;
  constexpr int step = in_step<T> * L::groups;
  using Term = decltype(term_of(Real(1), 0));
  const Lane<T> me;
  Total<Term> total{};
  if (at.size == 0) return 0;
  Slice<T> mine;
  mine.load(own, at.row, me.lane);
  Columns<T, in_step<T>> columns, next;
  columns.template load<false>(at, me.group);
  for (int first = me.group; first - me.group < at.size; first += step) {
    next.template load<false>(at, first + step);
    Real product[in_step<T>];
#pragma unroll
    for (int begin = 0; begin < in_step<T>; begin += at_once<T>) {
      Slice<T> row[at_once<T>];
#pragma unroll
      for (int j = 0; j < at_once<T>; ++j) row[j].load(other, columns.number[begin + j], me.lane);
#pragma unroll
      for (int j = 0; j < at_once<T>; ++j) product[begin + j] = mine.dot(row[j]);
    }
    Sums::reduce(product, me.lane);
#pragma unroll
    for (int i = 0; i < Sums::kept; ++i) {
      const int z = first + (Sums::first(me.lane) + i) * L::groups;
      if (z >= at.size || me.lane % Sums::sharers != 0) continue;
      if (product[i] >= least_product<T>)
        total.add(Term(at.value[z]) * term_of(product[i], at.column[z]));
      else
        left = true;
    }
    columns = next;
  }
  return sum_lanes<warp>(total.value());
}

// Σ y ln(θ·β) over each segment.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, likelihood_blocks<Real>)
    log_rate_sums(Segments segments,
                  const Real* __restrict__ theta,  // (N, width)
                  const Real* __restrict__ beta,   // (M, width)
                  double* out,                     // by number
                  Left left) {                     // to log_rates_exactly
  const long long number = global_warp();
  if (number >= segments.count) return;
  const Segment at(segments, number);
  bool tiny = false;
  const double sum = sum_logs(at, theta, beta, tiny, [](Real rate, int) { return log_of(rate); });
  if (threadIdx.x % warp == 0) out[segments.number[number]] = sum;
  left.note(number, tiny);
}

// Adds what log_rate_sums left out: rates that are summed anew in double, where nothing is subnormal.
extern "C" __global__ void __launch_bounds__(exact_threads, 1)
    log_rates_exactly(Segments segments,
                      const Real* __restrict__ theta,  // (N, width)
                      const Real* __restrict__ beta,   // (M, width)
                      double* out,                     // by number
                      Left left) {
  if (*left.any == 0) return;
  const int in_warp = threadIdx.x % warp;
  for (LeftSegments at(segments, left); at.exists(); at.next()) {
    const Segment segment(segments, at.number);
    const Pairs<Real> pairs(segment, theta, beta);
    double sum = 0;
    for (int z = 0; z < segment.size; ++z) {
      const long long column = segment.column[z];
      if (!pairs.is_tiny(int(column))) continue;
      double lifted = 0;
      for (int k = in_warp; k < K; k += warp)
        lifted += double(theta[segment.row * width + k]) * (double(beta[column * width + k]) * rate_lift);
      sum += double(segment.value[z]) * log_lifted_rate(sum_lanes<warp>(lifted));
    }
    if (in_warp == 0) out[segments.number[at.number]] += sum;
  }
}

// Σ y ln Σ_k exp(E[ln θ_uk] + E[ln β_ik]) over each segment.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, likelihood_blocks<Store>)
    log_normalizer_sums(Segments segments,
                        const Store* __restrict__ own,               // (N, width)
                        const Store* __restrict__ other,             // (M, width)
                        const double* __restrict__ own_log_scale,    // (N,)
                        const double* __restrict__ other_log_scale,  // (M,)
                        double* out,                                 // by number
                        Left left) {                                 // to log_normalizers_exactly
  const long long number = global_warp();
  if (number >= segments.count) return;
  const Segment at(segments, number);
  // What stored rows were multiplied with is taken off again.
  const double scale = own_log_scale[at.row] - 2 * log_normal(double(store_scale));
  bool tiny = false;
  const double sum = sum_logs(at, own, other, tiny, [&](Real product, int column) {
    return double(log_of(product)) + scale + other_log_scale[column];
  });
  if (threadIdx.x % warp == 0) out[segments.number[number]] = sum;
  left.note(number, tiny);
}

// Adds what log_normalizer_sums left out.
extern "C" __global__ void __launch_bounds__(exact_threads, 1)
    log_normalizers_exactly(Segments segments,
                            const Store* __restrict__ own,    // (N, width)
                            const Store* __restrict__ other,  // (M, width)
                            Gamma rows, Gamma columns,
                            double* out,  // by number
                            Left left) {
  if (*left.any == 0) return;
  __shared__ double log_phi_of_warp[exact_warps][K];
  double* log_phi = log_phi_of_warp[threadIdx.x / warp];
  const int in_warp = threadIdx.x % warp;
  for (LeftSegments at(segments, left); at.exists(); at.next()) {
    const Segment segment(segments, at.number);
    const Pairs<Store> pairs(segment, own, other);
    double sum = 0;
    for (int z = 0; z < segment.size; ++z) {
      const int column = segment.column[z];
      if (!pairs.is_tiny(column)) continue;
      const double top = log_phi_of(rows, segment.row, columns, column, in_warp, log_phi);
      sum += double(segment.value[z]) * (top + log_normal(sum_exp(log_phi, top, in_warp)));
    }
    if (in_warp == 0) out[segments.number[at.number]] += sum;
  }
}
