// AVX2: sums of 16 bits (avx2_bits.h) to bits of one or three thresholds, 32 outputs at a time, and to floats with such bits beside, 16 at
// a time; to all else by int32 (avx2_emit.h).
//
// Of bits alone: a sum s reaches a threshold t where s + corr >= t, that is where s >= t - corr, which is cut off to 16 bits: no sum is 32767. Pixels
// share `corr` unless they lie at a border, so the difference is made anew only where it changes.
#pragma once
#include "avx2_emit.h"

namespace {

const int64_t NARROW_MOST = 32766;

typedef RowsOf<int16_t> NarrowRows;  // stride: a multiple of 16

inline int narrow_levels(const bw_sink& sink) {  // of words; 0: others
  return sink.levels == 1 && sink.out_planes == 1 ? 1 : sink.levels == 3 && sink.out_planes == 2 ? 3 : 0;
}

// Of three levels, what is true of one or all of them, and of two or all: the binary digits of their number.
struct TwoDigits {
  __m256i low, high;
  BW_INLINE TwoDigits(__m256i a, __m256i b, __m256i c) {
    const __m256i unequal = _mm256_xor_si256(a, b);
    low = _mm256_xor_si256(unequal, c), high = _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(unequal, c));
  }
};

template <int LEVELS>
struct NarrowCuts {
  int64_t channels, words;
  const int32_t *thresholds, *corr = nullptr;
  int16_t* cuts;    // [LEVELS][words * 32]
  uint32_t* flips;  // [words], then the bits that a word has

  NarrowCuts(const bw_sink& sink, int64_t channels_, void* room)
      : channels(channels_), words(bw_ceil_div(channels, 32)), thresholds(sink.thresholds), cuts((int16_t*)room),
        flips((uint32_t*)(cuts + LEVELS * words * 32)) {
    memset(room, 0, size(channels));
    by_eights(channels, [&](const auto& at) {
      ((uint8_t*)flips)[at.first / 8] = (uint8_t)_mm256_movemask_ps(_mm256_castsi256_ps(at.flips(sink.flip)));
      ((uint8_t*)(flips + words))[at.first / 8] = (uint8_t)((1 << at.count) - 1);
    });
  }
  static size_t size(int64_t channels) { return (size_t)bw_ceil_div(channels, 32) * (LEVELS * 32 * 2 + 2 * 4); }

  void behind(const int32_t* border) {
    if (corr == border) return;
    corr = border;
    const __m256i most = _mm256_set1_epi32(1 << 24);  // far from what a sum can be, and no difference of it overflows
    by_eights(channels, [&](const auto& at) {
      const __m256i added = at.load(corr);
      BW_UNROLL for (int l = 0; l < LEVELS; l++) {
        const __m256i t = _mm256_max_epi32(_mm256_min_epi32(at.load(thresholds + l * channels), most), _mm256_sub_epi32(_mm256_setzero_si256(), most));
        const __m256i cut = _mm256_sub_epi32(t, added);
        _mm_store_si128((__m128i*)(cuts + l * words * 32 + at.first), _mm_packs_epi32(_mm256_castsi256_si128(cut), _mm256_extracti128_si256(cut, 1)));
      }
    });
  }
  // Word w of each plane, of 32 sums, whatever is behind the last.
  BW_INLINE void put(const int16_t* sums, int64_t w, uint32_t* out) const {
    const auto load = [&](const int16_t* from, int i) { return _mm256_loadu_si256((const __m256i*)(from + w * 32) + i); };
    const __m256i sum[2] = {load(sums, 0), load(sums, 1)};
    const auto missed = [&](int l) {
      const int16_t* const level = cuts + l * words * 32;
      return _mm256_packs_epi16(_mm256_cmpgt_epi16(load(level, 0), sum[0]), _mm256_cmpgt_epi16(load(level, 1), sum[1]));
    };
    const auto reached = [&](__m256i both) {
      return (~(uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(both, 0xd8)) ^ flips[w]) & flips[words + w];
    };
    if (LEVELS == 1) {
      out[w] = reached(missed(0));
    } else {  // the digits of 3 - n are the others of n
      const TwoDigits digits(missed(0), missed(1), missed(2));
      out[w] = reached(digits.low), out[words + w] = reached(digits.high);
    }
  }
};

template <int LEVELS>
void emit_narrow_words(const bw_sink& sink, int64_t channels, const NarrowRows& rows, void* room) {
  NarrowCuts<LEVELS> cuts(sink, channels, room);
  const int64_t words = cuts.words, planes = LEVELS == 1 ? 1 : 2;
  uint32_t* out = (uint32_t*)sink.out + rows.pixel * words * planes;
  const int16_t* sums = rows.sums;
  for (int64_t p = 0; p < rows.count; p++, sums += rows.stride, out += words * planes) {
    cuts.behind(rows.corr[p]);
    for (int64_t w = 0; w < words; w++) cuts.put(sums, w, out);
  }
}

// LEVELS: of the bits beside the floats; 0: there are none.
template <bool RESIDUAL, int LEVELS>
void emit_narrow_floats(const bw_sink& sink, int64_t channels, const NarrowRows& rows) {
  const int64_t count = rows.count, stride = rows.stride, plane = bw_words(channels, 1) * 4, row = plane * (LEVELS == 3 ? 2 : 1);  // bytes
  const int32_t* const* const corr = rows.corr;
  const __m256 floor = _mm256_set1_ps(sink.relu ? 0.0f : -INFINITY);
  for (int64_t c = 0; c < channels; c += 16) {
    const auto load = [&](const float* from, int i) { return _mm256_loadu_ps(from + c + i * 8); };
    const __m256 scale[2] = {load(sink.scale, 0), load(sink.scale, 1)}, add[2] = {load(sink.add, 0), load(sink.add, 1)};
    __m256 cut[LEVELS ? LEVELS : 1][2];
    unsigned flips = 0;
    for (int l = 0; l < LEVELS; l++)
      for (int i = 0; i < 2; i++) cut[l][i] = sink.cuts ? load(sink.cuts + l * channels, i) : _mm256_setzero_ps();
    for (int i = 0; LEVELS == 1 && sink.flip && i < 16; i++) flips |= (unsigned)(sink.flip[c + i] != 0) << i;
    const int16_t* sums = rows.sums + c;
    float* out = (float*)sink.out + rows.pixel * channels;
    const float* residual = RESIDUAL ? sink.residual + rows.pixel * channels : nullptr;
    uint8_t* bits = LEVELS ? (uint8_t*)sink.extra + rows.pixel * row + c / 8 : nullptr;
    const bool last = c % 32 == 0 && c + 16 == channels;  // whose word ends with zeros
    const auto put = [last](uint8_t* to, unsigned sixteen) {
      const uint16_t half = (uint16_t)sixteen, none = 0;
      memcpy(to, &half, 2);
      if (last) memcpy(to + 2, &none, 2);
    };
    for (int64_t p = 0; p < count; p++, sums += stride, out += channels) {
      unsigned low = 0, high = 0;
      BW_UNROLL for (int i = 0; i < 2; i++) {
        const __m256i border = _mm256_loadu_si256((const __m256i*)(corr[p] + c) + i);
        const __m256i value = _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)sums + i)), border);
        __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(value), scale[i]), add[i]);
        if (RESIDUAL) y = _mm256_add_ps(y, load(residual, i));
        y = _mm256_max_ps(floor, y);  // the second operand where one is NaN
        _mm256_storeu_ps(out + c + i * 8, y);
        const auto reached = [&](int l) { return _mm256_castps_si256(_mm256_cmp_ps(y, cut[l][i], _CMP_GE_OQ)); };
        const auto digit = [&](__m256i of) { return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(of)) << i * 8; };
        if (LEVELS == 1) low |= digit(reached(0));
        if constexpr (LEVELS == 3) {
          const TwoDigits digits(reached(0), reached(1), reached(2));
          low |= digit(digits.low), high |= digit(digits.high);
        }
      }
      if (RESIDUAL) residual += channels;
      if (!LEVELS) continue;
      low ^= flips;
      put(bits, low);
      if (LEVELS == 3) put(bits + plane, high);
      bits += row;
    }
  }
}

template <int LEVELS>
void emit_narrow_floats(const bw_sink& sink, int64_t channels, const NarrowRows& rows) {
  sink.residual ? emit_narrow_floats<true, LEVELS>(sink, channels, rows) : emit_narrow_floats<false, LEVELS>(sink, channels, rows);
}

// Sums of pixels to what the caller asked for.
class Emission {
 public:
  Emission(const bw_sink& sink_, int64_t channels_) : sink(sink_), channels(channels_), emit(emitter_of(sink, channels)) {
    if (sink.mode == BW_WORDS && (sink.out_groups == 1 || channels / sink.out_groups % 32 == 0)) words = narrow_levels(sink);
    if (sink.mode != BW_FLOAT32 || channels % 16) return;
    if (!sink.extra) floats = 0;
    else if (!sink.grid && !sink.extra_bytes) floats = sink.levels <= 1 ? 1 : narrow_levels(sink) ? 3 : -1;
  }
  // bytes of work space for so many sums
  size_t room(const int32_t*, int64_t) const { return 0; }
  size_t room(const int16_t*, int64_t sums) const { return words ? NarrowCuts<3>::size(channels) : floats < 0 ? (size_t)sums * 4 : 0; }

  void operator()(const Rows& rows, void*, uint8_t* codes) const { emit(sink, channels, rows, codes); }
  void operator()(const NarrowRows& rows, void* room, uint8_t* codes) const {
    if (words) return words == 1 ? emit_narrow_words<1>(sink, channels, rows, room) : emit_narrow_words<3>(sink, channels, rows, room);
    if (floats == 0) return emit_narrow_floats<0>(sink, channels, rows);
    if (floats == 1) return emit_narrow_floats<1>(sink, channels, rows);
    if (floats == 3) return emit_narrow_floats<3>(sink, channels, rows);
    Rows wide;
    wide.pixel = rows.pixel, wide.count = rows.count, wide.sums = (int32_t*)room, wide.stride = rows.stride;
    for (int64_t i = 0; i < rows.count * rows.stride; i += 8)
      _mm256_store_si256((__m256i*)(wide.sums + i), _mm256_cvtepi16_epi32(_mm_load_si128((const __m128i*)(rows.sums + i))));
    for (int64_t p = 0; p < rows.count; p++) wide.corr[p] = rows.corr[p];
    emit(sink, channels, wide, codes);
  }

 private:
  const bw_sink& sink;
  int64_t channels;
  EmitRows emit;
  int words = 0, floats = -1;  // levels of the bits that are made from 16 bits, or of those beside floats; else all is made from int32
};

}  // namespace
