// Vectors as wide as the instruction set this file is compiled for, in the namespace HPF_ISA.
// Everything has internal linkage or lives in that namespace: the linker must never hand code
// compiled for one instruction set to another.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>

namespace hpf {
namespace HPF_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T>
struct Simd {
  typedef T Vector __attribute__((vector_size(vector_bytes)));
  static constexpr int lanes = vector_bytes / sizeof(T);
};

template <class T>
using Vector = typename Simd<T>::Vector;

// One vector, (lanes,).  Matrix rows start at multiples of 64 bytes.
template <class T>
static inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

template <class T>
static inline void store(T* p, Vector<T> v) {
  *reinterpret_cast<Vector<T>*>(p) = v;
}

template <class T>
static inline T sum_lanes(Vector<T> v) {
  T total = v[0];
  for (int lane = 1; lane < Simd<T>::lanes; ++lane) total += v[lane];
  return total;
}

// Four numbers, and masks of their bits as comparisons give them.
template <class T>
struct InFour {
  typedef T Numbers __attribute__((vector_size(4 * sizeof(T))));
  using Bits = decltype(Numbers{} < Numbers{});
};
template <class T>
using Four = typename InFour<T>::Numbers;
template <class T>
using FourBits = typename InFour<T>::Bits;

// The lane sums of four vectors.
template <class T>
static inline Four<T> lane_sums_of_four(Vector<T> a, Vector<T> b, Vector<T> c, Vector<T> d) {
  return Four<T>{sum_lanes<T>(a), sum_lanes<T>(b), sum_lanes<T>(c), sum_lanes<T>(d)};
}

// Bit by bit, in which lanes a exceeds b.
template <class T>
static inline uint32_t lanes_above(Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
  else
    return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), _CMP_GT_OQ);
#elif defined(__AVX2__)
  const auto above = a > b;
  if constexpr (sizeof(T) == 4)
    return _mm256_movemask_ps(reinterpret_cast<__m256>(above));
  else
    return _mm256_movemask_pd(reinterpret_cast<__m256d>(above));
#else
  uint32_t mask = 0;
  for (int lane = 0; lane < Simd<T>::lanes; ++lane) mask |= uint32_t(a[lane] > b[lane]) << lane;
  return mask;
#endif
}

#if defined(__AVX512F__)
template <>
inline uint32_t lanes_above<int32_t>(Vector<int32_t> a, Vector<int32_t> b) {
  return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
#endif

// Columns of some rows, in a vector each: what is left of a transposition if nothing is stored.
constexpr int column_bytes = vector_bytes < 32 ? vector_bytes : 32;
template <class T>
struct Columns {
  static constexpr int rows = column_bytes / sizeof(T), count = 16 / sizeof(T);
  typedef T Column __attribute__((vector_size(column_bytes)));
  Column column[count];
};

template <class T>
static inline Columns<T> columns_of(const T* rows,  // (Columns::rows, Columns::count)
                                    int64_t stride) {
  Columns<T> columns;
  for (int j = 0; j < Columns<T>::count; ++j)
    for (int i = 0; i < Columns<T>::rows; ++i) columns.column[j][i] = rows[i * stride + j];
  return columns;
}

#if defined(__AVX2__)

static inline __m256 halves(Vector<float> v) {
#if defined(__AVX512F__)
  const __m512d bits = _mm512_castps_pd(reinterpret_cast<__m512>(v));
  return _mm256_add_ps(_mm512_castps512_ps256(reinterpret_cast<__m512>(v)),
                       _mm256_castpd_ps(_mm512_extractf64x4_pd(bits, 1)));
#else
  return reinterpret_cast<__m256>(v);
#endif
}

static inline __m256d halves(Vector<double> v) {
#if defined(__AVX512F__)
  const __m512d w = reinterpret_cast<__m512d>(v);
  return _mm256_add_pd(_mm512_castpd512_pd256(w), _mm512_extractf64x4_pd(w, 1));
#else
  return reinterpret_cast<__m256d>(v);
#endif
}

template <>
inline Four<float> lane_sums_of_four<float>(Vector<float> a, Vector<float> b, Vector<float> c, Vector<float> d) {
  const __m256 ab = _mm256_hadd_ps(halves(a), halves(b)), cd = _mm256_hadd_ps(halves(c), halves(d));
  const __m256 abcd = _mm256_hadd_ps(ab, cd);
  return reinterpret_cast<Four<float>>(_mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

template <>
inline Four<double> lane_sums_of_four<double>(Vector<double> a, Vector<double> b, Vector<double> c, Vector<double> d) {
  const __m256d ab = _mm256_hadd_pd(halves(a), halves(b)), cd = _mm256_hadd_pd(halves(c), halves(d));
  const __m256d low = _mm256_permute2f128_pd(ab, cd, 0x20), high = _mm256_permute2f128_pd(ab, cd, 0x31);
  return reinterpret_cast<Four<double>>(_mm256_add_pd(low, high));
}

// Two loads take the place of two shuffles.
static inline __m256 beside(const float* row, const float* other) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(other), 1);
}

static inline __m256d beside(const double* row, const double* other) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(row)), _mm_loadu_pd(other), 1);
}

template <>
inline Columns<float> columns_of<float>(const float* rows, int64_t stride) {
  using Column = Columns<float>::Column;
  const __m256 a = beside(rows, rows + 4 * stride), b = beside(rows + stride, rows + 5 * stride);
  const __m256 c = beside(rows + 2 * stride, rows + 6 * stride), d = beside(rows + 3 * stride, rows + 7 * stride);
  const __m256 ab = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  return {{reinterpret_cast<Column>(_mm256_shuffle_ps(ab, cd, 0x44)),
           reinterpret_cast<Column>(_mm256_shuffle_ps(ab, cd, 0xee)),
           reinterpret_cast<Column>(_mm256_shuffle_ps(ab_high, cd_high, 0x44)),
           reinterpret_cast<Column>(_mm256_shuffle_ps(ab_high, cd_high, 0xee))}};
}

template <>
inline Columns<double> columns_of<double>(const double* rows, int64_t stride) {
  using Column = Columns<double>::Column;
  const __m256d a = beside(rows, rows + 2 * stride), b = beside(rows + stride, rows + 3 * stride);
  return {{reinterpret_cast<Column>(_mm256_unpacklo_pd(a, b)), reinterpret_cast<Column>(_mm256_unpackhi_pd(a, b))}};
}

#endif

// The same, to `out` (4,).
template <class T>
static inline void sum_lanes_of_four(Vector<T> a, Vector<T> b, Vector<T> c, Vector<T> d, T* out) {
  const Four<T> sums = lane_sums_of_four<T>(a, b, c, d);
  __builtin_memcpy(out, &sums, sizeof(sums));
}

}  // namespace HPF_ISA
}  // namespace hpf
