// Between items, whatever the number of factors and of neighbours: which ones occur together, and what the items of a
// user add to the rates of others.
#include "segments.cuh"

using namespace hpf;

// Σ w over the neighbours of an item that a user has, for pairs: a warp for each, which looks for every neighbour.
extern "C" __global__ void __launch_bounds__(HPF_THREADS, 1)
    neighbour_rates(const long long* had_begin,       // (N + 1,)
                    const int* __restrict__ had,      // (Z',) items of users, ascending
                    const int* __restrict__ source,   // (I, L) neighbours of some items
                    const Real* __restrict__ weight,  // (M, stride)
                    int neighbours,                   // L
                    int stride,
                    const long long* row,     // (Z,) users
                    const long long* column,  // (Z,) items
                    const int* place,         // (Z,) rows of `source` with the neighbours of those
                    long long pairs,          // Z
                    Real* out) {              // (Z,)
  const long long z = global_warp();
  if (z >= pairs) return;
  const int in_warp = threadIdx.x % warp;
  const int* __restrict__ sources = source + (long long)place[z] * neighbours;
  const Real* __restrict__ weights = weight + column[z] * stride;
  const long long begin = had_begin[row[z]], end = had_begin[row[z] + 1];
  Real sum = 0;
  for (int l = in_warp; l < neighbours; l += warp) {
    const int wanted = sources[l];
    long long first = begin, last = end;
    while (first < last) {
      const long long middle = (first + last) / 2;
      if (__ldg(had + middle) < wanted)
        first = middle + 1;
      else
        last = middle;
    }
    if (wanted >= 0 && first < end && had[first] == wanted) sum += weights[l];
  }
  sum = sum_lanes<warp>(sum);
  if (in_warp == 0) out[z] = sum;
}

constexpr int item_threads = 256, digits = 256;

// What the items of users add to the scores of others: a block for each user, which takes one of her items after the
// other, so that each sum has its order.
extern "C" __global__ void __launch_bounds__(item_threads, 1)
    add_scores(const long long* had_begin,       // (N + 1,)
               const int* had,                   // (Z',) rows of `target`
               const long long* target_begin,    // (J + 1,)
               const int* __restrict__ target,   // (P,) items, ascending in a row
               const Real* __restrict__ weight,  // (P,)
               int items,                        // M
               Real* out) {                      // (N, M)
  const long long user = blockIdx.x;
  Real* scores = out + user * items;
  for (int i = threadIdx.x; i < items; i += item_threads) scores[i] = 0;
  for (long long h = had_begin[user]; h < had_begin[user + 1]; ++h) {
    __syncthreads();
    const long long end = target_begin[had[h] + 1];
    for (long long p = target_begin[had[h]] + threadIdx.x; p < end; p += item_threads) scores[target[p]] += weight[p];
  }
}

// The order of doubles as that of unsigned numbers.
__device__ __forceinline__ unsigned long long order_of(double x) {
  const unsigned long long bits = bits_of(x);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}

// A candidate among the neighbours of an item: of two the better one has the larger key, or the same and the lower
// number.
struct Candidate {
  unsigned long long key;
  unsigned rest;  // ~number

  // One of its 12 digits, the first one being number 0.
  __device__ __forceinline__ unsigned digit(int number) const {
    return number < 8 ? unsigned(key >> 8 * (7 - number)) & 255 : rest >> 8 * (11 - number) & 255;
  }
  // Whether the first digits are the same.
  __device__ __forceinline__ bool agrees(const Candidate& other, int count) const {
    const int of_key = count < 8 ? count : 8, of_rest = count - of_key;
    return (of_key == 0 || (key ^ other.key) >> 8 * (8 - of_key) == 0) &&
           (of_rest == 0 || (rest ^ other.rest) >> 8 * (4 - of_rest) == 0);
  }
  __device__ __forceinline__ bool below(const Candidate& other) const {
    return key < other.key || (key == other.key && rest < other.rest);
  }
};

// The `wanted` items that occur with each item far more often than by chance.  A block counts those of one item after
// the other in memory of its own: users of the item are shared by its warps, the items of a user by lanes.  Whole
// numbers do not mind the order.  Then it finds the last candidate to be chosen, digit by digit.
extern "C" __global__ void __launch_bounds__(item_threads, 1)
    choose_neighbours(const long long* user_begin,  // (N + 1,)
                      const int* item,              // (Z,) by users, ascending
                      const long long* item_begin,  // (M + 1,)
                      const int* user,              // (Z,) by items
                      int users,                    // N
                      int items,                    // M
                      int wanted,                   // n, at most HPF_MAX_NEIGHBOURS
                      int* counts,                  // (B, M), zero before and after
                      int* seen,                    // (B, M)
                      long long* keys,              // (B, M)
                      int* out) {                   // (M, n), −1 where there is none
  __shared__ int chosen[HPF_MAX_NEIGHBOURS], of_digit[digits], seen_count, chosen_count, missing;
  __shared__ Candidate last;
  const int in_warp = threadIdx.x % warp;
  int* const count = counts + (long long)blockIdx.x * items;
  int* const found = seen + (long long)blockIdx.x * items;
  long long* const key = keys + (long long)blockIdx.x * items;
  for (int i = blockIdx.x; i < items; i += gridDim.x) {
    if (threadIdx.x == 0) seen_count = chosen_count = 0;
    __syncthreads();
    for (long long z = item_begin[i] + threadIdx.x / warp; z < item_begin[i + 1]; z += item_threads / warp) {
      const long long end = user_begin[user[z] + 1];
      for (long long at = user_begin[user[z]] + in_warp; at < end; at += warp) {
        const int other = item[at];
        if (other != i && atomicAdd(count + other, 1) == 0) found[atomicAdd(&seen_count, 1)] = other;
      }
    }
    __syncthreads();
    const double chance = double(users) / double(item_begin[i + 1] - item_begin[i]);
    for (int c = threadIdx.x; c < seen_count; c += item_threads) {
      const int other = found[c];
      const double both = count[other], size = double(item_begin[other + 1] - item_begin[other]);
      key[c] = (long long)order_of(both * log_normal(both * chance / size));
      count[other] = 0;
    }
    if (threadIdx.x == 0) {
      last = {0, 0};
      missing = wanted;
    }
    const bool all = seen_count <= wanted;
    for (int number = 0; number < 12 && !all; ++number) {
      for (int d = threadIdx.x; d < digits; d += item_threads) of_digit[d] = 0;
      __syncthreads();
      for (int c = threadIdx.x; c < seen_count; c += item_threads) {
        const Candidate candidate{(unsigned long long)key[c], ~unsigned(found[c])};
        if (candidate.agrees(last, number)) atomicAdd(of_digit + candidate.digit(number), 1);
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        int digit = digits - 1;
        for (; of_digit[digit] < missing; --digit) missing -= of_digit[digit];
        if (number < 8)
          last.key |= (unsigned long long)digit << 8 * (7 - number);
        else
          last.rest |= unsigned(digit) << 8 * (11 - number);
      }
      __syncthreads();
    }
    __syncthreads();
    for (int c = threadIdx.x; c < seen_count; c += item_threads) {
      const Candidate candidate{(unsigned long long)key[c], ~unsigned(found[c])};
      if (all || !candidate.below(last)) chosen[atomicAdd(&chosen_count, 1)] = found[c];
    }
    __syncthreads();
    // Each one's place is the number of those below it.
    for (int c = threadIdx.x; c < wanted; c += item_threads) {
      int place = 0;
      for (int other = 0; c < chosen_count && other < chosen_count; ++other) place += chosen[other] < chosen[c];
      out[(long long)i * wanted + (c < chosen_count ? place : c)] = c < chosen_count ? chosen[c] : -1;
    }
    __syncthreads();
  }
}
