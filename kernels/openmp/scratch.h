// Memory and small arithmetic that the kernels of one instruction set share.  Nothing of the standard
// library: the linker must never hand its templates, compiled for one instruction set, to another.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <cstdint>

#include "memory.h"

namespace hpf {
namespace HPF_ISA {

static inline int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Memory that the threads of a parallel region work in: all together, or each in a share of its own.  It is taken
// before the region begins, for where memory ends there is an exception, and none may leave a region.
template <class T>
struct Scratch {
  explicit Scratch(int64_t size, int threads = 1)
      : bytes_of_share((size * int64_t(sizeof(T)) + 127) / 128 * 128),
        data(static_cast<T*>(take_memory((threads - 1) * bytes_of_share + size * int64_t(sizeof(T)), 1))) {}
  ~Scratch() { give_back(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Of the calling thread.
  T* share() const { return reinterpret_cast<T*>(reinterpret_cast<char*>(data) + thread_number() * bytes_of_share); }

  const int64_t bytes_of_share;
  T* const data;
};

}  // namespace HPF_ISA
}  // namespace hpf
