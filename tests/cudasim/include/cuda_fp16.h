// Half-precision storage and its conversions, found before CUDA's own <cuda_fp16.h>.
#pragma once

#include <bit>

#include "vectors.h"

struct __half_raw {
  unsigned short x;
};
struct __half {
  _Float16 value;
  __half() = default;
  __half(float number) : value(static_cast<_Float16>(number)) {}
  __half(__half_raw raw) : value(std::bit_cast<_Float16>(raw.x)) {}
  operator float() const { return static_cast<float>(value); }
  operator __half_raw() const { return {std::bit_cast<unsigned short>(value)}; }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half h) {
  return h;
}
inline __half __float2half(float f) {
  return f;
}
inline __half __float2half_rn(float f) {
  return f;
}
inline float __low2float(__half2 h) {
  return h.x;
}
inline float __high2float(__half2 h) {
  return h.y;
}
inline float2 __half22float2(__half2 h) {
  return {h.x, h.y};
}
inline __half2 __float22half2_rn(float2 f) {
  return {f.x, f.y};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {x, y};
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline unsigned short __half_as_ushort(__half h) {
  return std::bit_cast<unsigned short>(h.value);
}
inline __half __ushort_as_half(unsigned short bits) {
  return __half_raw{bits};
}
