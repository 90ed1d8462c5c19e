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

// The neighbours of one item, in shared memory: a hash table of their numbers, and their weights.  The item itself is
// there as number L, so that the walk through a user's items finds its place among them.
struct Table {
  int key[slots];
  unsigned short number[slots];
  Real weight[neighbours];

  static __device__ __forceinline__ int slot_of(int item) {
    return int((unsigned(item) * 2654435769u) >> 16) & (slots - 1);
  }

  // By the whole block, which must meet before the table is used.
  template <class T>
  __device__ __forceinline__ void fill(int item,
                                       const int* __restrict__ source,   // (M, L)
                                       const T* __restrict__ exp_log) {  // (M, weights_width)
    for (int s = threadIdx.x; s < slots; s += table_threads) key[s] = -1;
    __syncthreads();
    for (int l = threadIdx.x; l <= neighbours; l += table_threads) {
      if (l < neighbours) weight[l] = as_real(exp_log[(long long)item * weights_width + l]);
      const int wanted = l < neighbours ? source[(long long)item * neighbours + l] : item;
      if (wanted < 0) continue;
      int s = slot_of(wanted);
      while (atomicCAS(key + s, -1, wanted) != -1) s = (s + 1) & (slots - 1);
      number[s] = (unsigned short)l;
    }
  }

  // The number of a neighbour, or −1.
  __device__ __forceinline__ int find(int item) const {
    for (int s = slot_of(item);; s = (s + 1) & (slots - 1)) {
      if (key[s] == item) return number[s];
      if (key[s] < 0) return -1;
    }
  }
};

// What a warp finds among the neighbours of an item: those that a user has.
struct Found {
  Real sum;  // of their weights, in all lanes
  int count;
  int own;  // in one lane the place of the item itself among those of the user, in others −1

  // Their numbers go to `list` (L,), unless it is null.
  __device__ __forceinline__ Found(const Table& table, int item,
                                   const int* __restrict__ source,  // (L,)
                                   const Items& items, unsigned short* list)
      : sum(0), count(0), own(-1) {
    const int in_warp = threadIdx.x % warp;
    if (items.size > search_from * (neighbours + 1)) {
      for (int first = 0; first <= neighbours; first += warp) {
        const int l = first + in_warp, wanted = l < neighbours ? source[l] : l == neighbours ? item : -1;
        const int place = wanted < 0 ? -1 : items.find(wanted);
        add(table, place < 0 ? -1 : l, place, list);
      }
    } else {
      int next = in_warp < items.size ? __ldg(items.item + in_warp) : -1;
      for (int first = 0; first < items.size; first += warp) {
        const int place = first + in_warp, one = next;
        next = place + warp < items.size ? __ldg(items.item + place + warp) : -1;
        add(table, place < items.size ? table.find(one) : -1, place, list);
      }
    }
    sum = sum_lanes<warp>(sum);
  }

 private:
  __device__ __forceinline__ void add(const Table& table, int number, int place, unsigned short* list) {
    if (number == neighbours) own = place;
    const bool is_one = number >= 0 && number < neighbours;
    if (is_one) sum += table.weight[number];
    if (!list) return;
    const unsigned all = __ballot_sync(whole_warp, is_one);
    if (is_one) list[count + __popc(all & ((1u << threadIdx.x % warp) - 1))] = (unsigned short)number;
    count += __popc(all);
  }
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
