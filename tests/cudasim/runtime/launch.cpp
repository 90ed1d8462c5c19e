// A launch: checks its configuration, then runs its blocks one after another.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <numeric>

#include "block.h"
#include "memory.h"
#include "sanitizers.h"

namespace cudasim {

namespace {

// CuPy compiles with -ftz=true: denormal float32 numbers are zero.  Here float64 ones are as well.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | flush_to_zero | denormals_are_zero); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned flush_to_zero = 0x8000, denormals_are_zero = 0x40;
  unsigned before_;
};

// Turns a fault inside a kernel into an error of the launch.  Faults elsewhere go where they went before.
class FaultHandler {
 public:
  FaultHandler() {
    if (sanitizer::handles_faults) return;
    stack_t stack{};
    stack.ss_sp = stack_;
    stack.ss_size = sizeof stack_;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_action_);
  }
  ~FaultHandler() {
    if (sanitizer::handles_faults) return;
    sigaction(SIGSEGV, &old_action_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static void handle(int, siginfo_t* info, void* context) {
    if (!in_kernel()) {
      sigaction(SIGSEGV, &old_action_, nullptr);
      return;
    }
    greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const Fibre& at = *current_fibre();
    // Python puts the source line in place of {the instruction's address}.
    report("{%llx}: access to memory at %p, which belongs to no array [block (%u, %u, %u), thread (%u, %u, %u)]",
           registers[REG_RIP], info->si_addr, at.block.x, at.block.y, at.block.z, at.index.x, at.index.y, at.index.z);
    // The kernel's stack is of no further use, and may be what overflowed: start it afresh.
    registers[REG_RIP] = reinterpret_cast<greg_t>(abandon_block);
    registers[REG_RSP] = reinterpret_cast<greg_t>(at.stack + at.stack_size) - 8;
  }

  static inline char stack_[1 << 16];
  static inline stack_t old_stack_;
  static inline struct sigaction old_action_;
};

class DynamicSharedMemory {
 public:
  void resize(size_t size) {
    if (memory_) {
      sanitizer::fence_off(memory_, capacity_, capacity_);
      free_guarded(memory_, capacity_);
    }
    size_ = size;
    capacity_ = (size + 15) / 16 * 16;
    memory_ = allocate_guarded(capacity_);
    sanitizer::fence_off(memory_, capacity_, size_);
  }
  char* begin() const { return memory_; }
  char* end() const { return memory_ + size_; }

 private:
  char* memory_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

DynamicSharedMemory dynamic_shared;

uint64_t volume(const unsigned (&size)[3]) {
  return uint64_t{size[0]} * size[1] * size[2];
}

bool accept(const Launch& how) {
  const auto& [grid, block, shared, shared_limit, seed] = how;
  if (!volume(block) || volume(block) > max_threads || block[2] > 64) {
    report("invalid block (%u, %u, %u)", block[0], block[1], block[2]);
  } else if (!volume(grid) || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) {
    report("invalid grid (%u, %u, %u)", grid[0], grid[1], grid[2]);
  } else if (shared > shared_limit) {
    report("%zu bytes of dynamic shared memory are over the limit of %zu", shared, shared_limit);
  }
  return !*error;
}

void renew(char* begin, char* end) {
  sanitizer::new_memory(begin, static_cast<size_t>(end - begin));
  poison(begin, end);
}

uint3 block_at(uint64_t position) {
  const uint64_t row = position / grid_size.x;
  return {static_cast<unsigned>(position % grid_size.x), static_cast<unsigned>(row % grid_size.y),
          static_cast<unsigned>(row / grid_size.y)};
}

// Runs the blocks in the order offset, offset + step, offset + 2 step, ... modulo their number.
void run_blocks(const Code& code, Job& job, uint64_t blocks) {
  uint64_t step = 1, position = 0;
  if (job.shuffled) {
    position = job.random.below(blocks);
    do {
      step = job.random.below(blocks) + 1;
    } while (std::gcd(step, blocks) != 1);
  }
  for (uint64_t i = 0; i < blocks; ++i) {
    renew(code.shared_begin, code.shared_end);
    renew(dynamic_shared.begin(), dynamic_shared.end());
    if (!run_block(job, block_at(position))) return;
    position = (position + step) % blocks;
  }
}

}  // namespace

char* dynamic_shared_memory() {
  return dynamic_shared.begin();
}

const char* launch(const Code& code, const Launch& how, void** arguments) {
  clear_error();
  if (!accept(how)) return error;
  grid_size = {how.grid[0], how.grid[1], how.grid[2]};
  block_size = {how.block[0], how.block[1], how.block[2]};
  dynamic_shared.resize(how.dynamic_shared);
  Job job{code.call, arguments, how.seed != 0, {0x9e3779b97f4a7c15 ^ how.seed}};
  {
    const FlushDenormals flush;
    const FaultHandler handler;
    begin_launch();
    run_blocks(code, job, volume(how.grid));
    end_launch();
  }
  return *error ? error : nullptr;
}

}  // namespace cudasim
