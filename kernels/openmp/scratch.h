// Memory and small arithmetic that the kernels of one instruction set share.  Nothing of the standard
// library: the linker must never hand its templates, compiled for one instruction set, to another.
#pragma once

#include <cstdint>

#include "tiles.h"

namespace hpf {
namespace HPF_ISA {

static inline int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Memory that one thread works in, on whole cache lines.
template <class T>
struct Scratch {
  explicit Scratch(int64_t size) : data(static_cast<T*>(__builtin_malloc(size * sizeof(T) + 64))) {
    if (!data) out_of_memory();
    aligned = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(data) + 63) & ~uintptr_t(63));
  }
  ~Scratch() { __builtin_free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data;
  T* aligned;
};

}  // namespace HPF_ISA
}  // namespace hpf
