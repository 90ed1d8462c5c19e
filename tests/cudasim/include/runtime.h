// What a compiled kernel asks of the runtime (tests/cudasim/runtime).  The kernel's half may be
// compiled with sanitizers; the runtime never is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

#include "vectors.h"

namespace [[gnu::visibility("default")]] cudasim {

using Place = std::source_location;

constexpr int warp_size = 32;

// The part of a thread that a kernel can see: threadIdx and blockIdx.
struct Thread {
  uint3 index, block;
};
extern Thread* current;
extern dim3 grid_size, block_size;

enum class Collective { shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, match_any, syncwarp };

// Waits for the lanes of `mask`; returns what the lane receives.
uint64_t collective(Collective, unsigned mask, uint64_t value, int argument, int width, const Place&);
void syncthreads(const Place&);
void threadfence();
// Lets another thread of the block run, at random, where a seed asks for random order.
void maybe_yield();
char* dynamic_shared_memory();
// Ends the launch with an error that names the place and the running thread.
[[noreturn]] void fail(const Place&, const char* format, ...) __attribute__((format(printf, 2, 3)));

struct Launch {
  unsigned grid[3], block[3];
  size_t dynamic_shared, dynamic_shared_limit;
  uint64_t seed;  // 0: threads and blocks in order; else their order is shuffled
};

// The `__shared__` variables of a module lie between shared_begin and shared_end.
struct Code {
  void (*call)(void** arguments);
  char *shared_begin, *shared_end;
};

// Returns an error message, or null.  It stays valid until the next launch.
const char* launch(const Code&, const Launch&, void** arguments);

}  // namespace cudasim
