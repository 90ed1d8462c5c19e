// How warps share a GPU and its caches while they gather rows: compiled by caches.py.
//
// Warps advance in rounds: in each of them every resident warp takes its next nonzeros.  A block leaves when
// all its warps are done, and the next one takes its place.  Each multiprocessor has an L1 cache, all share an
// L2 cache; both hold whole rows and forget the one that was used longest ago.  A round lasts as long as the
// scarcest of its resources needs.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int kL1Ways = 8, kL2Ways = 16;  // at least

class Cache {
 public:
  Cache(int64_t rows, int ways)
      : sets_(std::max<int64_t>(1, rows / ways)), ways_(std::max<int64_t>(1, rows / sets_)), place_(sets_ * ways_) {}

  // Whether the row is there; it is afterwards.
  bool find(int32_t row) {
    const uint64_t hash = (row + 1ULL) * 0xd1b54a32d192ed03ULL >> 32;
    Place* set = &place_[(hash * sets_ >> 32) * ways_];
    Place* oldest = set;
    ++now_;
    for (Place* place = set; place < set + ways_; ++place) {
      if (place->row == row) {
        place->used = now_;
        return true;
      }
      if (place->used < oldest->used) oldest = place;
    }
    *oldest = {row, now_};
    return false;
  }

 private:
  struct Place {
    int32_t row = -1;
    uint32_t used = 0;
  };
  int64_t sets_, ways_;
  std::vector<Place> place_;
  uint32_t now_ = 0;
};

struct Warp {
  int64_t next, end;     // nonzeros
  int64_t followed, at;  // the next one that is followed, and which nonzero it is
  int64_t waits;         // rounds before its first nonzeros
};

}  // namespace

extern "C" {

struct Machine {
  int64_t multiprocessors, blocks, warps;  // resident blocks of a multiprocessor, warps of a block
  int64_t l1_rows, l2_rows;                // capacities, for the rows that are followed
  int64_t step, waits;                     // nonzeros that a warp takes in a round, and rounds before them
  double row_bytes;
  double nonzero_l2_bytes, nonzero_dram_bytes, segment_l2_bytes, segment_dram_bytes;  // all else that is moved
  double step_seconds, segment_seconds;  // of a multiprocessor's busiest unit
  double l2_rate, dram_rate;             // bytes a second
  double l2_latency, dram_latency;       // seconds
};

struct Segments {  // in the order in which they are launched
  int64_t count;
  const int64_t* begin;     // (S,) first nonzero
  const int32_t* size;      // (S,) nonzeros
  const int64_t* followed;  // (S,) the first nonzero that is followed
};

// Of the nonzeros, those that are followed through the caches.
struct Followed {
  int64_t count;
  const int64_t* at;      // (F,) which nonzero each of them is, ascending
  const int32_t* column;  // (F,)
};

struct Traffic {
  int64_t followed, l1_hits, l2_hits;  // rows
  int64_t busy, slots, rounds;         // of warps, in all rounds
  double latency, l2, dram, unit;      // seconds, by what the rounds waited for
};

void gather(const Machine* machine, const Segments* segments, const Followed* nonzeros, Traffic* traffic) {
  const Machine& m = *machine;
  std::vector<Cache> l1(m.multiprocessors, Cache(m.l1_rows, kL1Ways));
  Cache l2(m.l2_rows, kL2Ways);

  const auto at = [&](int64_t followed) { return followed < nonzeros->count ? nonzeros->at[followed] : INT64_MAX; };
  // Places for blocks: i, i + multiprocessors, ... are those of multiprocessor i.
  const int64_t places = m.multiprocessors * m.blocks;
  std::vector<Warp> warps(places * m.warps);
  std::vector<int64_t> present(places);  // warps of each block; none where no block is left
  int64_t next = 0, running = 0, started = 0;
  const auto start = [&](int64_t place) {
    const int64_t count = std::min(segments->count - next, m.warps);
    for (int64_t w = 0; w < count; ++w, ++next) {
      const int64_t begin = segments->begin[next], followed = segments->followed[next];
      warps[place * m.warps + w] = {begin, begin + segments->size[next], followed, at(followed), m.waits};
    }
    present[place] = count;
    running += count > 0;
    started += count;
  };
  for (int64_t place = 0; place < places; ++place) start(place);

  Traffic total{};
  std::vector<double> work(m.multiprocessors);
  for (; running > 0; ++total.rounds) {
    std::fill(work.begin(), work.end(), 0.0);
    const int64_t starting = started;
    int64_t taken = 0, followed = 0, l1_hits = 0, l2_hits = 0;
    started = 0;
    for (int64_t place = 0; place < places; ++place) {
      if (present[place] == 0) continue;
      const int64_t multiprocessor = place % m.multiprocessors;
      Warp* const first = &warps[place * m.warps];
      bool done = true;
      total.slots += m.warps;
      for (Warp* warp = first; warp < first + present[place]; ++warp) {
        if (warp->waits > 0) {
          if (warp->waits-- == m.waits) work[multiprocessor] += m.segment_seconds;
        } else if (warp->next < warp->end) {
          const int64_t end = std::min(warp->end, warp->next + m.step);
          taken += end - warp->next;
          work[multiprocessor] += m.step_seconds;
          for (; warp->at < end; warp->at = at(++warp->followed)) {
            const int32_t row = nonzeros->column[warp->followed];
            ++followed;
            if (l1[multiprocessor].find(row))
              ++l1_hits;
            else
              l2_hits += l2.find(row);
          }
          warp->next = end;
        } else {
          continue;
        }
        ++total.busy;
        done = done && warp->next == warp->end && warp->waits == 0;
      }
      if (done) {
        --running;
        start(place);
      }
    }
    const double rows = followed ? double(taken) / followed : 0;  // for each that is followed
    const double crossing = (followed - l1_hits) * rows, misses = (followed - l1_hits - l2_hits) * rows;
    // A column number comes from DRAM, then the rows of a step: one from DRAM delays all of them.
    const double all_hit = taken ? std::pow(1 - misses / taken, double(m.step)) : 1;
    const double latency = m.dram_latency + all_hit * m.l2_latency + (1 - all_hit) * m.dram_latency;
    const double on_l2 =
        (crossing * m.row_bytes + taken * m.nonzero_l2_bytes + starting * m.segment_l2_bytes) / m.l2_rate;
    const double on_dram =
        (misses * m.row_bytes + taken * m.nonzero_dram_bytes + starting * m.segment_dram_bytes) / m.dram_rate;
    const double on_unit = *std::max_element(work.begin(), work.end());
    const double longest = std::max({latency, on_l2, on_dram, on_unit});
    (longest == on_dram   ? total.dram
     : longest == on_l2   ? total.l2
     : longest == on_unit ? total.unit
                          : total.latency) += longest;
    total.followed += followed;
    total.l1_hits += l1_hits;
    total.l2_hits += l2_hits;
  }
  *traffic = total;
}

}  // extern "C"
