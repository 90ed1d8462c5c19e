// E[θ] and exp E[ln θ] of gamma distributions, in the precision of the model.
//
// Models in float take no double for an entry: neither here nor in the sums (single.cuh).
#pragma once

#include "single.cuh"

namespace hpf {

// exp E[ln θ] of one entry: it is compared with the others of its row, and divided by the largest.
template <class T>
struct Entry;

// mantissa · 2^exponent, mantissa in [1, 2): exp(−1/x) leaves the range of float at x = 0.012.
template <>
struct Entry<float> {
  float mantissa;
  int exponent;

  static __device__ __forceinline__ Entry least() { return {1, -(1 << 29)}; }
  __device__ __forceinline__ bool below(const Entry& other) const {
    return exponent < other.exponent || (exponent == other.exponent && mantissa < other.mantissa);
  }
  __device__ __forceinline__ Entry of_lane(int step) const {
    return {__shfl_xor_sync(whole_warp, mantissa, step), __shfl_xor_sync(whole_warp, exponent, step)};
  }
  // Whether, with this as its largest entry, a row may have others that were too small to be told apart.
  __device__ __forceinline__ bool is_tiny() const { return exponent < -100; }
  __device__ __forceinline__ double log() const {
    return log_normal(double(mantissa)) + double(exponent) * 0.69314718055994530942;
  }
  // This entry divided by the largest: 1 for that one, 0 below 2^-126.
  __device__ __forceinline__ float over(const Entry& top) const {
    const int power = exponent - top.exponent;
    if (power < -126) return 0;
    if (power == 0 && mantissa == top.mantissa) return 1;
    return quotient(mantissa, top.mantissa) * __int_as_float((power + 127) << 23);
  }
  // The same to the power 1/T, which is the sum of its two parts.
  __device__ __forceinline__ float root_over(const Entry& top, float inverse, float inverse_rest) const {
    const int power = exponent - top.exponent;
    if (power == 0 && mantissa == top.mantissa) return 1;
    if (power < -(1 << 17)) return 0;
    const float p = float(power), whole = p * inverse;
    const float rest = multiply_add(p, inverse_rest, multiply_add(p, inverse, -whole));
    const float log_of_mantissas = log_of(quotient(mantissa, top.mantissa)) * inverse;
    const float shift = 12582912.0f;  // 1.5·2^23: adding it rounds to a whole number
    const float n = multiply_add(log_of_mantissas, 1.44269504f, whole) + shift - shift;
    if (n < -126) return 0;
    const float e = exp_reduced(multiply_add((whole - n) + rest, 0.693147181f, log_of_mantissas));
    return e * __int_as_float((int(n) + 127) << 23);
  }
};

template <>
struct Entry<double> {
  double value;

  static __device__ __forceinline__ Entry least() { return {0}; }
  __device__ __forceinline__ bool below(const Entry& other) const { return value < other.value; }
  __device__ __forceinline__ Entry of_lane(int step) const { return {__shfl_xor_sync(whole_warp, value, step)}; }
  __device__ __forceinline__ bool is_tiny() const { return value < 1e-150; }
  __device__ __forceinline__ double log() const { return log_normal(value); }
  __device__ __forceinline__ double over(const Entry& top) const { return value / top.value; }
};

// Moments of Gamma(x, r).
template <class T>
struct Moments {
  T mean;
  Entry<T> exp_log;
};

__device__ __forceinline__ Moments<double> moments(double x, double r) {
  const GammaMoments both = gamma_moments<double>(x, r);
  return {both.mean, {both.exp_log}};
}

// In float, for 1e-30 ≤ x and r < 2^126: e^ψ(x) = e^ψ(x + 1) e^(−1/x), where e^ψ(x + 1) is x + ½ and a little more: t
// times a polynomial in t = 1/(x + 1.25), fitted for the least largest error, 7e-9 of e^ψ(x + 1).
// Error: 2.9e-7 of exp E[ln θ] and 1.2e-7 of the mean where quotients are rounded correctly, at most 5.5e-7 and 3.6e-7
// where they are two units off.
__device__ __forceinline__ Moments<float> moments(float x, float r) {
  const float t = quotient(1.0f, x + 1.25f), inverse_r = quotient(1.0f, r);
  float h = 0.0019871332f;
  h = multiply_add(h, t, -0.0080150045f);
  h = multiply_add(h, t, 0.0036759366f);
  h = multiply_add(h, t, 0.017083705f);
  h = multiply_add(h, t, 0.0312131f);
  h = multiply_add(h, t, 0.04167003f);
  const float level = multiply_add(h, t, x + 0.5f) * inverse_r;

  // 1/x in two parts: an absolute error of the exponent is a relative error of the power.  Beyond 2^16 the power is
  // wrong, which does not matter: beside an entry that is not tiny it counts as zero, and rows of tiny ones go by
  // logarithms.
  const float high = quotient(1.0f, x), low = multiply_add(-high, x, 1.0f) * high;
  const float shift = 12582912.0f;  // 1.5·2^23: adding it rounds to a whole number
  const float n = multiply_add(fminf(high, 65536.0f), -1.44269504f, shift) - shift;
  // ln 2 in two parts.  The inner difference is a small one of large numbers, of which only the result is rounded.
  const float rest = multiply_add(n, -1.42860677e-6f, multiply_add(n, -0.693145752f, -high)) - low;
  const int bits = __float_as_int(level * exp_reduced(rest)), exponent_of_one = 127 << 23;
  const int exponent = (bits >> 23) - 127 + int(n);
  return {x * inverse_r, {__int_as_float((bits & 0x7fffff) | exponent_of_one), exponent}};
}

// The largest entry among groups of `lanes` lanes, in all of them; the whole warp takes part.
template <int lanes, class T>
__device__ __forceinline__ Entry<T> largest_of_lanes(Entry<T> top) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) {
    const Entry<T> other = top.of_lane(step);
    if (top.below(other)) top = other;
  }
  return top;
}

}  // namespace hpf
