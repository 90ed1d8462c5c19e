// Fibres: a CUDA thread is a stack and a saved stack pointer, and runs until it switches to another.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace cudasim {

enum class State : uint8_t { ready, at_barrier, in_collective, done };

struct Warp {
  unsigned live, waiting;  // lanes, as masks
};

struct Fibre : Thread {
  int number, lane;
  Warp* warp;
  State state;

  // What it waits for, and what it brought along.
  Place place;
  Collective collective;
  unsigned mask;
  int argument, width;
  uint64_t value, result;

  void* stack_pointer;
  char* stack;
  size_t stack_size;
  void* asan_frames;  // ASan's and TSan's own records of the fibre
  void* tsan_fibre;
  // TSan learns of an order of memory accesses as one of releases and acquisitions of an address.
  // These stand for the barriers of the block and of the warp whose first thread this is.
  char block_token, warp_token;
};

extern Fibre host;  // the context that launch() was called in

inline Fibre* current_fibre() {
  return static_cast<Fibre*>(current);
}
inline bool in_kernel() {
  return current && current != &host;
}

// Makes `fibre` start at the beginning of `main` when it is switched to.
void prepare(Fibre& fibre, void (*main)());
// Runs `next` in place of the current fibre; returns when someone switches back.
void switch_to(Fibre& next);
// The same, never to return.
[[noreturn]] void leave_for(Fibre& next);
// First statement of a fibre's main function.
void arrived();

}  // namespace cudasim
