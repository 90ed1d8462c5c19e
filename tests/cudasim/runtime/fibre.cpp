#include "fibre.h"

#include <sys/mman.h>

#include <cstdlib>

#include "sanitizers.h"

// Saves the registers that a function must keep, then goes on with another stack.
extern "C" void cudasim_swap_stacks(void** saved_stack_pointer, void* stack_pointer);
asm(R"(
.text
.hidden cudasim_swap_stacks
.globl cudasim_swap_stacks
.type cudasim_swap_stacks, @function
cudasim_swap_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cudasim_swap_stacks, . - cudasim_swap_stacks
)");

namespace cudasim {

Thread* current = nullptr;
Fibre host;

namespace {

constexpr size_t stack_bytes = 64 << 10, page = 4096;
constexpr int saved_registers = 6;

// A page without access below the stack turns its overflow into a fault.
char* new_stack() {
  void* memory =
      mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  mprotect(memory, page, PROT_NONE);
  return static_cast<char*>(memory) + page;
}

}  // namespace

void prepare(Fibre& fibre, void (*main)()) {
  if (!fibre.stack) {
    fibre.stack = new_stack();
    fibre.stack_size = stack_bytes;
  }
  sanitizer::fresh_fibre(fibre);
  void** top = reinterpret_cast<void**>(fibre.stack + stack_bytes);
  *--top = nullptr;  // main's return address: there is none
  *--top = reinterpret_cast<void*>(main);
  for (int i = 0; i < saved_registers; ++i) *--top = nullptr;
  fibre.stack_pointer = top;
}

void switch_to(Fibre& next) {
  Fibre& self = *current_fibre();
  current = &next;
  sanitizer::leaving(self, next, false);
  cudasim_swap_stacks(&self.stack_pointer, next.stack_pointer);
  sanitizer::returned(self);
}

void leave_for(Fibre& next) {
  Fibre& self = *current_fibre();
  current = &next;
  sanitizer::leaving(self, next, true);
  cudasim_swap_stacks(&self.stack_pointer, next.stack_pointer);
  std::abort();
}

void arrived() {
  sanitizer::entered(host);
}

}  // namespace cudasim
