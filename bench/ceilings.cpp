// What the machine gives at best: compiled by ceilings.py with -DREAL=float or double and -DROW, the
// number of REALs in a row, which fills whole cache lines.
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef REAL Vector __attribute__((vector_size(kBytes), aligned(kBytes)));

constexpr int kLanes = kBytes / sizeof(REAL);
constexpr int kPerRow = ROW / kLanes;
constexpr int kSums = kPerRow < 8 ? kPerRow : 8;  // so that additions do not wait for each other
constexpr int kChains = 10;                       // FMAs in flight: 4 cycles, 2 a cycle, and some

extern "C" {

void copy(char* target, const char* source, int64_t bytes, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t part = 0; part < threads; ++part) {
    const int64_t begin = bytes / threads * part;
    std::memcpy(target + begin, source + begin, bytes / threads);
  }
}

// Reads rows of `table` (M, ROW) by `column` (Z,), and adds up what it reads.  Rows `ahead` of the one
// that is read are fetched into the cache; none if it is 0.
double gather(const REAL* table, const int32_t* column, int64_t count, int ahead, int threads) {
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    Vector sums[kSums] = {};
#pragma omp for schedule(static)
    for (int64_t z = 0; z < count; ++z) {
      if (ahead > 0 && z + ahead < count) {
        const char* next = reinterpret_cast<const char*>(table + int64_t(ROW) * column[z + ahead]);
        for (int line = 0; line < int(ROW * sizeof(REAL)); line += 64) __builtin_prefetch(next + line);
      }
      const Vector* row = reinterpret_cast<const Vector*>(table + int64_t(ROW) * column[z]);
#pragma GCC unroll 64
      for (int i = 0; i < kPerRow; ++i) sums[i % kSums] += row[i];
    }
    for (const Vector& sum : sums)
      for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  }
  return total;
}

// `rounds` times kChains vectors of x ← x·a + b in every thread; FMAs: threads·rounds·fmas_of_round().
double multiply_add(int64_t rounds, double a, double b, int threads) {
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    const Vector factor = Vector{} + REAL(a), term = Vector{} + REAL(b);
    Vector x[kChains];
    for (int i = 0; i < kChains; ++i) x[i] = Vector{} + REAL(i);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 64
      for (int i = 0; i < kChains; ++i) x[i] = x[i] * factor + term;
    }
    for (const Vector& chain : x) total += chain[0];
  }
  return total;
}

int fmas_of_round() {
  return kChains * kLanes;
}
}
