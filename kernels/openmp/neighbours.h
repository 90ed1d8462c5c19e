// Sums over the neighbours that users have, and shares spread to them, by the bits of had.h.
//
// Everything has internal linkage, as in simd.h.
#pragma once

#include "had.h"
#include "simd.h"
#include "special.h"

namespace hpf {
namespace HPF_ISA {

// A mask for each lane of a vector, all bits or none.
template <class T>
using LaneBits = decltype(Vector<T>{} < Vector<T>{});

template <class T>
using LaneInteger = decltype(FourBits<T>{}[0] + 0);

// A word in every lane.
template <class T>
HPF_FN LaneBits<T> in_all_lanes(uint32_t word) {
  return LaneBits<T>{} + static_cast<LaneInteger<T>>(word);
}

// Of such a word, lane i's bit first + i.
template <class T>
HPF_FN LaneBits<T> bit_of_lane(int first) {
  LaneBits<T> bits = {};
  for (int lane = 0; lane < Simd<T>::lanes; ++lane)
    bits[lane] = static_cast<LaneInteger<T>>(uint32_t(1) << (first + lane));
  return bits;
}

template <class T>
HPF_FN Vector<T> where(LaneBits<T> mask, Vector<T> v) {
  return reinterpret_cast<Vector<T>>(reinterpret_cast<LaneBits<T>>(v) & mask);
}

#define HPF_UNROLL_WORD _Pragma("GCC unroll 16")

// Σ_l w_l over the bits of each nonzero of an item, four at a time: the last is repeated where fewer are left.
template <class T>
static inline void sums_over_had(const T* w,            // (words * in_word,)
                                 const uint32_t* bits,  // (count, words)
                                 int64_t words, int count,
                                 T* out) {  // (count,), and room for three more
  constexpr int lanes = Simd<T>::lanes;
  for (int z = 0; z < count; z += 4) {
    const uint32_t* own[4];
    for (int i = 0; i < 4; ++i) own[i] = bits + (z + i < count ? z + i : count - 1) * words;
    Vector<T> sum[4] = {};
    for (int64_t word = 0; word < words; ++word) {
      LaneBits<T> all[4];
      for (int i = 0; i < 4; ++i) all[i] = in_all_lanes<T>(own[i][word]);
      HPF_UNROLL_WORD
      for (int first = 0; first < in_word; first += lanes) {
        const LaneBits<T> own_bit = bit_of_lane<T>(first);
        const Vector<T> weight = load(w + word * in_word + first);
        for (int i = 0; i < 4; ++i) sum[i] += where<T>((all[i] & own_bit) == own_bit, weight);
      }
    }
    sum_lanes_of_four<T>(sum[0], sum[1], sum[2], sum[3], out + z);
  }
}

// Adds the share of each nonzero of an item to the sums of its bits.
template <class T>
static inline void spread_over_had(const uint32_t* bits,  // (count, words)
                                   int64_t words, int count,
                                   const T* share,  // (count,)
                                   T* sums) {       // (words * in_word,)
  constexpr int lanes = Simd<T>::lanes;
  for (int z = 0; z < count; z += 4) {
    const uint32_t* own[4];
    Vector<T> part[4];
    for (int i = 0; i < 4; ++i) {
      own[i] = bits + (z + i < count ? z + i : count - 1) * words;
      part[i] = Vector<T>{} + (z + i < count ? share[z + i] : T(0));
    }
    for (int64_t word = 0; word < words; ++word) {
      LaneBits<T> all[4];
      for (int i = 0; i < 4; ++i) all[i] = in_all_lanes<T>(own[i][word]);
      HPF_UNROLL_WORD
      for (int first = 0; first < in_word; first += lanes) {
        const LaneBits<T> own_bit = bit_of_lane<T>(first);
        T* target = sums + word * in_word + first;
        Vector<T> sum = load(target);
        for (int i = 0; i < 4; ++i) sum += where<T>((all[i] & own_bit) == own_bit, part[i]);
        store(target, sum);
      }
    }
  }
}

#undef HPF_UNROLL_WORD

}  // namespace HPF_ISA
}  // namespace hpf
