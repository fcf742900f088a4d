// AVX-512: how many thresholds of its channel each of sixteen integers reaches. Few levels are counted straight
// through. Many are guessed from the spacing of the ladder and checked against it; a ladder the guess does not suit
// is bisected. All three are exact.
#pragma once
#include <immintrin.h>

#include "kernels.h"

namespace {

struct Ladder {  // of sixteen channels
  const int32_t* thresholds;
  int64_t levels, channels;
  __mmask16 lanes;
  __m512i lane() const { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  // lanes of `exists` whose value reaches threshold number `row`
  __mmask16 reached(__mmask16 exists, __m512i value, __m512i row) const {
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(row, _mm512_set1_epi32((int)channels)), lane());
    return _mm512_mask_cmpge_epi32_mask(exists, value, _mm512_mask_i32gather_epi32(value, exists, at, thresholds, 4));
  }
};

inline __m512i count_by_comparing(const Ladder& ladder, __m512i value) {
  __m512i code = _mm512_setzero_si512();
  for (int64_t l = 0; l < ladder.levels; l++) {
    const __m512i threshold = _mm512_maskz_loadu_epi32(ladder.lanes, ladder.thresholds + l * ladder.channels);
    code = _mm512_mask_add_epi32(code, _mm512_cmpge_epi32_mask(value, threshold), code, _mm512_set1_epi32(1));
  }
  return code;
}

inline __m512i count_by_bisection(const Ladder& ladder, __m512i value) {
  const __m512i levels = _mm512_set1_epi32((int)ladder.levels), one = _mm512_set1_epi32(1);
  __m512i code = _mm512_setzero_si512();
  for (int step = 128; step; step /= 2) {  // is code + step still reached?
    const __m512i next = _mm512_add_epi32(code, _mm512_set1_epi32(step));
    const __mmask16 exists = _mm512_mask_cmple_epi32_mask(ladder.lanes, next, levels);
    code = _mm512_mask_mov_epi32(code, ladder.reached(exists, value, _mm512_sub_epi32(next, one)), next);
  }
  return code;
}

inline __m512i count_by_guessing(const Ladder& ladder, __m512i value) {
  const __m512i top = _mm512_set1_epi32((int)ladder.levels), one = _mm512_set1_epi32(1), zero = _mm512_setzero_si512();
  const int32_t* last = ladder.thresholds + (ladder.levels - 1) * ladder.channels;
  const __m512 low = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(ladder.lanes, ladder.thresholds));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(ladder.lanes, last));
  const __m512 span = _mm512_max_ps(_mm512_sub_ps(high, low), _mm512_set1_ps(1.0f));
  const __m512 rate = _mm512_div_ps(_mm512_set1_ps((float)(ladder.levels - 1)), span);
  const __m512 place = _mm512_add_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(value), low), rate), _mm512_set1_ps(1.0f));
  const __m512 clamped = _mm512_min_ps(_mm512_max_ps(place, _mm512_setzero_ps()), _mm512_cvtepi32_ps(top));
  __m512i code = _mm512_cvttps_epi32(clamped);
  for (int round = 0; round < 3; round++) {  // one level up while the next is reached, down while this one is not
    const __mmask16 has_next = _mm512_mask_cmplt_epi32_mask(ladder.lanes, code, top);
    const __mmask16 has_this = _mm512_mask_cmpgt_epi32_mask(ladder.lanes, code, zero);
    const __mmask16 up = ladder.reached(has_next, value, code);
    const __mmask16 down = has_this & ~ladder.reached(has_this, value, _mm512_sub_epi32(code, one));
    if (!(up | down)) return code;
    code = _mm512_mask_add_epi32(code, up, code, one);
    code = _mm512_mask_sub_epi32(code, down, code, one);
  }
  return count_by_bisection(ladder, value);
}

inline __m512i count_levels_16(const bw_sink& sink, int64_t channels, int64_t block, __mmask16 lanes, __m512i value) {
  const Ladder ladder = {sink.thresholds + block * 16, sink.levels, channels, lanes};
  return sink.levels <= 31 ? count_by_comparing(ladder, value) : count_by_guessing(ladder, value);
}

}  // namespace
