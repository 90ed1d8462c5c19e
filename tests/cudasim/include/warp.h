// Barriers and warp collectives.  `place` is filled in by the compiler with the line of the call.
//
// __activemask() is missing on purpose: no program text determines its value.
#pragma once

#include <bit>
#include <cstring>

#include "runtime.h"

namespace cudasim {

template <class T>
inline uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a warp collective moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
inline T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
inline T shuffle(Collective kind, unsigned mask, T value, int argument, int width, const Place& place) {
  return from_bits<T>(collective(kind, mask, to_bits(value), argument, width, place));
}

inline unsigned ballot(unsigned mask, bool vote, const Place& place) {
  return static_cast<unsigned>(collective(Collective::ballot, mask, vote, 0, warp_size, place));
}

}  // namespace cudasim

#define CUDASIM_HERE const ::cudasim::Place& place = ::cudasim::Place::current()

inline void __syncthreads(CUDASIM_HERE) {
  cudasim::syncthreads(place);
}
inline void __syncwarp(unsigned mask = ~0u, CUDASIM_HERE) {
  cudasim::collective(cudasim::Collective::syncwarp, mask, 0, 0, cudasim::warp_size, place);
}
inline void __threadfence() {
  cudasim::threadfence();
}
inline void __threadfence_block() {
  cudasim::threadfence();
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDASIM_HERE) {
  return cudasim::shuffle(cudasim::Collective::shuffle, mask, value, lane, width, place);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDASIM_HERE) {
  return cudasim::shuffle(cudasim::Collective::shuffle_up, mask, value, static_cast<int>(delta), width, place);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDASIM_HERE) {
  return cudasim::shuffle(cudasim::Collective::shuffle_down, mask, value, static_cast<int>(delta), width, place);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CUDASIM_HERE) {
  return cudasim::shuffle(cudasim::Collective::shuffle_xor, mask, value, lane_mask, width, place);
}

inline unsigned __ballot_sync(unsigned mask, int vote, CUDASIM_HERE) {
  return cudasim::ballot(mask, vote, place);
}
inline int __any_sync(unsigned mask, int vote, CUDASIM_HERE) {
  return cudasim::ballot(mask, vote, place) != 0;
}
inline int __all_sync(unsigned mask, int vote, CUDASIM_HERE) {
  return cudasim::ballot(mask, !vote, place) == 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, CUDASIM_HERE) {
  const auto kind = cudasim::Collective::match_any;
  const uint64_t bits = cudasim::to_bits(value);
  return static_cast<unsigned>(cudasim::collective(kind, mask, bits, 0, cudasim::warp_size, place));
}
