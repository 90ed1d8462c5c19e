// All memory that the module takes beside what Python gives it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hpf {

// Memory for `count` objects of `size` bytes, on whole pairs of cache lines and not one byte longer, so that a
// sanitizer sees what goes beyond.  Throws std::bad_alloc: never call it in a parallel region, which an exception must
// not leave.
void* take_memory(int64_t count, size_t size);
void give_back(void* memory) noexcept;

// For tests: the n-th allocation from now on fails, the next one being number 0; a negative n lets all succeed.
void fail_allocation(int64_t n) noexcept;
// For tests: pieces of memory that were taken and not given back.
int64_t pieces_in_use() noexcept;

}  // namespace hpf
