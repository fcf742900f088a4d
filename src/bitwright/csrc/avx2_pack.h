// AVX2: floats to codes by their ladder, eight values a comparison; on a long ladder the code is guessed from its spacing and then
// checked. Codes of an even ladder need no kernel of their own: the compiler makes one of grid_codes.
#pragma once
#include "avx2_emit.h"
#include "generic_pack.h"

namespace {

// threshold(l): that of level l for each of the eight.
template <class Threshold>
BW_INLINE __m256i levels_reached(__m256 value, int64_t levels, const Threshold& threshold) {
  __m256i code = _mm256_setzero_si256();
  for (int64_t l = 0; l < levels; l++)
    code = _mm256_sub_epi32(code, _mm256_castps_si256(_mm256_cmp_ps(value, threshold(l), _CMP_GE_OQ)));
  return code;
}

// Channels last: the codes of eight channels of a pixel.
template <class At>
BW_INLINE __m256i codes_of_pixel(const bw_pack& pack, const float* x, const At& at) {
  const __m256i most = _mm256_set1_epi32((int)pack.levels), step = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), most);
  const float* const ladders = pack.thresholds + at.first * pack.levels;
  const __m256i code = levels_reached(at.load(x), pack.levels, [&](int64_t l) {
    if (!pack.per_channel) return _mm256_set1_ps(pack.thresholds[l]);
    return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), ladders + l, step, _mm256_castsi256_ps(at.lanes), 4);
  });
  return _mm256_blendv_epi8(code, _mm256_sub_epi32(most, code), at.flips(pack.flip));
}

// Channels first: the codes of one channel of eight pixels, or as many of them as there are.
BW_INLINE __m256i codes_of_channel(const bw_pack& pack, const float* image, int64_t c, const Eight<false>& at) {
  const float* const ladder = pack.thresholds + (pack.per_channel ? c * pack.levels : 0);
  const __m256 value = at.load(image + c * pack.h * pack.w);
  const __m256i code = levels_reached(value, pack.levels, [&](int64_t l) { return _mm256_set1_ps(ladder[l]); });
  return pack.flip && pack.flip[c] ? _mm256_sub_epi32(_mm256_set1_epi32((int)pack.levels), code) : code;
}

// The bits of a word come in channel by channel.
inline void bits_of_planes(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint32_t* out) {
  const int64_t words = bw_ceil_div(pack.c, 32);
  const Eight<false> at(first + count, first);
  const __m256i one = _mm256_set1_epi32(1);
  for (int64_t word = 0; word < words; word++) {
    __m256i bits[BW_MAX_PLANES];
    for (int64_t p = 0; p < pack.planes; p++) bits[p] = _mm256_setzero_si256();
    const int64_t last = word * 32 + 32 < pack.c ? word * 32 + 32 : pack.c;
    for (int64_t c = word * 32; c < last; c++) {
      const __m256i code = codes_of_channel(pack, image, c, at);
      const __m128i place = _mm_cvtsi64_si128(c % 32);
      for (int64_t p = 0; p < pack.planes; p++) {
        const __m256i bit = _mm256_and_si256(_mm256_srl_epi32(code, _mm_cvtsi64_si128(p)), one);
        bits[p] = _mm256_or_si256(bits[p], _mm256_sll_epi32(bit, place));
      }
    }
    for (int64_t p = 0; p < pack.planes; p++) {
      alignas(32) uint32_t pixels[8];
      _mm256_store_si256((__m256i*)pixels, bits[p]);
      for (int64_t i = 0; i < count; i++) out[(i * pack.planes + p) * words + word] = pixels[i];
    }
  }
}

// Four channels fill four bytes of each pixel.
inline void bytes_of_planes(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint8_t* out) {
  const Eight<false> at(first + count, first);
  for (int64_t c = 0; c < pack.c; c += 4) {
    const int64_t together = pack.c - c < 4 ? pack.c - c : 4;
    __m256i bytes = _mm256_setzero_si256();
    for (int64_t i = 0; i < together; i++)
      bytes = _mm256_or_si256(bytes, _mm256_sll_epi32(codes_of_channel(pack, image, c + i, at), _mm_cvtsi64_si128(8 * i)));
    alignas(32) uint32_t pixels[8];
    _mm256_store_si256((__m256i*)pixels, bytes);
    for (int64_t i = 0; i < count; i++) memcpy(out + i * pack.c + c, pixels + i, (size_t)together);
  }
}

// `size` elements of a pixel; planes(image, first, count, out): of up to eight pixels, channels first; one(x, out): of one pixel.
template <class T, class Planes, class Pixel>
inline int pack_lanes(const bw_pack& pack, const float* x, int64_t size, T* out, int threads, const Planes& planes, const Pixel& one) {
  const int64_t area = pack.h * pack.w, blocks = bw_ceil_div(area, PACK_BLOCK);
  for_tasks(threads, pack.n * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * PACK_BLOCK;
    const int64_t last = first + PACK_BLOCK < area ? first + PACK_BLOCK : area;
    const float* const image = x + n * area * pack.c;
    T* const to = out + n * area * size;
    if (pack.nchw)
      for (int64_t i = first; i < last; i += 8) planes(image, i, last - i < 8 ? last - i : 8, to + i * size);
    else
      for (int64_t i = first; i < last; i++) one(image + i * pack.c, to + i * size);
  });
  return BW_OK;
}

// Codes too low go up one level while the next threshold is reached, too high ones down.
inline __m256i climb(__m256 value, __m256i code, const float* ladder, int64_t levels) {
  const __m256i top = _mm256_set1_epi32((int)levels), zero = _mm256_setzero_si256();
  for (;;) {
    const __m256 has_next = _mm256_castsi256_ps(_mm256_cmpgt_epi32(top, code)), has_this = _mm256_castsi256_ps(_mm256_cmpgt_epi32(code, zero));
    const __m256 next = _mm256_mask_i32gather_ps(value, ladder, code, has_next, 4);
    const __m256 here = _mm256_mask_i32gather_ps(value, ladder - 1, code, has_this, 4);
    const __m256 up = _mm256_and_ps(has_next, _mm256_cmp_ps(value, next, _CMP_GE_OQ));
    const __m256 down = _mm256_and_ps(has_this, _mm256_cmp_ps(value, here, _CMP_NGE_UQ));  // NaN goes down to 0
    if (!_mm256_movemask_ps(_mm256_or_ps(up, down))) return code;
    code = _mm256_add_epi32(_mm256_sub_epi32(code, _mm256_castps_si256(up)), _mm256_castps_si256(down));
  }
}

inline void codes_by_ladder(const bw_pack& pack, const float* x, int64_t count, uint8_t* codes) {
  if (pack.grid) return codes_by_grid(pack, x, count, codes);
  const float* const ladder = pack.thresholds;
  int64_t first = 0, last = pack.levels - 1;  // of the finite thresholds
  while (first < last && ladder[first] < -1e30f) first++;
  while (last > first && ladder[last] > 1e30f) last--;
  const float span = ladder[last] - ladder[first];
  const __m256 rate = _mm256_set1_ps(span > 0 && span < 1e30f ? (float)(last - first) / span : 0.0f);
  const __m256 origin = _mm256_set1_ps(ladder[first]), reached = _mm256_set1_ps((float)first + 1.0f), top = _mm256_set1_ps((float)pack.levels);
  by_eights(count, [&](const auto& at) {
    const __m256 value = at.load(x), place = _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(value, origin), rate), reached);
    const __m256 guess = _mm256_min_ps(_mm256_max_ps(place, _mm256_setzero_ps()), top);  // NaN: the second operand
    at.store_bytes(codes, climb(value, _mm256_cvttps_epi32(guess), ladder, pack.levels));
  });
}

inline int lanes_pack_bits(const bw_pack& pack, const float* x, uint32_t* out, int threads) {
  if (pack.levels > COUNTED_LEVELS && one_ladder(pack)) return pack_to_bits(pack, x, out, threads, pack_rows<codes_by_ladder>);
  if (pack.levels > COUNTED_LEVELS || (pack.groups != 1 && pack.c / pack.groups % 32)) return generic_pack_bits(pack, x, out, threads);
  return pack_lanes(
      pack, x, pack.planes * bw_ceil_div(pack.c, 32), out, threads,
      [&](const float* image, int64_t first, int64_t count, uint32_t* to) { bits_of_planes(pack, image, first, count, to); },
      [&](const float* pixel, uint32_t* to) {
        by_eights(pack.c, [&](const auto& at) { store_bits(to, pack.planes, pack.c, at, codes_of_pixel(pack, pixel, at)); });
      });
}

inline int lanes_pack_bytes(const bw_pack& pack, const float* x, uint8_t* out, int threads) {
  const bool rows = one_ladder(pack) && (pack.grid || pack.levels > COUNTED_LEVELS);
  if (rows) return pack_to_bytes(pack, x, out, threads, pack_rows<codes_by_ladder>);
  if (pack.levels > COUNTED_LEVELS) return generic_pack_bytes(pack, x, out, threads);
  return pack_lanes(
      pack, x, pack.c, out, threads,
      [&](const float* image, int64_t first, int64_t count, uint8_t* to) { bytes_of_planes(pack, image, first, count, to); },
      [&](const float* pixel, uint8_t* to) {
        by_eights(pack.c, [&](const auto& at) { at.store_bytes(to, codes_of_pixel(pack, pixel, at)); });
      });
}

}  // namespace
