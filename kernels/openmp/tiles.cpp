#include "tiles.h"

#include <algorithm>
#include <stdexcept>

namespace hpf {

namespace {

// Cuts 0..n into `blocks` ranges of about equal weight; `weight_before(i)` is that of 0..i.
template <class Weight>
Numbers<int64_t> balanced_cuts(int64_t n, int64_t blocks, int64_t total, Weight weight_before) {
  Numbers<int64_t> cuts(blocks + 1, n);
  cuts[0] = 0;
  for (int64_t b = 1, i = 0; b < blocks; ++b) {
    while (i < n && weight_before(i) < total * b / blocks) ++i;
    cuts[b] = i;
  }
  return cuts;
}

// Whether 0..n is cut into ranges, some of which may be empty.
bool are_cuts(const Numbers<int64_t>& cuts, int64_t n) {
  return cuts.front() == 0 && cuts.back() == n && std::is_sorted(cuts.begin(), cuts.end());
}

// Widens the rows of a tile's segments; whether they ascend and lie below `end`.
template <class Number>
bool widen_rows(const Number* step, int64_t segments, int64_t start, int64_t end, int32_t* row) {
  int64_t last = start;
  bool ascend = true;
  for (int64_t s = 0; s < segments; ++s) {
    ascend &= s == 0 || step[s] > 0;
    last += step[s];
    row[s] = static_cast<int32_t>(last);
  }
  return segments == 0 || (ascend && last < end);
}

// Widens the sizes of a tile's segments; whether they are from 1 to `most` and add up to `nonzeros`.
template <class Number>
bool widen_sizes(const Number* packed, int64_t segments, int64_t most, int64_t nonzeros, int32_t* size) {
  int64_t total = 0;
  bool fit = true;
  for (int64_t s = 0; s < segments; ++s) {
    fit &= packed[s] > 0 && int64_t(packed[s]) <= most;
    total += packed[s];
    size[s] = static_cast<int32_t>(packed[s]);
  }
  return fit && total == nonzeros;
}

// Widens the columns of a tile, which begin at `start`; whether all offsets are below `width`.
template <class Number>
bool widen_columns(const Number* offset, int64_t nonzeros, int64_t start, int64_t width, int32_t* column) {
  Number largest = 0;
  for (int64_t z = 0; z < nonzeros; ++z) {
    largest = std::max(largest, offset[z]);
    column[z] = static_cast<int32_t>(static_cast<uint32_t>(start) + offset[z]);
  }
  return nonzeros == 0 || int64_t(largest) < width;
}

}  // namespace

template <class T>
template <class Index>
Tiles<T>::Tiles(int64_t rows, int64_t columns, const Index* indptr, const Index* indices, const T* data,
                int64_t row_blocks, int64_t column_block_size)
    : rows_(rows), columns_(columns) {
  const int64_t nonzeros = indptr[rows];
  row_start_ = balanced_cuts(rows, row_blocks, nonzeros, [&](int64_t u) { return int64_t(indptr[u]); });

  // Column blocks of equal weight where columns are few; never wider than the cache allows.
  Numbers<int64_t> before(columns + 1, 0);
  for (int64_t z = 0; z < nonzeros; ++z) ++before[indices[z] + 1];
  for (int64_t i = 0; i < columns; ++i) before[i + 1] += before[i];
  const int64_t blocks = std::max(row_blocks, (columns + column_block_size - 1) / column_block_size);
  const auto even = balanced_cuts(columns, blocks, nonzeros, [&](int64_t i) { return before[i]; });
  column_start_.push_back(0);
  for (int64_t b = 1; b <= blocks; ++b) {
    while (even[b] - column_start_.back() > column_block_size)
      column_start_.push_back(column_start_.back() + column_block_size);
    column_start_.push_back(even[b]);
  }
  const int64_t column_blocks = static_cast<int64_t>(column_start_.size()) - 1;

  // Rows are sorted by column, so one walk along the row finds its run in every column block.
  const auto for_each_run = [&](int64_t r, auto&& visit) {
    for (int64_t u = row_start_[r]; u < row_start_[r + 1]; ++u) {
      int64_t z = indptr[u];
      const int64_t end = indptr[u + 1];
      for (int64_t c = 0; z < end; ++c) {
        if (indices[z] >= column_start_[c + 1])
          c = std::upper_bound(column_start_.begin() + c + 1, column_start_.end(), int64_t(indices[z])) -
              column_start_.begin() - 1;
        const int64_t begin = z;
        while (z < end && indices[z] < column_start_[c + 1]) ++z;
        visit(c, u, begin, z);
      }
    }
  };

  tiles_.assign(row_blocks * column_blocks + 1, Tile{0, 0});
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(row_blocks))
  for (int64_t r = 0; r < row_blocks; ++r)
    for_each_run(r, [&](int64_t c, int64_t, int64_t begin, int64_t end) {
      Tile& next = tiles_[r * column_blocks + c + 1];
      next.first_segment += 1;
      next.first_nonzero += end - begin;
    });
  for (size_t t = 1; t < tiles_.size(); ++t) {
    tiles_[t].first_segment += tiles_[t - 1].first_segment;
    tiles_[t].first_nonzero += tiles_[t - 1].first_nonzero;
  }
  allocate();
  // Where each thread is in its tiles: on cache lines of its own, and taken here, for no exception may leave a
  // parallel region.
  const int64_t apart = (column_blocks + 7) / 8 * 8;
  Numbers<Tile> next_of_tile(row_blocks * apart);
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(row_blocks))
  for (int64_t r = 0; r < row_blocks; ++r) {
    Tile* at = next_of_tile.data() + r * apart;
    std::copy_n(tiles_.begin() + r * column_blocks, column_blocks, at);
    for_each_run(r, [&](int64_t c, int64_t u, int64_t begin, int64_t end) {
      segment_row_[at[c].first_segment] = static_cast<int32_t>(u);
      segment_size_[at[c].first_segment++] = static_cast<int32_t>(end - begin);
      for (int64_t z = begin; z < end; ++z) {
        column_[at[c].first_nonzero] = static_cast<int32_t>(indices[z]);
        value_[at[c].first_nonzero++] = data[z];
      }
    });
  }
}

template <class T>
Tiles<T>::Tiles(const PackedTiles<T>& packed, int threads)
    : rows_(packed.rows),
      columns_(packed.columns),
      row_start_(packed.row_start, packed.row_start + packed.row_blocks + 1),
      column_start_(packed.column_start, packed.column_start + packed.column_blocks + 1) {
  const int64_t tiles = packed.row_blocks * packed.column_blocks;
  tiles_.resize(tiles + 1);
  for (int64_t t = 0; t <= tiles; ++t) tiles_[t] = {packed.first[2 * t], packed.first[2 * t + 1]};
  // With fewer column blocks than row blocks, two threads would meet in one.
  bool fits = packed.row_blocks <= packed.column_blocks && are_cuts(row_start_, rows_) &&
              are_cuts(column_start_, columns_) && tiles_[0].first_segment == 0 && tiles_[0].first_nonzero == 0 &&
              tiles_[tiles].first_segment == packed.segments && tiles_[tiles].first_nonzero == packed.nonzeros;
  for (int64_t t = 0; t < tiles; ++t)
    fits &= tiles_[t].first_segment <= tiles_[t + 1].first_segment &&
            tiles_[t].first_nonzero <= tiles_[t + 1].first_nonzero;
  if (fits) {
    allocate();
    const int team = static_cast<int>(std::min<int64_t>(packed.row_blocks, threads));
#pragma omp parallel for schedule(static, 1) num_threads(team) reduction(&& : fits)
    for (int64_t r = 0; r < packed.row_blocks; ++r)
      for (int64_t c = 0; c < packed.column_blocks; ++c) {
        const Tile &tile = tiles_[r * packed.column_blocks + c], &next = *(&tile + 1);
        const int64_t s = tile.first_segment, segments = next.first_segment - s;
        const int64_t z = tile.first_nonzero, nonzeros = next.first_nonzero - z;
        const int64_t start = column_start_[c], width = column_start_[c + 1] - start;
        const auto rows_fit = [&](auto* step) {
          return widen_rows(step + s, segments, row_start_[r], row_start_[r + 1], segment_row_.data() + s);
        };
        const auto sizes_fit = [&](auto* size) {
          return widen_sizes(size + s, segments, width, nonzeros, segment_size_.data() + s);
        };
        const auto columns_fit = [&](auto* offset) {
          return widen_columns(offset + z, nonzeros, start, width, column_.data() + z);
        };
        fits = fits && std::visit(rows_fit, packed.segment_step) && std::visit(sizes_fit, packed.segment_size) &&
               std::visit(columns_fit, packed.column_offset);
        std::visit([&](auto* value) { std::copy_n(value + z, nonzeros, value_.data() + z); }, packed.value);
      }
  }
  if (!fits) throw std::invalid_argument("the arrays of packed counts contradict each other");
}

template <class T>
void Tiles<T>::allocate() {
  const auto [segments, nonzeros] = tiles_.back();
  segment_row_.resize(segments + segments_beyond);
  segment_size_.resize(segments);
  column_.resize(nonzeros + nonzeros_beyond);
  value_.resize(nonzeros);
  std::fill_n(segment_row_.end() - segments_beyond, segments_beyond, 0);
  std::fill_n(column_.end() - nonzeros_beyond, nonzeros_beyond, 0);
}

template <class T>
TilesView<T> Tiles<T>::view() const {
  return {rows_,
          columns_,
          static_cast<int64_t>(row_start_.size()) - 1,
          static_cast<int64_t>(column_start_.size()) - 1,
          row_start_.data(),
          column_start_.data(),
          tiles_.data(),
          segment_row_.data(),
          segment_size_.data(),
          column_.data(),
          value_.data()};
}

#define HPF_INSTANTIATE(T, Index) \
  template Tiles<T>::Tiles(int64_t, int64_t, const Index*, const Index*, const T*, int64_t, int64_t);
HPF_INSTANTIATE(float, int32_t)
HPF_INSTANTIATE(float, int64_t)
HPF_INSTANTIATE(double, int32_t)
HPF_INSTANTIATE(double, int64_t)
template class Tiles<float>;
template class Tiles<double>;

}  // namespace hpf
