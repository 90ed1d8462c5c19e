// What ASan and TSan must be told, as they cannot see it: which fibre runs, what orders the fibres'
// memory accesses, and when shared memory is new.  Without a sanitizer all of it is empty.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fibre.h"

#ifdef CUDASIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef CUDASIM_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_java_init(uintptr_t heap_begin, uintptr_t heap_size);
void __tsan_java_alloc(uintptr_t address, uintptr_t size);
}
#endif

namespace cudasim::sanitizer {

#if defined(CUDASIM_ASAN)

inline constexpr bool handles_faults = true;

inline void start() {
  host.stack = nullptr;
}  // found again by the launch's first fibre
inline void acquire(void*) {}
inline void release(void*) {}
inline void join(Fibre&) {}
inline void new_memory(char*, size_t) {}

inline void fresh_fibre(Fibre& fibre) {
  fibre.asan_frames = nullptr;
  __asan_unpoison_memory_region(fibre.stack, fibre.stack_size);  // an abandoned kernel leaves redzones there
}

inline void leaving(Fibre& self, const Fibre& next, bool for_ever) {
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &self.asan_frames, next.stack, next.stack_size);
}

inline void returned(Fibre& self) {
  __sanitizer_finish_switch_fiber(self.asan_frames, nullptr, nullptr);
}

// A new fibre learns the bounds of the stack it came from: the first comes from the host's.
inline void entered(Fibre& host) {
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
  if (host.stack) return;
  host.stack = static_cast<char*>(const_cast<void*>(stack));
  host.stack_size = size;
}

inline bool accessible(const char* address) {
  return !__asan_address_is_poisoned(address);
}

inline void fence_off(char* begin, size_t size, size_t usable) {
  __asan_unpoison_memory_region(begin, size);
  __asan_poison_memory_region(begin + usable, size - usable);
}

#else

inline constexpr bool handles_faults = false;
inline void entered(Fibre&) {}
inline bool accessible(const char*) {
  return true;
}
inline void fence_off(char*, size_t, size_t) {}

#ifdef CUDASIM_TSAN

// The Java interface is TSan's only way to forget who accessed a piece of memory that stays where it
// is; so all of memory is declared to be Java's heap.  The price: TSan searches a report's address for
// ever if it was neither allocated by malloc nor is shared memory.
inline void start() {
  static bool started = false;
  if (!started) __tsan_java_init(4096, 0x7ffffffff000);
  started = true;
  host.tsan_fibre = __tsan_get_current_fiber();
}

inline void acquire(void* token) {
  __tsan_acquire(token);
}
inline void release(void* token) {
  __tsan_release(token);
}

inline void fresh_fibre(Fibre& fibre) {
  if (!fibre.tsan_fibre) fibre.tsan_fibre = __tsan_create_fiber(0);
}

// Flag 1: a switch by itself orders nothing, since on a device these threads run at the same time.
inline void leaving(Fibre&, const Fibre& next, bool) {
  __tsan_switch_to_fiber(next.tsan_fibre, 1);
}
inline void returned(Fibre&) {}

// The host gives up a fibre that an error left half-way: what it did is past.
inline void join(Fibre& fibre) {
  __tsan_switch_to_fiber(fibre.tsan_fibre, 0);
  __tsan_switch_to_fiber(host.tsan_fibre, 0);
  __tsan_destroy_fiber(fibre.tsan_fibre);
  fibre.tsan_fibre = nullptr;
}

inline void new_memory(char* begin, size_t size) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(begin) & ~7ull;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(begin) + size + 7) & ~7ull;
  if (size) __tsan_java_alloc(from, to - from);
}

#else

inline void start() {}
inline void acquire(void*) {}
inline void release(void*) {}
inline void join(Fibre&) {}
inline void fresh_fibre(Fibre&) {}
inline void leaving(Fibre&, const Fibre&, bool) {}
inline void returned(Fibre&) {}
inline void new_memory(char*, size_t) {}

#endif
#endif

}  // namespace cudasim::sanitizer
