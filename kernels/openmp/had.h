// Which neighbours of an item each user with a count of it has: one bit for each nonzero and neighbour.
//
// Made once for the counts, so that a pass over the nonzeros looks for nothing: what it takes depends on the number of
// neighbours alone, however many items a user has, and a count's neighbours take L/8 bytes.
#pragma once

#include "tiles.h"

namespace hpf {

constexpr int in_word = 32;  // neighbours of an item whose bits are read together

inline int64_t words_of(int64_t neighbours) {
  return (neighbours + in_word - 1) / in_word;
}

// The bits of one pair of a user and an item.  `has` is 1 for the user's items, and 0 for others and before the first,
// because −1 stands behind an item's last neighbour.
inline void find_had(const uint8_t* has,      // (items,)
                     const int32_t* sources,  // (l,)
                     int64_t l,
                     uint32_t* bits) {  // (words_of(l),)
  for (int64_t first = 0; first < l; first += in_word) {
    const int64_t count = l - first < in_word ? l - first : in_word;
    uint32_t word = 0;
    for (int64_t j = 0; j < count; ++j) word |= uint32_t(has[sources[first + j]]) << j;
    bits[first / in_word] = word;
  }
}

// What a kernel sees.
struct HadView {
  int64_t l;             // neighbours of an item
  const uint32_t* bits;  // (Z, words_of(l)), for nonzeros in the order of the tiles
};

class Had {
 public:
  // For tiles of items and users.  Index is int32_t or int64_t.
  template <class T, class Index>
  Had(const TilesView<T>& tiles,  // (M, N)
      const Index* indptr,        // (N + 1,) items of each user
      const Index* indices,       // (Z,)
      const int32_t* sources,     // (M, l)
      int64_t l, int threads);

  HadView view() const { return {l_, bits_.data()}; }
  int64_t neighbours() const { return l_; }
  int64_t nonzeros() const { return static_cast<int64_t>(bits_.size()) / words_of(l_); }

 private:
  int64_t l_;
  Numbers<uint32_t> bits_;
};

}  // namespace hpf
