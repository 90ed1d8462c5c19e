// What one nonzero count contributes, on a CPU and on a GPU alike.
#pragma once

#include "special.h"

namespace hpf {

// A scaled product U·V below this goes through the log-sum-exp: what underflow may have taken from it
// is below one rounding error of it, and y / product stays finite, counts being below √max.
template <class T>
constexpr T tiny_product = T(sizeof(T) == 4 ? 1e-18 : 1e-150);

// A rate θ·β below that is summed anew in double with β this much larger, where nothing is subnormal.
// (On a GPU subnormal floats count as zero before they get here: CuPy compiles with -ftz=true.)
constexpr double rate_lift = 0x1p500;

// ln θ·β from Σ θ (β · rate_lift), which counts as at least the smallest normal number.
HPF_FN double log_lifted_rate(double sum) {
  const double smallest = 2.2250738585072014e-308;
  return log_normal(sum < smallest ? smallest : sum) - 500 * 0.69314718055994530942;
}

// ln(1 + y).  The logarithm is that of the rounded sum; the factor behind it makes up for the rounding.
HPF_FN double log_one_plus(double y) {
  const double sum = 1.0 + y, added = sum - 1.0;
  return added > 0.0 ? log_normal(sum) * (y / added) : y;
}

}  // namespace hpf
