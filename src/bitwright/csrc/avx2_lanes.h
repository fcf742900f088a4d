// Vectors of sixteen floats as two registers of AVX2, with FMA; what the functions do stands in skip_lanes.h.
#pragma once
#include <immintrin.h>

#include "kernels.h"

namespace {

const int SKIP_MANY = 6;  // dot products at a time: twelve sums, two registers of weights
const bool SKIP_APART = false;
struct Floats {
  __m256 a, b;
};
BW_INLINE Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
BW_INLINE Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
BW_INLINE Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }

// All bits of the lanes that are named.
BW_INLINE __m256i lanes_of(int lanes) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(lanes), bits), bits);
}

BW_INLINE Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
BW_INLINE Floats all_of(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
BW_INLINE Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
BW_INLINE Floats load_first(const float* from, uint16_t lanes) {
  return {_mm256_maskload_ps(from, lanes_of(lanes)), _mm256_maskload_ps(from + 8, lanes_of(lanes >> 8))};
}
BW_INLINE void store(float* to, Floats x) { _mm256_storeu_ps(to, x.a), _mm256_storeu_ps(to + 8, x.b); }
BW_INLINE void store_first(float* to, Floats x, uint16_t lanes) {
  _mm256_maskstore_ps(to, lanes_of(lanes), x.a), _mm256_maskstore_ps(to + 8, lanes_of(lanes >> 8), x.b);
}
BW_INLINE Floats plus_product(Floats sum, Floats x, Floats y) { return {_mm256_fmadd_ps(x.a, y.a, sum.a), _mm256_fmadd_ps(x.b, y.b, sum.b)}; }
BW_INLINE uint16_t above(Floats x, Floats y) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)), high = _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ));
  return (uint16_t)(low | high << 8);
}
BW_INLINE Floats choose(uint16_t lanes, Floats yes, Floats no) {
  const __m256 low = _mm256_castsi256_ps(lanes_of(lanes)), high = _mm256_castsi256_ps(lanes_of(lanes >> 8));
  return {_mm256_blendv_ps(no.a, yes.a, low), _mm256_blendv_ps(no.b, yes.b, high)};
}
BW_INLINE Floats size_of(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
BW_INLINE Floats times_plus(Floats x, Floats scale, Floats add) { return x * scale + add; }
BW_INLINE Floats not_below_zero(Floats x) { return {_mm256_max_ps(_mm256_setzero_ps(), x.a), _mm256_max_ps(_mm256_setzero_ps(), x.b)}; }

// For each choice of eight lanes: their numbers, four bits each, the first lowest; and for each lane, how many are in front of it.
struct LaneLists {
  uint32_t of[256], before[256];
};
constexpr LaneLists lane_lists() {
  LaneLists made = {};
  for (int lanes = 0; lanes < 256; lanes++)
    for (int i = 0, count = 0; i < 8; i++) {
      made.before[lanes] |= (uint32_t)count << 4 * i;
      if (lanes >> i & 1) made.of[lanes] |= (uint32_t)i << 4 * count++;
    }
  return made;
}
constexpr LaneLists LANE_LISTS = lane_lists();
BW_INLINE __m256i eight_numbers(uint32_t packed) {  // permutations read their low three bits
  return _mm256_srlv_epi32(_mm256_set1_epi32((int)packed), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
}

struct Together {
  int32_t low[8], high[8], some[8], count;  // permutations; the lanes of the upper half that are filled; how many of the lower half
  BW_INLINE void copy(const float* from, float* to) const {  // up to 8 + count numbers
    const auto at = [](const int32_t* vector) { return _mm256_loadu_si256((const __m256i*)vector); };
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), at(low)));
    const __m256 upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + 8), at(high));
    _mm256_storeu_ps(to + count, _mm256_and_ps(upper, _mm256_castsi256_ps(at(some))));
  }
};
BW_INLINE Together together(uint16_t lanes) {
  Together made;
  const auto keep = [](int32_t* to, __m256i vector) { _mm256_storeu_si256((__m256i*)to, vector); };
  keep(made.low, eight_numbers(LANE_LISTS.of[lanes & 255])), keep(made.high, eight_numbers(LANE_LISTS.of[lanes >> 8]));
  keep(made.some, lanes_of((1 << __builtin_popcount(lanes >> 8)) - 1));
  made.count = __builtin_popcount(lanes & 255);
  return made;
}
BW_INLINE __m256 eight_apart(int lanes, const float* from) {
  const __m256 x = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), eight_numbers(LANE_LISTS.before[lanes]));
  return _mm256_and_ps(x, _mm256_castsi256_ps(lanes_of(lanes)));
}
BW_INLINE Floats load_apart(const float* from, uint16_t lanes) {  // reads no more than sixteen numbers
  const int low = lanes & 255;
  return {eight_apart(low, from), eight_apart(lanes >> 8, from + __builtin_popcount(low))};
}

// Sums of the lanes of P vectors: lane i and i + 8, then i and i + 4, i + 2, i + 1.
BW_INLINE __m128 half_sum(Floats x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
BW_INLINE void sums_of_four(__m128 a, __m128 b, __m128 c, __m128 d, float* sums) {
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a)), cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
  _mm_storeu_ps(sums, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}
template <int P>
BW_INLINE void sums_of(const Floats (&x)[P], float* sums) {  // writes whole fours
  BW_UNROLL for (int p = 0; p < P; p += 4)
    sums_of_four(half_sum(x[p]), half_sum(x[p + 1 < P ? p + 1 : p]), half_sum(x[p + 2 < P ? p + 2 : p]),
                 half_sum(x[p + 3 < P ? p + 3 : p]), sums + p);
}

}  // namespace
