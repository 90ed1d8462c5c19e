#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "sanitizers.h"

namespace cudasim {

namespace {

constexpr size_t page = 4096, alignment = 16;  // of a float4

constexpr size_t round_up(size_t size, size_t unit) {
  return (size + unit - 1) / unit * unit;
}

// [guard page][slack][memory, up to the next guard page][guard page]
struct Layout {
  size_t used, pages, total;
  explicit Layout(size_t size)
      : used(round_up(size, alignment)), pages(round_up(used, page)), total(pages + 2 * page) {}
  size_t offset() const { return page + pages - used; }
};

}  // namespace

char* allocate_guarded(size_t size) {
  const Layout layout(size);
  void* const mapped = mmap(nullptr, layout.total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const start = static_cast<char*>(mapped);
  std::memset(start + page, 0xff, layout.pages);
  mprotect(start, page, PROT_NONE);
  mprotect(start + page + layout.pages, page, PROT_NONE);
  return start + layout.offset();
}

void free_guarded(char* memory, size_t size) {
  const Layout layout(size);
  munmap(memory - layout.offset(), layout.total);
}

// Skips what ASan keeps between variables.
void poison(char* begin, char* end) {
  for (char* byte = begin; byte < end; ++byte) {
    if (sanitizer::accessible(byte)) *byte = static_cast<char>(0xff);
  }
}

}  // namespace cudasim

// The sanitizers know of malloc: ASan's redzones are exact to the byte, and TSan tells where memory
// that threads race for was allocated.
#if defined(CUDASIM_ASAN) || defined(CUDASIM_TSAN)
#define CUDASIM_MALLOC
#endif

extern "C" __attribute__((visibility("default"))) void* cudasim_allocate(size_t size) {
#ifdef CUDASIM_MALLOC
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, size ? size : 1)) return nullptr;
  return std::memset(memory, 0xff, size);
#else
  return cudasim::allocate_guarded(size);
#endif
}

extern "C" __attribute__((visibility("default"))) void cudasim_free(void* memory, [[maybe_unused]] size_t size) {
#ifdef CUDASIM_MALLOC
  std::free(memory);
#else
  cudasim::free_guarded(static_cast<char*>(memory), size);
#endif
}
