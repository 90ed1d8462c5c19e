// Which neighbours of an item a user has.
//
// Besides those of rows.cuh, there are macros for one number of neighbours:
//   HPF_NEIGHBOURS        L, at most, of an item
//   HPF_WEIGHTS_WIDTH     numbers from one row of weights to the next
//   HPF_TABLE_SLOTS   of a hash table for those of one item: a power of two
//   HPF_TABLE_WARPS   of a block, which takes one segment of an item
#pragma once

#include "exact.cuh"
#include "single.cuh"

namespace hpf {

constexpr int neighbours = HPF_NEIGHBOURS, weights_width = HPF_WEIGHTS_WIDTH;
constexpr int slots = HPF_TABLE_SLOTS, table_warps = HPF_TABLE_WARPS, table_threads = table_warps * warp;

// Of users with so many more items than there are neighbours, each neighbour is looked for among the items; of others,
// each item among the neighbours.
constexpr int search_from = 16;

// The items of users.
struct Had {
  const long long* begin;  // (N + 1,)
  const int* item;         // (Z,), ascending for each user
};

// Those of one user.
struct Items {
  long long begin;
  const int* __restrict__ item;  // (size,)
  int size;

  __device__ __forceinline__ Items(const Had& had, int user)
      : begin(had.begin[user]), item(had.item + begin), size(int(had.begin[user + 1] - begin)) {}

  // The place of an item, or −1.
  __device__ __forceinline__ int find(int wanted) const {
    int first = 0, last = size;
    while (first < last) {
      const int middle = (first + last) / 2;
      if (__ldg(item + middle) < wanted)
        first = middle + 1;
      else
        last = middle;
    }
    return first < size && item[first] == wanted ? first : -1;
  }
};

// The neighbours of one item, in shared memory: a hash table of their numbers, a bit for each by which nearly all other
// items are told from them, and their weights.
struct Table {
  int key[slots];
  unsigned bits[slots];
  unsigned short number[slots];
  Real weight[neighbours];

  static __device__ __forceinline__ int slot_of(int item) {
    return int((unsigned(item) * 2654435769u) >> 16) & (slots - 1);
  }

  // By the whole block, which must meet before the table is used.
  template <class T>
  __device__ __forceinline__ void fill(long long item,
                                       const int* __restrict__ source,   // (M, L)
                                       const T* __restrict__ exp_log) {  // (M, weights_width)
    for (int s = threadIdx.x; s < slots; s += table_threads) {
      key[s] = -1;
      bits[s] = 0;
    }
    __syncthreads();
    for (int l = threadIdx.x; l < neighbours; l += table_threads) {
      weight[l] = as_real(exp_log[item * weights_width + l]);
      const int wanted = source[item * neighbours + l];
      if (wanted < 0) continue;
      atomicOr(bits + (wanted / warp & (slots - 1)), 1u << wanted % warp);
      int s = slot_of(wanted);
      while (atomicCAS(key + s, -1, wanted) != -1) s = (s + 1) & (slots - 1);
      number[s] = (unsigned short)l;
    }
  }

  // Whether an item may be a neighbour.
  __device__ __forceinline__ bool may_have(unsigned item) const {
    return bits[item / warp & (slots - 1)] >> item % warp & 1;
  }

  // The number of a neighbour, or −1.
  __device__ __forceinline__ int find(int item) const {
    for (int s = slot_of(item);; s = (s + 1) & (slots - 1)) {
      if (key[s] == item) return number[s];
      if (key[s] < 0) return -1;
    }
  }
};

// Items that wait until a warp looks them up, in shared memory.
using Queue = int[2 * warp];

// What a warp finds among the neighbours of an item: those that a user has.
struct Found {
  Real sum;  // of their weights, in all lanes
  int count;
  int own;  // in one lane the place of the item itself among those of the user, in others −1

  // Their numbers go to `list` (L,), unless it is null.
  __device__ __forceinline__ Found(const Table& table, int item,
                                   const int* __restrict__ source,  // (L,)
                                   const Items& items, Queue& queue, unsigned short* list)
      : sum(0), count(0), own(-1) {
    if (items.size > search_from * (neighbours + 1))
      search(table, item, source, items, list);
    else
      walk(table, item, items, queue, list);
    sum = sum_lanes<warp>(sum);
  }

 private:
  // Looks for each neighbour, and for the item itself, among the items of the user.
  __device__ __forceinline__ void search(const Table& table, int item, const int* __restrict__ source,
                                         const Items& items, unsigned short* list) {
    for (int first = 0; first <= neighbours; first += warp) {
      const int l = first + threadIdx.x % warp, wanted = l < neighbours ? source[l] : l == neighbours ? item : -1;
      const int place = wanted < 0 ? -1 : items.find(wanted);
      if (l == neighbours) own = place;
      add(table, place >= 0 && l < neighbours, l, list);
    }
  }

  // Goes through the items of the user.  Those that may be neighbours wait until there is one for each lane.
  __device__ __forceinline__ void walk(const Table& table, int item, const Items& items, Queue& queue,
                                       unsigned short* list) {
    const int in_warp = threadIdx.x % warp;
    const int* __restrict__ at = items.item + in_warp;
    int waiting = 0, left = items.size - in_warp, next = left > 0 ? __ldg(at) : -1;
    for (int first = 0; first < items.size; first += warp) {
      const int one = next;
      at += warp;
      left -= warp;
      next = left > 0 ? __ldg(at) : -1;
      if (one == item) own = first + in_warp;
      const bool waits = table.may_have(unsigned(one)) & (one >= 0);  // no branch
      const unsigned all = __ballot_sync(whole_warp, waits);
      if (waits) queue[waiting + before(all)] = one;
      waiting += __popc(all);
      if (waiting < warp) continue;
      waiting -= warp;
      look_up(table, queue + waiting, warp, list);
    }
    if (waiting > 0) look_up(table, queue, waiting, list);
  }

  __device__ __forceinline__ void look_up(const Table& table, const int* waiting, int size, unsigned short* list) {
    const int in_warp = threadIdx.x % warp;
    __syncwarp();
    const int number = in_warp < size ? table.find(waiting[in_warp]) : -1;
    __syncwarp();
    add(table, number >= 0, number, list);
  }

  __device__ __forceinline__ void add(const Table& table, bool is_one, int number, unsigned short* list) {
    if (is_one) sum += table.weight[number];
    if (!list) return;
    const unsigned all = __ballot_sync(whole_warp, is_one);
    if (is_one) list[count + before(all)] = (unsigned short)number;
    count += __popc(all);
  }

  // Lanes of a set that precede this one.
  static __device__ __forceinline__ int before(unsigned set) { return __popc(set & ((1u << threadIdx.x % warp) - 1)); }
};

// What sums over factors and over weights are multiplied with, before they are added: the larger of the two is 1, and
// `log` its logarithm.
struct Scales {
  Real factors, weights;
  double log;

  static __device__ __forceinline__ Scales of(double log_factors, double log_weights) {
    const double difference = log_weights - log_factors;
    const Real smaller = exp_of<Real>(difference < 0 ? difference : -difference);
    return difference < 0 ? Scales{1, smaller, log_factors} : Scales{smaller, 1, log_weights};
  }
};

// ln φ of a nonzero but for a constant: K factors, and the L neighbours, −∞ for those that the user has not.
struct LogPhi {
  double value[K + neighbours];

  // Σ φ / e^top, in all lanes.
  __device__ __forceinline__ double sum_exp(double top) const {
    double sum = 0;
    for (int k = threadIdx.x % warp; k < K + neighbours; k += warp) sum += exp_nonpositive(value[k] - top);
    return sum_lanes<warp>(sum);
  }
};

// Computes ln φ by a warp; the largest, in all lanes.
__device__ __forceinline__ double log_phi_with_neighbours(const Gamma& users, int user, const Gamma& items,
                                                          const Gamma& weights, int item,
                                                          const int* __restrict__ source,  // (M, L)
                                                          const Items& had, LogPhi& log_phi) {
  const int in_warp = threadIdx.x % warp;
  __syncwarp();  // other lanes may still read the last one
  const double none = -__longlong_as_double(0x7ff0000000000000LL);
  double top = log_phi_of(users, user, items, item, in_warp, log_phi.value);
  for (int l = in_warp; l < neighbours; l += warp) {
    const int wanted = source[(long long)item * neighbours + l];
    const bool has = wanted >= 0 && had.find(wanted) >= 0;
    const double x = has ? weights.log_mean<weights_width>(item, l) : none;
    log_phi.value[K + l] = x;
    top = x > top ? x : top;
  }
  __syncwarp();
  return max_lanes<warp>(top);
}

}  // namespace hpf
