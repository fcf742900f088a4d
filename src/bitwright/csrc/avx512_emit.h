// AVX-512: sixteen int32 results of one pixel to the tensor the caller asked for. Bit for bit what emit_pixel
// (generic_emit.h) does: integers are exact, and the float path rounds after the product and after the sum.
#pragma once
#include <immintrin.h>
#include <string.h>

#include "avx512_levels.h"

namespace {

inline __mmask16 lanes_of(int64_t channels, int64_t block) {
  const int64_t left = channels - block * 16;
  return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

// Sixteen bits of the plane that starts at `plane`. The last block of an odd number also clears the upper half
// of its word; otherwise halves are written alone, so threads on neighbouring blocks do not meet.
inline void store_half_word(uint32_t* plane, int64_t channels, int64_t block, __mmask16 bits) {
  uint16_t* half = (uint16_t*)plane + block;
  const uint16_t low = (uint16_t)bits;
  if (block % 2 == 0 && (block + 1) * 16 >= channels) {
    const uint32_t whole = low;
    memcpy(half, &whole, 4);
  } else {
    memcpy(half, &low, 2);
  }
}

// Words of several groups are plain consecutive channels only if no group ends inside a word.
inline bool plain_words(const bw_sink& sink, int64_t channels) {
  return sink.mode != BW_WORDS || sink.out_groups == 1 || channels / sink.out_groups % 32 == 0;
}

inline __mmask16 flips_of(const bw_sink& sink, int64_t block, __mmask16 lanes) {
  if (!sink.flip) return 0;
  const __m128i bytes = _mm_maskz_loadu_epi8(lanes, sink.flip + block * 16);
  return _mm_test_epi8_mask(bytes, bytes);
}

// Codes by an even ladder, as grid_codes of generic_emit.h.
inline __m512i grid_codes_16(const bw_grid& grid, __m512 y) {
  const __m512 value = _mm512_set1_ps(grid.value);
  const __mmask16 number = _mm512_cmp_ps_mask(y, y, _CMP_ORD_Q);
  if (grid.kind == BW_GRID_STEP)
    return _mm512_mask_mov_epi32(_mm512_maskz_set1_epi32(number, grid.low), _mm512_cmp_ps_mask(y, value, _CMP_GE_OQ),
                                 _mm512_set1_epi32(grid.high));
  const __m512 place = grid.kind == BW_GRID_DIVIDE ? _mm512_div_ps(y, value) : _mm512_mul_ps(y, value);
  const __m512 above = _mm512_max_ps(place, _mm512_set1_ps((float)(grid.low - grid.base)));
  const __m512 inside = _mm512_min_ps(above, _mm512_set1_ps((float)(grid.high - grid.base)));
  return _mm512_maskz_add_epi32(number, _mm512_cvt_roundps_epi32(inside, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                          _mm512_set1_epi32(grid.base));
}

inline __m512 scaled(const bw_sink& sink, int64_t block, __mmask16 lanes, __m512i value) {
  const __m512 scale = _mm512_maskz_loadu_ps(lanes, sink.scale + block * 16);
  const __m512 add = _mm512_maskz_loadu_ps(lanes, sink.add + block * 16);
  return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(value), scale), add);
}

inline void emit_float(const bw_sink& sink, int64_t channels, int64_t pixel, int64_t block, __mmask16 lanes,
                       __m512i value) {
  const int64_t at = pixel * channels + block * 16;
  __m512 y = scaled(sink, block, lanes, value);
  if (sink.residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, sink.residual + at));
  if (sink.relu) y = _mm512_max_ps(_mm512_setzero_ps(), y);  // the second operand where one is NaN
  _mm512_mask_storeu_ps((float*)sink.out + at, lanes, y);
  if (sink.extra && sink.grid)
    _mm512_mask_cvtepi32_storeu_epi8((uint8_t*)sink.extra + at, lanes, grid_codes_16(*sink.grid, y));
  else if (sink.extra) {
    const __m512 cut = sink.cuts ? _mm512_maskz_loadu_ps(lanes, sink.cuts + block * 16) : _mm512_setzero_ps();
    const __mmask16 bits = _mm512_mask_cmp_ps_mask(lanes, y, cut, _CMP_GE_OQ) ^ flips_of(sink, block, lanes);
    if (sink.extra_bytes) _mm_mask_storeu_epi8((uint8_t*)sink.extra + at, lanes, _mm_maskz_set1_epi8(bits, 1));
    else store_half_word((uint32_t*)sink.extra + pixel * bw_words(channels, 1), channels, block, bits);
  }
}

inline __attribute__((always_inline)) void emit_16(const bw_sink& sink, int64_t channels, int64_t pixel,
                                                   int64_t block, __m512i value) {
  const __mmask16 lanes = lanes_of(channels, block);
  if (sink.mode == BW_FLOAT32) return emit_float(sink, channels, pixel, block, lanes, value);
  if (sink.mode == BW_INT32)
    return _mm512_mask_storeu_epi32((int32_t*)sink.out + pixel * channels + block * 16, lanes, value);
  if (sink.mode == BW_WORDS && sink.levels == 1) {  // the common case: one comparison is the code
    const __m512i threshold = _mm512_maskz_loadu_epi32(lanes, sink.thresholds + block * 16);
    const __mmask16 bits = _mm512_mask_cmpge_epi32_mask(lanes, value, threshold) ^ flips_of(sink, block, lanes);
    const int64_t words = bw_ceil_div(channels, 32);
    uint32_t* out = (uint32_t*)sink.out + pixel * sink.out_planes * words;
    store_half_word(out, channels, block, bits);
    for (int64_t p = 1; p < sink.out_planes; p++) store_half_word(out + p * words, channels, block, 0);
    return;
  }
  if (sink.mode == BW_BYTES && sink.grid)
    return _mm512_mask_cvtepi32_storeu_epi8((uint8_t*)sink.out + pixel * channels + block * 16, lanes,
                                            grid_codes_16(*sink.grid, scaled(sink, block, lanes, value)));
  const __m512i count = count_levels_16(sink, channels, block, lanes, value);
  const __m512i code = _mm512_mask_sub_epi32(count, flips_of(sink, block, lanes), _mm512_set1_epi32((int)sink.levels), count);
  if (sink.mode == BW_BYTES)
    return _mm512_mask_cvtepi32_storeu_epi8((uint8_t*)sink.out + pixel * channels + block * 16, lanes, code);
  const int64_t words = bw_ceil_div(channels, 32);
  for (int64_t p = 0; p < sink.out_planes; p++)
    store_half_word((uint32_t*)sink.out + (pixel * sink.out_planes + p) * words, channels, block,
                    _mm512_mask_test_epi32_mask(lanes, code, _mm512_set1_epi32(1 << p)));
}

}  // namespace
