#include "had.h"

#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace hpf {

template <class T, class Index>
Had::Had(const TilesView<T>& tiles, const Index* indptr, const Index* indices, const int32_t* sources, int64_t l,
         int threads)
    : l_(l) {
  const int64_t items = tiles.rows, words = words_of(l);
  bits_.resize(tiles.tiles[tiles.row_blocks * tiles.column_blocks].first_nonzero * words);
  const int team = static_cast<int>(std::min<int64_t>(tiles.row_blocks, threads));
  // A thread's own, with room before the first item, and whole cache lines apart.
  const int64_t apart = (items + 1 + 127) / 64 * 64;
  Numbers<int64_t> next_of_item(team * apart);
  Numbers<uint8_t> has_item(team * apart, uint8_t(0));
#pragma omp parallel num_threads(team)
  {
#if defined(_OPENMP)
    const int64_t share = omp_get_thread_num() * apart;
#else
    const int64_t share = 0;
#endif
    int64_t* next = next_of_item.data() + share;
    uint8_t* has = has_item.data() + share + 1;
#pragma omp for schedule(dynamic, 1)
    for (int64_t c = 0; c < tiles.column_blocks; ++c) {
      // An item's nonzeros of these users lie together, in the order of users.
      for (int64_t r = 0; r < tiles.row_blocks; ++r) {
        const Tile* tile = tiles.tiles + r * tiles.column_blocks + c;
        int64_t z = tile->first_nonzero;
        for (int64_t segment = tile->first_segment; segment < (tile + 1)->first_segment; ++segment) {
          next[tiles.segment_row[segment]] = z;
          z += tiles.segment_size[segment];
        }
      }
      for (int64_t u = tiles.column_start[c]; u < tiles.column_start[c + 1]; ++u) {
        for (int64_t z = indptr[u]; z < int64_t(indptr[u + 1]); ++z) has[indices[z]] = 1;
        for (int64_t z = indptr[u]; z < int64_t(indptr[u + 1]); ++z) {
          const int64_t i = indices[z];
          find_had(has, sources + i * l, l, bits_.data() + next[i]++ * words);
        }
        for (int64_t z = indptr[u]; z < int64_t(indptr[u + 1]); ++z) has[indices[z]] = 0;
      }
    }
  }
}

#define HPF_INSTANTIATE(T, Index) \
  template Had::Had(const TilesView<T>&, const Index*, const Index*, const int32_t*, int64_t, int);
HPF_INSTANTIATE(float, int32_t)
HPF_INSTANTIATE(float, int64_t)
HPF_INSTANTIATE(double, int32_t)
HPF_INSTANTIATE(double, int64_t)
#undef HPF_INSTANTIATE

}  // namespace hpf
