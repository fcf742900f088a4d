// AVX-512: float -> code. One comparison gives sixteen bits; for few levels the code is counted, for many it is
// guessed from the spacing of the ladder and then checked against it, so the result is exact for any ladder.
#pragma once
#include "avx512_emit.h"
#include "generic_pack.h"

namespace {

inline bool packs_words(const bw_pack& pack) {
  return pack.levels <= 15 && (pack.groups == 1 || pack.c / pack.groups % 32 == 0);
}

// Channels last: sixteen channels of a pixel at a time. One shared or one per-channel threshold per lane.
inline void pack_pixel(const bw_pack& pack, const float* x, uint32_t* out) {
  const int64_t words = bw_ceil_div(pack.c, 32);
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i step = _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)pack.levels));
  for (int64_t block = 0; block * 16 < pack.c; block++) {
    const __mmask16 lanes = lanes_of(pack.c, block);
    const __m512 value = _mm512_maskz_loadu_ps(lanes, x + block * 16);
    const __m128i flips = pack.flip ? _mm_maskz_loadu_epi8(lanes, pack.flip + block * 16) : _mm_setzero_si128();
    const __mmask16 flip = _mm_test_epi8_mask(flips, flips);
    const float* ladder = pack.thresholds + (pack.per_channel ? block * 16 * pack.levels : 0);
    __m512i code = _mm512_setzero_si512();
    for (int64_t l = 0; l < pack.levels; l++) {
      __m512 threshold = _mm512_set1_ps(ladder[pack.per_channel ? 0 : l]);
      if (pack.per_channel)
        threshold = pack.levels == 1 ? _mm512_maskz_loadu_ps(lanes, ladder)
                                     : _mm512_mask_i32gather_ps(threshold, lanes, step, ladder + l, 4);
      const __mmask16 reached = _mm512_mask_cmp_ps_mask(lanes, value, threshold, _CMP_GE_OQ);
      code = _mm512_mask_add_epi32(code, reached, code, one);
    }
    code = _mm512_mask_sub_epi32(code, flip, _mm512_set1_epi32((int)pack.levels), code);
    for (int64_t p = 0; p < pack.planes; p++)
      store_half_word(out + p * words, pack.c, block,
                      _mm512_mask_test_epi32_mask(lanes, code, _mm512_set1_epi32(1 << p)));
  }
}

// Three shared thresholds, two planes: the masks of the comparisons are the bits, as in emit_planes.
inline void pack_pairs(const bw_pack& pack, const float* x, uint32_t* out) {
  const __m512 one = _mm512_set1_ps(pack.thresholds[0]), two = _mm512_set1_ps(pack.thresholds[1]);
  const __m512 three = _mm512_set1_ps(pack.thresholds[2]);
  const int64_t words = bw_ceil_div(pack.c, 32);
  int64_t block = 0;
  for (; (block + 4) * 16 <= pack.c; block += 4) {  // four vectors fill two words
    uint64_t low = 0, high = 0;
    BW_UNROLL for (int b = 0; b < 4; b++) {
      const __m512 value = _mm512_loadu_ps(x + (block + b) * 16);
      const __mmask16 middle = _mm512_cmp_ps_mask(value, two, _CMP_GE_OQ);
      const __mmask16 outer = _mm512_cmp_ps_mask(value, one, _CMP_GE_OQ) ^ _mm512_cmp_ps_mask(value, three, _CMP_GE_OQ);
      low |= (uint64_t)(__mmask16)(outer ^ middle) << 16 * b, high |= (uint64_t)middle << 16 * b;
    }
    memcpy(out + block / 2, &low, 8);
    memcpy(out + words + block / 2, &high, 8);
  }
  for (; block * 16 < pack.c; block++) {
    const __mmask16 lanes = lanes_of(pack.c, block);
    const __m512 value = _mm512_maskz_loadu_ps(lanes, x + block * 16);
    const __mmask16 middle = _mm512_mask_cmp_ps_mask(lanes, value, two, _CMP_GE_OQ);
    const __mmask16 outer = _mm512_mask_cmp_ps_mask(lanes, value, one, _CMP_GE_OQ) ^
                            _mm512_mask_cmp_ps_mask(lanes, value, three, _CMP_GE_OQ);
    store_half_word(out, pack.c, block, outer ^ middle);
    store_half_word(out + words, pack.c, block, middle);
  }
}

// One shared threshold, whole words: nothing but compare and store.
inline void pack_signs(const float* x, int64_t words, float threshold, uint32_t* out) {
  const __m512 t = _mm512_set1_ps(threshold);
  for (int64_t i = 0; i < words; i++) {
    const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i * 32), t, _CMP_GE_OQ);
    const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i * 32 + 16), t, _CMP_GE_OQ);
    out[i] = low | high << 16;
  }
}

// Channels first: sixteen pixels at a time, the bits of a word are shifted in channel by channel.
inline void pack_planes(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint32_t* out) {
  const int64_t area = pack.h * pack.w, words = bw_ceil_div(pack.c, 32);
  const __mmask16 lanes = count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
  const __m512i one = _mm512_set1_epi32(1), levels = _mm512_set1_epi32((int)pack.levels);
  for (int64_t word = 0; word < words; word++) {
    __m512i bits[BW_MAX_PLANES];
    for (int64_t p = 0; p < pack.planes; p++) bits[p] = _mm512_setzero_si512();
    __m512i bit = one;
    const int64_t last = word * 32 + 32 < pack.c ? word * 32 + 32 : pack.c;
    for (int64_t c = word * 32; c < last; c++, bit = _mm512_slli_epi32(bit, 1)) {
      const __m512 value = _mm512_maskz_loadu_ps(lanes, image + c * area + first);
      const float* ladder = pack.thresholds + (pack.per_channel ? c * pack.levels : 0);
      const bool flip = pack.flip && pack.flip[c];
      if (pack.levels == 1) {
        const __mmask16 reached = _mm512_cmp_ps_mask(value, _mm512_set1_ps(ladder[0]), _CMP_GE_OQ);
        bits[0] = _mm512_mask_or_epi32(bits[0], flip ? (__mmask16)~reached : reached, bits[0], bit);
        continue;
      }
      __m512i code = _mm512_setzero_si512();
      for (int64_t l = 0; l < pack.levels; l++)
        code = _mm512_mask_add_epi32(code, _mm512_cmp_ps_mask(value, _mm512_set1_ps(ladder[l]), _CMP_GE_OQ), code, one);
      if (flip) code = _mm512_sub_epi32(levels, code);
      for (int64_t p = 0; p < pack.planes; p++)
        bits[p] = _mm512_mask_or_epi32(bits[p], _mm512_test_epi32_mask(code, _mm512_set1_epi32(1 << p)), bits[p], bit);
    }
    for (int64_t p = 0; p < pack.planes; p++) {
      alignas(64) uint32_t pixels[16];
      _mm512_store_si512(pixels, bits[p]);
      for (int64_t i = 0; i < count; i++) out[(i * pack.planes + p) * words + word] = pixels[i];
    }
  }
}

inline int lanes_pack_bits(const bw_pack& pack, const float* x, uint32_t* out, int threads) {
  if (!packs_words(pack)) return generic_pack_bits(pack, x, out, threads);
  const int64_t area = pack.h * pack.w, words = bw_ceil_div(pack.c, 32), pixel = pack.planes * words;
  const int64_t block = 64, blocks = bw_ceil_div(area, block);
  const bool signs = pack.levels == 1 && !pack.per_channel && !pack.flip && pack.planes == 1 && pack.c % 32 == 0;
  const bool pairs = pack.levels == 3 && !pack.per_channel && !pack.flip && pack.planes == 2;
  for_tasks(threads, pack.n * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * block;
    const int64_t count = area - first < block ? area - first : block;
    const float* image = x + n * area * pack.c;
    uint32_t* to = out + (n * area + first) * pixel;
    if (pack.nchw)
      for (int64_t i = 0; i < count; i += 16)
        pack_planes(pack, image, first + i, count - i < 16 ? count - i : 16, to + i * pixel);
    else if (signs)
      pack_signs(image + first * pack.c, count * words, pack.thresholds[0], to);
    else if (pairs)
      for (int64_t i = 0; i < count; i++) pack_pairs(pack, image + (first + i) * pack.c, to + i * pixel);
    else
      for (int64_t i = 0; i < count; i++) pack_pixel(pack, image + (first + i) * pack.c, to + i * pixel);
  });
  return BW_OK;
}

// ---- bytes: codes of a shared ladder, element by element ------------------------------------------------------

// Correct a guess: codes too low go up one level while the next threshold is reached, too high ones down.
inline __m512i climb(__m512 value, __m512i code, const float* ladder, int64_t levels) {
  const __m512i one = _mm512_set1_epi32(1), top = _mm512_set1_epi32((int)levels), zero = _mm512_setzero_si512();
  for (;;) {
    const __mmask16 has_next = _mm512_cmplt_epi32_mask(code, top), has_this = _mm512_cmpgt_epi32_mask(code, zero);
    const __m512 next = _mm512_mask_i32gather_ps(value, has_next, code, ladder, 4);
    const __m512 here = _mm512_mask_i32gather_ps(value, has_this, code, ladder - 1, 4);
    const __mmask16 up = _mm512_mask_cmp_ps_mask(has_next, value, next, _CMP_GE_OQ);
    const __mmask16 down = _mm512_mask_cmp_ps_mask(has_this, value, here, _CMP_NGE_UQ);  // NaN goes down to 0
    if (!(up | down)) return code;
    code = _mm512_mask_add_epi32(code, up, code, one);
    code = _mm512_mask_sub_epi32(code, down, code, one);
  }
}

inline void pack_elements(const bw_pack& pack, const float* x, int64_t count, uint8_t* out) {
  if (pack.grid) return grid_bytes(*pack.grid, x, count, out);
  const float* ladder = pack.thresholds;
  int64_t first = 0, end = pack.levels - 1;  // the guess is by the spacing of the finite thresholds
  while (first < end && ladder[first] < -1e30f) first++;
  while (end > first && ladder[end] > 1e30f) end--;
  const float span = ladder[end] - ladder[first];
  const float per_level = span > 0 && span < 1e30f ? (float)(end - first) / span : 0.0f;
  const __m512 rate = _mm512_set1_ps(per_level), origin = _mm512_set1_ps(ladder[first]);
  const __m512 reached = _mm512_set1_ps((float)first + 1.0f);
  const __m512 top = _mm512_set1_ps((float)pack.levels);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = lanes_of(count, i / 16);
    const __m512 value = _mm512_maskz_loadu_ps(lanes, x + i);
    const __m512 place = _mm512_add_ps(_mm512_mul_ps(_mm512_sub_ps(value, origin), rate), reached);
    // clamped so that NaN (second operand wins) becomes 0
    const __m512 clamped = _mm512_min_ps(_mm512_max_ps(place, _mm512_setzero_ps()), top);
    const __m512i code = climb(value, _mm512_cvttps_epi32(clamped), ladder, pack.levels);
    _mm512_mask_cvtepi32_storeu_epi8(out + i, lanes, code);
  }
}

inline int lanes_pack_bytes(const bw_pack& pack, const float* x, uint8_t* out, int threads) {
  return one_ladder(pack) ? ladder_bytes(pack, x, out, threads, pack_elements) : generic_pack_bytes(pack, x, out, threads);
}

}  // namespace
