// One block of threads: who runs next, who waits at the barrier, which warps exchange values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fibre.h"

namespace cudasim {

struct Random {
  uint64_t state;
  uint64_t below(uint64_t limit);
};

struct Job {  // what all blocks of a launch have in common
  void (*call)(void** arguments);
  void** arguments;
  bool shuffled;
  Random random;
};

// Runs every thread of the block to its end.  Returns false if that failed; see error().
bool run_block(Job& job, uint3 block);

// The message of the error that ended the launch; empty if there was none.
extern char error[1024];
void clear_error();
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Where a fault in a kernel goes on: leaves the block, which has then failed.
[[noreturn]] void abandon_block();

// Orders the host's memory accesses before a launch and after it.
void begin_launch();
void end_launch();

constexpr unsigned max_threads = 1024;

}  // namespace cudasim
