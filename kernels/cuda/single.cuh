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

// e^x for |x| ≤ ln(2)/2, fitted for the least largest error, 4e-9.
__device__ __forceinline__ float exp_reduced(float x) {
  float e = 0.00138145965f;
  e = multiply_add(e, x, 0.00836871564f);
  e = multiply_add(e, x, 0.041668389f);
  e = multiply_add(e, x, 0.166665211f);
  e = multiply_add(e, x, 0.49999994f);
  e = multiply_add(e, x, 1.0f);
  return multiply_add(e, x, 1.0f);
}

// e^x for x ≤ 0 in the precision of T.  In float it takes few operations in double, and is zero below −87.
template <class T>
__device__ __forceinline__ T exp_of(double x);
template <>
__device__ __forceinline__ float exp_of<float>(double x) {
  const double shift = 6755399441055744.0;  // 1.5·2^52: adding it rounds to a whole number
  const double clamped = x < -87.0 ? -87.0 : x, n = (clamped * 1.4426950408889634 + shift) - shift;
  const float e = exp_reduced(float(clamped - n * 0.69314718055994530942));
  return x < -87.0 ? 0.0f : e * __int_as_float((int(n) + 127) << 23);
}
template <>
__device__ __forceinline__ double exp_of<double>(double x) {
  return exp_nonpositive(x);
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
