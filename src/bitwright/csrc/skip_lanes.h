// Vectors of sixteen floats: AVX-512's or two of AVX2 where the unit is compiled for them, else the compiler's own.
#pragma once
#include <string.h>

#include "kernels.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define BW_LANES_AVX2
#endif

#if !defined(BW_UNROLL)
#define BW_UNROLL _Pragma("GCC unroll 16")
#endif
// Loops over many vectors: where each is several instructions the unrolled code would be a third of the library.
#if defined(__AVX512F__) || defined(BW_LANES_AVX2)
#define BW_UNROLL_MANY BW_UNROLL
#else
#define BW_UNROLL_MANY _Pragma("GCC unroll 1")
#endif

namespace {

BW_INLINE uint16_t first_lanes(int64_t count) { return count >= 16 ? 0xffff : (uint16_t)((1u << count) - 1); }

#if defined(__AVX512F__)

const int SKIP_MANY = 8;         // dot products at a time
const bool SKIP_APART = true;    // their even and odd vectors have sums of their own
typedef __m512 Floats;
BW_INLINE Floats zeros() { return _mm512_setzero_ps(); }
BW_INLINE Floats all_of(float x) { return _mm512_set1_ps(x); }
BW_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
BW_INLINE Floats load_first(const float* from, uint16_t lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
BW_INLINE void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
BW_INLINE void store_first(float* to, Floats x, uint16_t lanes) { _mm512_mask_storeu_ps(to, lanes, x); }
BW_INLINE Floats plus_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
BW_INLINE uint16_t above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
BW_INLINE Floats choose(uint16_t lanes, Floats yes, Floats no) { return _mm512_mask_mov_ps(no, lanes, yes); }
BW_INLINE Floats size_of(Floats x) { return _mm512_abs_ps(x); }
// Copies sixteen numbers, those of these lanes side by side; then zeros.
struct Together {
  uint16_t lanes;
  BW_INLINE void copy(const float* from, float* to) const { _mm512_storeu_ps(to, _mm512_maskz_compress_ps(lanes, _mm512_loadu_ps(from))); }
};
BW_INLINE Together together(uint16_t lanes) { return {lanes}; }
BW_INLINE Floats load_apart(const float* from, uint16_t lanes) { return _mm512_maskz_expandloadu_ps(lanes, from); }  // the other way round
BW_INLINE Floats times_plus(Floats x, Floats scale, Floats add) { return _mm512_add_ps(_mm512_mul_ps(x, scale), add); }
BW_INLINE Floats not_below_zero(Floats x) { return _mm512_max_ps(zeros(), x); }  // NaN: the second operand

// Sums of the lanes of P vectors, all in one order: lane i and i + 8, then i and i + 4, i + 2, i + 1.
struct AddFloats {
  static BW_INLINE __m256 of(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
};
struct AddIntegers {
  static BW_INLINE __m256 of(__m256 a, __m256 b) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
};
template <class Add>
BW_INLINE void sums_of_four(__m512 a, __m512 b, __m512 c, __m512 d, void* out) {
  const auto half = [](__m512 v) { return Add::of(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); };
  const auto quarter = [](__m256 u, __m256 v) {
    return Add::of(_mm256_permute2f128_ps(u, v, 0x20), _mm256_permute2f128_ps(u, v, 0x31));
  };
  const __m256d ac = _mm256_castps_pd(quarter(half(a), half(c))), bd = _mm256_castps_pd(quarter(half(b), half(d)));
  const __m256 pairs = Add::of(_mm256_castpd_ps(_mm256_unpacklo_pd(ac, bd)), _mm256_castpd_ps(_mm256_unpackhi_pd(ac, bd)));
  const __m256 ones = Add::of(_mm256_shuffle_ps(pairs, pairs, 0x88), _mm256_shuffle_ps(pairs, pairs, 0xdd));
  _mm_storeu_ps((float*)out, _mm_movelh_ps(_mm256_castps256_ps128(ones), _mm256_extractf128_ps(ones, 1)));
}

template <int P>
BW_INLINE void sums_of(const Floats (&x)[P], float* sums) {  // writes whole fours
  BW_UNROLL for (int p = 0; p < P; p += 4)
    sums_of_four<AddFloats>(x[p], x[p + 1 < P ? p + 1 : p], x[p + 2 < P ? p + 2 : p], x[p + 3 < P ? p + 3 : p], sums + p);
}

#elif !defined(BW_LANES_AVX2)

const int SKIP_MANY = 4;
const bool SKIP_APART = true;
typedef float Floats __attribute__((vector_size(64)));
BW_INLINE Floats zeros() { return Floats{}; }
BW_INLINE Floats all_of(float x) { return Floats{} + x; }
BW_INLINE Floats load(const float* from) {
  Floats x;
  memcpy(&x, from, 64);
  return x;
}
BW_INLINE Floats load_first(const float* from, uint16_t lanes) {
  float x[16];
  for (int i = 0; i < 16; i++) x[i] = lanes >> i & 1 ? from[i] : 0.0f;
  return load(x);
}
BW_INLINE void store(float* to, Floats x) { memcpy(to, &x, 64); }
BW_INLINE void store_first(float* to, Floats x, uint16_t lanes) {
  for (int i = 0; i < 16; i++)
    if (lanes >> i & 1) to[i] = x[i];
}
BW_INLINE Floats plus_product(Floats sum, Floats a, Floats b) { return sum + a * b; }
BW_INLINE uint16_t above(Floats a, Floats b) {
  unsigned bits = 0;
  for (int i = 0; i < 16; i++) bits |= (unsigned)(a[i] > b[i]) << i;
  return (uint16_t)bits;
}
BW_INLINE Floats choose(uint16_t lanes, Floats yes, Floats no) {
  float x[16];
  for (int i = 0; i < 16; i++) x[i] = lanes >> i & 1 ? yes[i] : no[i];
  return load(x);
}
BW_INLINE Floats size_of(Floats x) { return x < 0.0f ? -x : x; }
struct Together {
  uint16_t lanes;
  BW_INLINE void copy(const float* from, float* to) const {
    float first[16] = {};
    for (int i = 0, j = 0; i < 16; i++)
      if (lanes >> i & 1) first[j++] = from[i];
    memcpy(to, first, 64);
  }
};
BW_INLINE Together together(uint16_t lanes) { return {lanes}; }
BW_INLINE Floats load_apart(const float* from, uint16_t lanes) {  // the other way round; reads no more than sixteen numbers
  float x[16];
  for (int i = 0, j = 0; i < 16; i++) x[i] = lanes >> i & 1 ? from[j++] : 0.0f;
  return load(x);
}
BW_INLINE Floats times_plus(Floats x, Floats scale, Floats add) { return x * scale + add; }
BW_INLINE Floats not_below_zero(Floats x) { return x < 0.0f ? zeros() : x; }
template <int P>
BW_INLINE void sums_of(const Floats (&x)[P], float* sums) {
  for (int p = 0; p < P; p++) {
    float lanes[16];
    store(lanes, x[p]);
    for (int half = 8; half; half /= 2)
      for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    sums[p] = lanes[0];
  }
}

#endif

}  // namespace

#if defined(BW_LANES_AVX2)
#include "avx2_lanes.h"
#endif
