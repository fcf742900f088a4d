// AVX2: floats to codes by their ladder, eight values a comparison; of one threshold, 32 bits at once; on a long ladder the code is guessed
// from its spacing and then checked. Codes of an even ladder need no kernel of their own: the compiler makes one of grid_codes.
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

// One threshold: the bits of 32 numbers; `own`: 1 where each has a threshold of its own, else 0.
BW_INLINE uint32_t reached_32(const float* x, const float* threshold, int64_t own) {
  __m256i reached[4];
  BW_UNROLL for (int i = 0; i < 4; i++) {
    const __m256 limit = own ? _mm256_loadu_ps(threshold + i * 8) : _mm256_set1_ps(*threshold);
    reached[i] = _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + i * 8), limit, _CMP_GE_OQ));
  }
  const __m256i low = _mm256_packs_epi32(reached[0], reached[1]), high = _mm256_packs_epi32(reached[2], reached[3]);
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing keeps the lanes apart
  return (uint32_t)_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order));
}

// The same of 32 pixels whose channels lie first. A word of each channel holds its bits of all pixels; they are turned around eight
// pixels at a time, as bytes of 32 channels.
static_assert(PACK_BLOCK == 32, "a word of each channel");
inline void words_of_planes(const bw_pack& pack, const float* image, int64_t first, uint32_t* out) {
  const int64_t words = bw_ceil_div(pack.c, 32), area = pack.h * pack.w;
  for (int64_t word = 0; word < words; word++, out++) {
    alignas(32) uint32_t of_channel[32] = {};  // in the order in which the steps below put their bytes side by side
    for (int64_t i = 0; i < 32 && word * 32 + i < pack.c; i++) {
      const int64_t c = word * 32 + i;
      const uint32_t bits = reached_32(image + c * area + first, pack.thresholds + (pack.per_channel ? c : 0), 0);
      of_channel[i / 4 % 4 * 8 + i / 16 * 4 + i % 4] = pack.flip && pack.flip[c] ? ~bits : bits;
    }
    const __m256i bytes_together = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i x[4];
    BW_UNROLL for (int i = 0; i < 4; i++) x[i] = _mm256_shuffle_epi8(_mm256_load_si256((const __m256i*)of_channel + i), bytes_together);
    const __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpacklo_epi32(x[2], x[3]);
    const __m256i c = _mm256_unpackhi_epi32(x[0], x[1]), d = _mm256_unpackhi_epi32(x[2], x[3]);
    __m256i eight[4] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b), _mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d)};
    for (int pixel = 31; pixel >= 0; pixel--) {
      __m256i& bits = eight[pixel / 8];
      out[pixel * words] = (uint32_t)_mm256_movemask_epi8(bits), bits = _mm256_add_epi8(bits, bits);
    }
  }
}

// Channels first: the codes of one channel of eight pixels, or as many of them as there are.
BW_INLINE __m256i codes_of_channel(const bw_pack& pack, const float* image, int64_t c, const Eight<false>& at) {
  const float* const ladder = pack.thresholds + (pack.per_channel ? c * pack.levels : 0);
  const __m256 value = at.load(image + c * pack.h * pack.w);
  const __m256i code = levels_reached(value, pack.levels, [&](int64_t l) { return _mm256_set1_ps(ladder[l]); });
  return pack.flip && pack.flip[c] ? _mm256_sub_epi32(_mm256_set1_epi32((int)pack.levels), code) : code;
}

// Of up to eight pixels. The bits of a word come in channel by channel.
inline void bits_of_eight(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint32_t* out) {
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

// Of up to eight pixels. Four channels fill four bytes of each pixel.
inline void bytes_of_eight(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint8_t* out) {
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

// of_eight(first, count, out): of up to eight pixels.
template <class T, class OfEight>
inline void by_eight_pixels(int64_t first, int64_t count, int64_t size, T* out, const OfEight& of_eight) {
  for (int64_t i = 0; i < count; i += 8) of_eight(first + i, count - i < 8 ? count - i : 8, out + i * size);
}

// `size` elements of a pixel; planes(image, first, count, out): of up to PACK_BLOCK pixels, channels first; one(x, out): of one pixel.
template <class T, class Planes, class Pixel>
inline int pack_lanes(const bw_pack& pack, const float* x, int64_t size, T* out, int threads, const Planes& planes, const Pixel& one) {
  const int64_t area = pack.h * pack.w, blocks = bw_ceil_div(area, PACK_BLOCK);
  for_tasks(threads, pack.n * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * PACK_BLOCK;
    const int64_t last = first + PACK_BLOCK < area ? first + PACK_BLOCK : area;
    const float* const image = x + n * area * pack.c;
    T* const to = out + n * area * size;
    if (pack.nchw) planes(image, first, last - first, to + first * size);
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

// One threshold; channels last only of whole words.
inline int pack_words(const bw_pack& pack, const float* x, uint32_t* out, int threads) {
  const int64_t words = bw_ceil_div(pack.c, 32);
  uint32_t* const flips = (uint32_t*)bw_scratch(BW_SCRATCH_CUTS, (size_t)words * 4);
  if (!flips) return bw_fail(BW_NO_MEMORY, "out of memory while packing");
  memset(flips, 0, (size_t)words * 4);
  for (int64_t c = 0; pack.flip && c < pack.c; c++) flips[c / 32] |= (uint32_t)(pack.flip[c] != 0) << c % 32;
  return pack_lanes(
      pack, x, words, out, threads,
      [&](const float* image, int64_t first, int64_t count, uint32_t* to) {
        if (count == PACK_BLOCK) return words_of_planes(pack, image, first, to);
        by_eight_pixels(first, count, words, to, [&](int64_t i, int64_t some, uint32_t* of) { bits_of_eight(pack, image, i, some, of); });
      },
      [&](const float* pixel, uint32_t* to) {
        for (int64_t word = 0; word < words; word++) {
          const float* const threshold = pack.thresholds + (pack.per_channel ? word * 32 : 0);
          to[word] = reached_32(pixel + word * 32, threshold, pack.per_channel) ^ flips[word];
        }
      });
}

inline int lanes_pack_bits(const bw_pack& pack, const float* x, uint32_t* out, int threads) {
  if (pack.levels > COUNTED_LEVELS && one_ladder(pack)) return pack_to_bits(pack, x, out, threads, pack_rows<codes_by_ladder>);
  const bool whole = pack.groups == 1 || pack.c / pack.groups % 32 == 0;  // a word holds channels of one group
  if (pack.levels == 1 && pack.planes == 1 && whole && (pack.nchw || pack.c % 32 == 0)) return pack_words(pack, x, out, threads);
  if (pack.levels > COUNTED_LEVELS || !whole) return generic_pack_bits(pack, x, out, threads);
  const int64_t size = pack.planes * bw_ceil_div(pack.c, 32);
  return pack_lanes(
      pack, x, size, out, threads,
      [&](const float* image, int64_t first, int64_t count, uint32_t* to) {
        by_eight_pixels(first, count, size, to, [&](int64_t i, int64_t some, uint32_t* of) { bits_of_eight(pack, image, i, some, of); });
      },
      [&](const float* pixel, uint32_t* to) {
        by_eights(pack.c, [&](const auto& at) { store_bits(to, pack.planes, pack.c, at, codes_of_pixel(pack, pixel, at)); });
      });
}

inline int lanes_pack_bytes(const bw_pack& pack, const float* x, uint8_t* out, int threads) {
  const bool rows = one_ladder(pack) && (pack.grid || pack.levels > COUNTED_LEVELS);
  if (rows) return ladder_bytes(pack, x, out, threads, codes_by_ladder);
  if (pack.levels > COUNTED_LEVELS) return generic_pack_bytes(pack, x, out, threads);
  return pack_lanes(
      pack, x, pack.c, out, threads,
      [&](const float* image, int64_t first, int64_t count, uint8_t* to) {
        by_eight_pixels(first, count, pack.c, to, [&](int64_t i, int64_t some, uint8_t* of) { bytes_of_eight(pack, image, i, some, of); });
      },
      [&](const float* pixel, uint8_t* to) {
        by_eights(pack.c, [&](const auto& at) { at.store_bytes(to, codes_of_pixel(pack, pixel, at)); });
      });
}

}  // namespace
