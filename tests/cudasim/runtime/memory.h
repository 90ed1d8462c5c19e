// Device memory that shows where an array is read past its end, or before it was written.
#pragma once

#include <cstddef>

namespace cudasim {

// Memory whose end (to 16 bytes) touches a page without access, filled with 0xFF: NaN as a float,
// -1 as an integer.
char* allocate_guarded(size_t size);
void free_guarded(char* memory, size_t size);

void poison(char* begin, char* end);

}  // namespace cudasim
