// Arithmetic in float that is nearly as good as in double, which most GPUs compute 32 or 64 times as slowly.
#pragma once

#include "rows.cuh"

namespace hpf {

// ln x of a normal x > 0, as log_normal in special.h: x = 2^e m with m in [√½, √2), ln m = 2 artanh((m − 1)/(m + 1)).
// The series is cut at z^5/11 < 2e-9.  Error: 1.5e-7 of max(1, |ln x|) where the quotient is two units off.
__device__ __forceinline__ float log_of(float x) {
  const int sqrt_half = 0x3f3504f3, bits = __float_as_int(x), exponent = (bits - sqrt_half) >> 23;
  const float m = __int_as_float(bits - (exponent << 23)), s = quotient(m - 1.0f, m + 1.0f), z = s * s;
  float series = 1.0f / 9;
  series = multiply_add(series, z, 1.0f / 7);
  series = multiply_add(series, z, 1.0f / 5);
  series = multiply_add(series, z, 1.0f / 3);
  const float log_m = multiply_add(2 * s * z, series, 2 * s);
  // ln 2 in two parts, the first with so few bits that its product with an exponent is exact.
  const float e = float(exponent);
  return multiply_add(e, 0.693145752f, multiply_add(e, 1.42860677e-6f, log_m));
}
__device__ __forceinline__ double log_of(double x) {
  return log_normal(x);
}

// A sum.
template <class T>
struct Total;

// Compensated (Kahan): nearly as good as one in double, but for one rounding of float where a number is larger than the
// sum before it.
template <>
struct Total<float> {
  float sum, excess;  // `excess` is what the sum has too much

  __device__ __forceinline__ void add(float x) {
    const float wanted = x - excess, next = sum + wanted;
    excess = (next - sum) - wanted;
    sum = next;
  }
  __device__ __forceinline__ double value() const { return double(sum) - double(excess); }
};

template <>
struct Total<double> {
  double sum;

  __device__ __forceinline__ void add(double x) { sum += x; }
  __device__ __forceinline__ double value() const { return sum; }
};

}  // namespace hpf
