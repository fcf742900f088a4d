// AVX2: sums of 16 bits (avx2_folded.h) to bits of one threshold, 32 outputs at a time, and to floats with such bits beside, 16 at a
// time; to all else by int32 (avx2_emit.h).
//
// Of bits alone: a sum s reaches a threshold t where s + corr >= t, that is where s >= t - corr, which is cut off to 16 bits: no sum is 32767. Pixels
// share `corr` unless they lie at a border, so the difference is made anew only where it changes.
#pragma once
#include "avx2_emit.h"

namespace {

const int64_t NARROW_MOST = 32766;

// Pixels that follow each other; the sums of one, [stride] with stride a multiple of 16, are followed by those of the next.
struct NarrowRows {
  int64_t pixel, count;
  const int16_t* sums;
  int64_t stride;
  const int32_t* corr[MOST_ROWS];
};

inline bool emits_narrow(const bw_sink& sink, int64_t channels) {
  return sink.mode == BW_WORDS && sink.levels == 1 && sink.out_planes == 1 && (sink.out_groups == 1 || channels / sink.out_groups % 32 == 0);
}

struct NarrowCuts {
  int64_t channels, words;
  const int32_t *thresholds, *corr = nullptr;
  int16_t* cuts;    // [words * 32]
  uint32_t* flips;  // [words], then the bits that a word has

  NarrowCuts(const bw_sink& sink, int64_t channels_, void* room)
      : channels(channels_), words(bw_ceil_div(channels, 32)), thresholds(sink.thresholds), cuts((int16_t*)room), flips((uint32_t*)(cuts + words * 32)) {
    memset(room, 0, size(channels));
    for (int64_t c = 0; c < channels; c++) {
      flips[c / 32] |= (uint32_t)(sink.flip && sink.flip[c]) << c % 32;
      flips[words + c / 32] |= 1u << c % 32;
    }
  }
  static size_t size(int64_t channels) { return (size_t)bw_ceil_div(channels, 32) * (32 * 2 + 2 * 4); }

  void behind(const int32_t* border) {
    if (corr == border) return;
    corr = border;
    const __m256i most = _mm256_set1_epi32(1 << 24);  // far from what a sum can be, and no difference of it overflows
    by_eights(channels, [&](const auto& at) {
      const __m256i t = _mm256_max_epi32(_mm256_min_epi32(at.load(thresholds), most), _mm256_sub_epi32(_mm256_setzero_si256(), most));
      const __m256i cut = _mm256_sub_epi32(t, at.load(corr));
      _mm_store_si128((__m128i*)(cuts + at.first), _mm_packs_epi32(_mm256_castsi256_si128(cut), _mm256_extracti128_si256(cut, 1)));
    });
  }
  BW_INLINE uint32_t word(const int16_t* sums, int64_t w) const {  // reads 32 sums, whatever is behind the last
    const auto missed = [&](int64_t first) {
      return _mm256_cmpgt_epi16(_mm256_load_si256((const __m256i*)(cuts + first)), _mm256_loadu_si256((const __m256i*)(sums + first)));
    };
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(missed(w * 32), missed(w * 32 + 16)), 0xd8);
    return (~(uint32_t)_mm256_movemask_epi8(both) ^ flips[w]) & flips[words + w];
  }
};

inline void emit_narrow_words(const bw_sink& sink, int64_t channels, const NarrowRows& rows, void* room) {
  NarrowCuts cuts(sink, channels, room);
  uint32_t* out = (uint32_t*)sink.out + rows.pixel * cuts.words;
  const int16_t* sums = rows.sums;
  for (int64_t p = 0; p < rows.count; p++, sums += rows.stride) {
    cuts.behind(rows.corr[p]);
    for (int64_t w = 0; w < cuts.words; w++) *out++ = cuts.word(sums, w);
  }
}

inline bool emits_narrow_floats(const bw_sink& sink, int64_t channels) {
  return sink.mode == BW_FLOAT32 && channels % 16 == 0 && (!sink.extra || (!sink.grid && sink.levels <= 1 && !sink.extra_bytes));
}

template <bool RESIDUAL, bool CUT>
void emit_narrow_floats(const bw_sink& sink, int64_t channels, const NarrowRows& rows) {
  const int64_t count = rows.count, stride = rows.stride, row = bw_words(channels, 1) * 4;  // bytes of the bits
  const int32_t* const* const corr = rows.corr;
  const __m256 floor = _mm256_set1_ps(sink.relu ? 0.0f : -INFINITY);
  for (int64_t c = 0; c < channels; c += 16) {
    const auto load = [&](const float* from, int i) { return _mm256_loadu_ps(from + c + i * 8); };
    const __m256 scale[2] = {load(sink.scale, 0), load(sink.scale, 1)}, add[2] = {load(sink.add, 0), load(sink.add, 1)};
    __m256 cut[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    unsigned flips = 0;
    if (CUT && sink.cuts) cut[0] = load(sink.cuts, 0), cut[1] = load(sink.cuts, 1);
    for (int i = 0; CUT && sink.flip && i < 16; i++) flips |= (unsigned)(sink.flip[c + i] != 0) << i;
    const int16_t* sums = rows.sums + c;
    float* out = (float*)sink.out + rows.pixel * channels;
    const float* residual = RESIDUAL ? sink.residual + rows.pixel * channels : nullptr;
    uint8_t* bits = CUT ? (uint8_t*)sink.extra + rows.pixel * row + c / 8 : nullptr;
    const bool last = c % 32 == 0 && c + 16 == channels;  // whose word ends with zeros
    for (int64_t p = 0; p < count; p++, sums += stride, out += channels) {
      unsigned reached = 0;
      BW_UNROLL for (int i = 0; i < 2; i++) {
        const __m256i border = _mm256_loadu_si256((const __m256i*)(corr[p] + c) + i);
        const __m256i value = _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)sums + i)), border);
        __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(value), scale[i]), add[i]);
        if (RESIDUAL) y = _mm256_add_ps(y, load(residual, i));
        y = _mm256_max_ps(floor, y);  // the second operand where one is NaN
        _mm256_storeu_ps(out + c + i * 8, y);
        if (CUT) reached |= (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(y, cut[i], _CMP_GE_OQ)) << i * 8;
      }
      if (RESIDUAL) residual += channels;
      if (!CUT) continue;
      reached ^= flips;
      memcpy(bits, &reached, last ? 4 : 2);
      bits += row;
    }
  }
}

// wide [count * stride]: room, where neither of the above is asked for
inline void emit_narrow(const bw_sink& sink, int64_t channels, const NarrowRows& narrow, int32_t* wide, uint8_t* codes) {
  if (emits_narrow_floats(sink, channels)) {
    if (!sink.extra) return sink.residual ? emit_narrow_floats<true, false>(sink, channels, narrow) : emit_narrow_floats<false, false>(sink, channels, narrow);
    return sink.residual ? emit_narrow_floats<true, true>(sink, channels, narrow) : emit_narrow_floats<false, true>(sink, channels, narrow);
  }
  for (int64_t i = 0; i < narrow.count * narrow.stride; i += 8)
    _mm256_store_si256((__m256i*)(wide + i), _mm256_cvtepi16_epi32(_mm_load_si128((const __m128i*)(narrow.sums + i))));
  Rows rows;
  rows.pixel = narrow.pixel, rows.count = narrow.count, rows.sums = wide, rows.stride = narrow.stride;
  for (int64_t p = 0; p < rows.count; p++) rows.corr[p] = narrow.corr[p];
  emitter_of(sink, channels)(sink, channels, rows, codes);
}

}  // namespace
