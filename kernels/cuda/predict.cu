// θ·β of pairs of rows.
#include "rows.cuh"

using namespace hpf;

extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    predict_pairs(const Real* __restrict__ theta,  // (N, width)
                  const Real* __restrict__ beta,   // (M, width)
                  const long long* row,            // (Z,)
                  const long long* column,         // (Z,)
                  long long pairs,                 // Z
                  Real* out) {                     // (Z,)
  using L = Layout<Real>;
  const Lane<Real> me;
  const long long first = global_warp() * L::groups;
  if (first >= pairs) return;
  const long long z = first + me.group, at = z < pairs ? z : pairs - 1;
  Slice<Real> mine, theirs;
  mine.load(theta, row[at], me.lane);
  theirs.load(beta, column[at], me.lane);
  const Real rate = sum_lanes<L::lanes>(mine.dot(theirs));
  if (z < pairs && me.lane == 0) out[z] = rate;
}
