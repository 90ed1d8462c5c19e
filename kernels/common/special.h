// Special functions of the update, for one number at a time and without a branch: a compiler turns
// loops over them into SIMD code, and a GPU thread calls them as they are.
//
// Maximum errors are against 200-bit arithmetic over the stated range (tests/test_special.py).
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define HPF_FN static __device__ __forceinline__
#else
#define HPF_FN static inline __attribute__((always_inline))
#endif

namespace hpf {

using Bits = unsigned long long;  // of a double

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
HPF_FN Bits bits_of(double value) {
  return static_cast<Bits>(__double_as_longlong(value));
}
HPF_FN double from_bits(Bits bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}
#else
HPF_FN Bits bits_of(double value) {
  Bits bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}
HPF_FN double from_bits(Bits bits) {
  double value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
#endif

// ln x for a normal x > 0: x = 2^e m with m in [√½, √2), ln m = 2 artanh((m − 1)/(m + 1)).
// The series in z = ((m − 1)/(m + 1))² ≤ 0.0295 is cut at z^11/23 < 1e-18.  Error: 1 ulp, or in the precision of float
// 2e-11, where it is cut at z^6/13.
template <class T = double>
HPF_FN double log_normal(double x) {
  const Bits sqrt_half = 0x3fe6a09e667f3bcdULL, bias = 1023ULL << 52;
  const Bits bits = bits_of(x);
  const Bits biased_exponent = (bits - sqrt_half + bias) >> 52;  // e + 1023
  const double m = from_bits(bits - (biased_exponent << 52) + bias);
  // An integer below 2^52 in the mantissa of 2^52 is that integer as a double.
  const double e = from_bits(biased_exponent | 0x4330000000000000ULL) - (4503599627370496.0 + 1023.0);
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double series = 1.0 / 11;
  if (sizeof(T) == 8) {
    series = 1.0 / 21;
    series = series * z + 1.0 / 19;
    series = series * z + 1.0 / 17;
    series = series * z + 1.0 / 15;
    series = series * z + 1.0 / 13;
    series = series * z + 1.0 / 11;
  }
  series = series * z + 1.0 / 9;
  series = series * z + 1.0 / 7;
  series = series * z + 1.0 / 5;
  series = series * z + 1.0 / 3;
  const double log_m = 2.0 * s + 2.0 * s * z * series;
  // ln 2 in two parts, the first exact in e · ln 2 for every exponent.
  return e * 6.93147180369123816490e-01 + (log_m + e * 1.90821492927058770002e-10);
}

// e^x for x ≤ 0; zero below −708, where the result would leave the normal range.
// Taylor series on |r| ≤ ln(2)/2, cut at r^14/14! < 5e-18.  Error: 1 ulp, or in the precision of float 3e-10.
template <class T = double>
HPF_FN double exp_nonpositive(double x) {
  const double shift = 6755399441055744.0;  // 1.5·2^52: adding it rounds to a whole number
  const double clamped = x < -708.0 ? -708.0 : x;
  const double shifted = clamped * 1.4426950408889634 + shift;
  const double n = shifted - shift;
  const double r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double series = 1.0 / 40320.0;
  if (sizeof(T) == 8) {
    double more = 1.0 / 6227020800.0;
    more = more * r + 1.0 / 479001600.0;
    more = more * r + 1.0 / 39916800.0;
    more = more * r + 1.0 / 3628800.0;
    more = more * r + 1.0 / 362880.0;
    series = more * r + series;
  }
  series = series * r + 1.0 / 5040.0;
  series = series * r + 1.0 / 720.0;
  series = series * r + 1.0 / 120.0;
  series = series * r + 1.0 / 24.0;
  series = series * r + 1.0 / 6.0;
  series = series * r + 0.5;
  series = series * r + 1.0;
  series = series * r + 1.0;
  const Bits power = bits_of(shifted) << 52;  // n, in the exponent's place
  return x < -708.0 ? 0.0 : from_bits(bits_of(series) + power);
}

// Where the asymptotic series below begins; smaller arguments climb there by recurrence.
constexpr int asymptotic_from = 10;

// ψ(x) − ln r for x > 0, r > 0: the expected log of Gamma(x, r).
// ψ(x) = ψ(x + n) − Σ_j 1/(x + j), the sum as one fraction; then the asymptotic series
// (Abramowitz and Stegun 6.3.18), next term below 5e-17 at 10.  Error: 2e-15 of max(1, |ψ(x)|, |ln r|).
HPF_FN double expected_log(double x, double r) {
  const bool climbs = x < asymptotic_from;
  const double low = climbs ? x : 1.0;  // any number that keeps the product finite
  double product = low, derivative = 1.0;
  for (int j = 1; j < asymptotic_from; ++j) {
    derivative = derivative * (low + j) + product;
    product *= low + j;
  }
  const double big = climbs ? x + asymptotic_from : x;
  const double inverse = 1.0 / big, z = inverse * inverse;
  double series = 1.0 / 12;
  series = series * z - 691.0 / 32760;
  series = series * z + 1.0 / 132;
  series = series * z - 1.0 / 240;
  series = series * z + 1.0 / 252;
  series = series * z - 1.0 / 120;
  series = series * z + 1.0 / 12;
  const double tail = 0.5 * inverse + z * series;
  return log_normal(big / r) - tail - (climbs ? derivative / product : 0.0);
}

// Moments of Gamma(x, r): E = x/r, and exp E[ln] = e^ψ(x)/r, which is zero below 1e-300.
struct GammaMoments {
  double mean, exp_log;
};

// In the precision of T, for x > 0 and r > 0; without a logarithm, and in float with one division.
// e^ψ(x) = e^ψ(x + n) e^(−Σ_{j<n} 1/(x + j)), the sum as one fraction.  The series is e^ψ(y + ½) =
// y (1 + 1/24 y^−2 − 37/5760 y^−4 + …): that of ψ(y + ½) − ln y, from Abramowitz and Stegun 6.3.18, put into
// the exponential series; what is left out is below 1e-16 in double and 2e-9 in float.
// Error: 2e-15 of max(1, 1/x), or 2e-9.
template <class T>
HPF_FN GammaMoments gamma_moments(double x, double r) {
  constexpr int n = sizeof(T) == 8 ? 10 : 5;
  // A double's product could overflow; beyond 1e18 the sum is below rounding.
  const double low = sizeof(T) == 4 || x < 1e18 ? x : 1e18;
  double product = low, derivative = 1.0;
  for (int j = 1; j < n; ++j) {
    derivative = derivative * (low + j) + product;
    product *= low + j;
  }
  const double y = x + (n - 0.5), product_y = product * y;
  double inverse, inverse_r;  // of product_y and of r
  if (sizeof(T) == 8) {
    inverse = 1.0 / product_y;
    inverse_r = 1.0 / r;
  } else {
    const double all = 1.0 / (product_y * r);
    inverse = all * r;
    inverse_r = all * product_y;
  }
  const double inverse_y = product * inverse, z = inverse_y * inverse_y;
  double series = -5509121.0 / 1393459200;
  if (sizeof(T) == 8) {
    double more = 47655701498228027.0 / 578473294823424000;
    more = more * z - 499769010050743.0 / 24103053950976000;
    more = more * z + 2709398569.0 / 367873228800;
    series += more * z;
  }
  series = series * z + 10313.0 / 2903040;
  series = series * z - 37.0 / 5760;
  series = series * z + 1.0 / 24;
  const double beyond = y + y * (z * series);
  return {x * inverse_r, beyond * inverse_r * exp_nonpositive<T>(-derivative * (y * inverse))};
}

// ln Γ(x) for x > 0: Stirling's series (Abramowitz and Stegun 6.1.41) above 10, by recurrence below.
// Error: 7e-15 of max(1, |ln Γ(x)|).
HPF_FN double log_gamma(double x) {
  const bool climbs = x < asymptotic_from;
  const double low = climbs ? x : 1.0;
  double product = low;
  for (int j = 1; j < asymptotic_from; ++j) product *= low + j;
  const double big = climbs ? x + asymptotic_from : x;
  const double inverse = 1.0 / big, z = inverse * inverse;
  double series = 1.0 / 156;
  series = series * z - 691.0 / 360360;
  series = series * z + 1.0 / 1188;
  series = series * z - 1.0 / 1680;
  series = series * z + 1.0 / 1260;
  series = series * z - 1.0 / 360;
  series = series * z + 1.0 / 12;
  const double half_log_2pi = 0.91893853320467274178;
  const double stirling = (big - 0.5) * log_normal(big) - big + half_log_2pi + inverse * series;
  return stirling - (climbs ? log_normal(product) : 0.0);
}

}  // namespace hpf
