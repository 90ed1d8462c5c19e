// Upper bounds of θ·β for all items, in whole numbers, from bytes that bound β and bytes that bound θ.
//
// Products of two bytes up to 127 are added up in pairs in 16 bits, as the instructions for it do, and then in 32.
// Everything has internal linkage, as in simd.h.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace hpf {
namespace HPF_ISA {

constexpr double largest_byte = 127;

static inline int64_t blocks_of(int64_t rows) {
  return (rows + rows_in_block - 1) / rows_in_block;
}

static inline int64_t fours_of(int64_t k) {
  return (k + factors_in_four - 1) / factors_in_four;
}

// Whether a number is far enough from the ends of double for what is computed here to be rounded as usual.
static inline bool within_range(double x) {
  return x > 1e-280 && x < 1e280;
}

// The smallest whole number that is not below x ≥ 0, 127 at most: beyond is only what was rounded up.
static inline uint8_t byte_above(double x) {
  const int whole = x < largest_byte ? int(x) : int(largest_byte);
  return uint8_t(whole + (whole < x && whole < int(largest_byte)));
}

// One user's side of the bounds.
struct UserBytes {
  double unit;      // what a bound is in numbers of this
  double rounding;  // what the scores may be above their bounds, where they are tiny
};

// Bytes of a user's factors to `bytes` (whole fours,), or false where there are no bounds: if a factor is below zero
// or not finite, or all are zero.
template <class T>
static inline bool user_bytes(const T* user,        // (K,)
                              const double* scale,  // (K,)
                              int64_t k, int8_t* bytes, UserBytes& result) {
  constexpr double epsilon = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52, smallest = sizeof(T) == 4 ? 0x1p-149 : 0x1p-1074;
  double largest = 0;
  for (int64_t j = 0; j < k; ++j) {
    const double weight = double(user[j]) * scale[j];
    if (!(weight >= 0)) return false;
    largest = weight > largest ? weight : largest;
  }
  const double unit = largest / largest_byte;
  if (!within_range(unit)) return false;
  for (int64_t j = 0; j < fours_of(k) * factors_in_four; ++j)
    bytes[j] = j < k ? int8_t(byte_above(double(user[j]) * scale[j] / unit)) : int8_t(0);
  // A score is a sum of K + 1 numbers each of which was rounded.
  result = {unit * (1 + double(k + 16) * epsilon), double(k + 1) * smallest};
  return true;
}

// The largest bound, in units, of a score that is not above a threshold; bounds are whole numbers from 0 on.
static inline int32_t bound_of(double threshold, const UserBytes& user) {
  const double units = (threshold - user.rounding) / user.unit;
  if (!(units >= 1)) return -1;
  return units < double(INT32_MAX) ? int32_t(units) - 1 : INT32_MAX;
}

// Whether the instruction set multiplies bytes: without, bounds take as long as the scores themselves (baseline,
// 50,000 items, K=50: 1.2 and 1.0 ms).
#if defined(__AVX2__)
constexpr bool has_byte_products = true;
#else
constexpr bool has_byte_products = false;
#endif

// Sums of four products each, of a vector of bytes and the bytes of four factors of a user.
static inline Vector<int32_t> products_of_bytes(const uint8_t* rows,   // (lanes, 4)
                                                const int8_t* user) {  // (4,)
  int32_t four;
  __builtin_memcpy(&four, user, sizeof(four));
#if defined(__AVX512F__)
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_loadu_si512(rows), _mm512_set1_epi32(four));
  return reinterpret_cast<Vector<int32_t>>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
  const __m256i pairs =
      _mm256_maddubs_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows)), _mm256_set1_epi32(four));
  return reinterpret_cast<Vector<int32_t>>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
  Vector<int32_t> sums;
  for (int i = 0; i < Simd<int32_t>::lanes; ++i)
    sums[i] = rows[4 * i] * user[0] + rows[4 * i + 1] * user[1] + rows[4 * i + 2] * user[2] + rows[4 * i + 3] * user[3];
  return sums;
#endif
}

// Of a block's rows those whose bound exceeds a number of units, bit by bit.
static inline uint32_t rows_above(const uint8_t* block,  // (fours, 16, 4)
                                  const int8_t* user,    // (fours, 4)
                                  int64_t fours, int32_t units) {
  constexpr int lanes = Simd<int32_t>::lanes, vectors = rows_in_block / lanes;
  Vector<int32_t> sum[vectors] = {};
  for (int64_t f = 0; f < fours; ++f)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
      sum[v] += products_of_bytes(block + f * bytes_in_block + v * vector_bytes, user + f * factors_in_four);
  uint32_t above = 0;
  for (int v = 0; v < vectors; ++v) above |= lanes_above<int32_t>(sum[v], Vector<int32_t>{} + units) << (v * lanes);
  return above;
}

}  // namespace HPF_ISA
}  // namespace hpf
