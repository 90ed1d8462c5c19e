#include "memory.h"

#include <atomic>
#include <new>

namespace hpf {

namespace {

constexpr std::align_val_t line{128};     // two lines of the cache: processors prefetch the other one
std::atomic<int64_t> before_failure{-1};  // allocations; negative: there will be none
std::atomic<int64_t> in_use{0};

}  // namespace

void* take_memory(int64_t count, size_t size) {
  size_t bytes;
  if (count < 0 || __builtin_mul_overflow(static_cast<size_t>(count), size, &bytes)) throw std::bad_alloc();
  if (before_failure.load(std::memory_order_relaxed) >= 0 && before_failure.fetch_sub(1) == 0) throw std::bad_alloc();
  void* memory = ::operator new(bytes, line);
  in_use.fetch_add(1, std::memory_order_relaxed);
  return memory;
}

void give_back(void* memory) noexcept {
  if (!memory) return;
  in_use.fetch_sub(1, std::memory_order_relaxed);
  ::operator delete(memory, line);
}

void fail_allocation(int64_t n) noexcept {
  before_failure = n;
}

int64_t pieces_in_use() noexcept {
  return in_use;
}

}  // namespace hpf
