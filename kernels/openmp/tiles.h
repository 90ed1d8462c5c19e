// Counts cut into tiles: row block × column block.
//
// A row block is one thread's share of the rows; a column block is small enough for its factors to
// stay in cache.  In step s, thread t works on tile (t, (t·stride + s) mod blocks): no two threads
// ever share rows or columns, so both sides are summed in one pass, without atomics and always in
// the same order.
#pragma once

#include <cstdint>
#include <new>
#include <variant>
#include <vector>

#include "memory.h"

namespace hpf {

// A vector's memory is the module's, and numbers that it grows by without a value are not set: they are written
// once, by the threads that make them.
template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class Other>
  Allocator(const Allocator<Other>&) {}
  T* allocate(size_t size) { return static_cast<T*>(take_memory(static_cast<int64_t>(size), sizeof(T))); }
  void deallocate(T* memory, size_t) { give_back(memory); }
  template <class Number>
  void construct(Number* at) noexcept {
    ::new (static_cast<void*>(at)) Number;
  }
  template <class Number, class Value>
  void construct(Number* at, const Value& value) noexcept {
    ::new (static_cast<void*>(at)) Number(value);
  }
  friend bool operator==(const Allocator&, const Allocator&) { return true; }
  friend bool operator!=(const Allocator&, const Allocator&) { return false; }
};
template <class T>
using Numbers = std::vector<T, Allocator<T>>;

struct Tile {
  int64_t first_segment, first_nonzero;  // one past the end: those of the next tile
};

// Entries behind the end of `column` and `segment_row` that may be read, so that kernels can look ahead.
constexpr int nonzeros_beyond = 64, segments_beyond = 4;

// What a kernel sees; plain pointers, so that code for several instruction sets can share it.
template <class T>
struct TilesView {
  int64_t rows, columns;
  int64_t row_blocks, column_blocks;
  const int64_t* row_start;     // (row_blocks + 1,)
  const int64_t* column_start;  // (column_blocks + 1,)
  const Tile* tiles;            // (row_blocks * column_blocks + 1,), by row block
  const int32_t* segment_row;   // (segments,) row of each run of nonzeros
  const int32_t* segment_size;  // (segments,) its number of nonzeros
  const int32_t* column;        // (Z,)
  const T* value;               // (Z,)
};

// Tiles in few bytes: numbers in whichever of some types they are.
using Integers = std::variant<const uint8_t*, const uint16_t*, const uint32_t*>;
template <class T>
struct PackedTiles {
  int64_t rows, columns;
  int64_t row_blocks, column_blocks;
  int64_t segments, nonzeros;
  const int64_t* row_start;                                       // (row_blocks + 1,)
  const int64_t* column_start;                                    // (column_blocks + 1,)
  const int64_t* first;                                           // (row_blocks * column_blocks + 1, 2), as in Tile
  Integers segment_step;                                          // (segments,) rows from the last one in the tile, or
                                                                  // from where those of the tile begin
  Integers segment_size;                                          // (segments,)
  Integers column_offset;                                         // (Z,) columns from where those of the tile begin
  std::variant<const uint8_t*, const uint16_t*, const T*> value;  // (Z,)
};

template <class T>
class Tiles {
 public:
  // CSR with sorted columns.  Index is int32_t or int64_t.
  template <class Index>
  Tiles(int64_t rows, int64_t columns,
        const Index* indptr,   // (rows + 1,)
        const Index* indices,  // (Z,)
        const T* data,         // (Z,)
        int64_t row_blocks, int64_t column_block_size);

  // Throws std::invalid_argument if the arrays contradict each other, as those of a damaged file may.
  Tiles(const PackedTiles<T>& packed, int threads);

  TilesView<T> view() const;
  int64_t segments() const { return static_cast<int64_t>(segment_size_.size()); }
  int64_t nonzeros() const { return static_cast<int64_t>(value_.size()); }

 private:
  // Memory for segments and nonzeros, once all tiles know their first ones.
  void allocate();

  int64_t rows_, columns_;
  Numbers<int64_t> row_start_, column_start_;
  Numbers<Tile> tiles_;
  Numbers<int32_t> segment_row_, segment_size_, column_;
  Numbers<T> value_;
};

}  // namespace hpf
