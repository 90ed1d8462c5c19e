// Atomics on global and shared memory: real atomics, so that TSan tells them from plain accesses.
// They order nothing else, as on the device.
#pragma once

#include <bit>
#include <type_traits>

#include "runtime.h"

namespace cudasim {

template <class T, class Update>
inline T read_modify_write(T* address, Update update) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA has atomics of 4 and of 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  maybe_yield();
  Bits* const bits = reinterpret_cast<Bits*>(address);
  Bits seen = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
  do {
    wanted = std::bit_cast<Bits>(static_cast<T>(update(std::bit_cast<T>(seen))));
  } while (!__atomic_compare_exchange_n(bits, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return std::bit_cast<T>(seen);
}

}  // namespace cudasim

// The operand's type follows from the address alone: atomicAdd(float*, 1) adds 1.0f, as in CUDA.
#define CUDASIM_ATOMIC(name, result)                                           \
  template <class T>                                                           \
  inline T name(T* address, std::type_identity_t<T> value) {                   \
    return cudasim::read_modify_write(address, [=](T old) { return result; }); \
  }
// clang-format off
CUDASIM_ATOMIC(atomicAdd, old + value)
CUDASIM_ATOMIC(atomicMin, old < value ? old : value)
CUDASIM_ATOMIC(atomicMax, old > value ? old : value)
CUDASIM_ATOMIC(atomicExch, value)
CUDASIM_ATOMIC(atomicOr, old | value)
// clang-format on
template <class T>
inline T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return cudasim::read_modify_write(address, [=](T old) { return old == expected ? value : old; });
}
