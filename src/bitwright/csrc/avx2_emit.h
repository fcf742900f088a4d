// AVX2: the int32 sums of pixels to the tensor the caller asked for, eight channels at a time. Bit for bit what emit_pixel
// (generic_emit.h) does, which also does the rare cases: groups that end inside a word, ladders of more than 15 levels.
#pragma once
#include <immintrin.h>
#include <math.h>

#include <type_traits>

#include "generic_emit.h"

#define BW_UNROLL _Pragma("GCC unroll 16")

namespace {

const int64_t COUNTED_LEVELS = 15;  // compared one after the other

// Channels first..first+7, or as many of them as there are.
template <bool ALL>
struct Eight {
  int64_t first, count;
  __m256i lanes;
  Eight(int64_t channels, int64_t first_) : first(first_), count(ALL ? 8 : channels - first_) {
    lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  BW_INLINE __m256i load(const int32_t* from) const {
    return ALL ? _mm256_loadu_si256((const __m256i*)(from + first)) : _mm256_maskload_epi32(from + first, lanes);
  }
  BW_INLINE __m256 load(const float* from) const { return _mm256_castsi256_ps(load((const int32_t*)from)); }
  BW_INLINE void store(void* to, __m256i x) const {  // four bytes each
    if (ALL) _mm256_storeu_si256((__m256i*)((int32_t*)to + first), x);
    else _mm256_maskstore_epi32((int32_t*)to + first, lanes, x);
  }
  BW_INLINE void store_bytes(uint8_t* to, __m256i x) const {  // of numbers 0..255
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(halves, halves));
    memcpy(to + first, &bytes, ALL ? 8 : (size_t)count);
  }
  BW_INLINE __m256i flips(const uint8_t* flip) const {  // all bits where a channel counts downwards
    int64_t bytes = 0;
    if (!flip) return _mm256_setzero_si256();
    memcpy(&bytes, flip + first, ALL ? 8 : (size_t)count);
    return _mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes)), _mm256_setzero_si256());
  }
};

// take(Eight) for all channels of a pixel.
template <class Take>
BW_INLINE void by_eights(int64_t channels, const Take& take) {
  int64_t c = 0;
  for (; c + 8 <= channels; c += 8) take(Eight<true>(channels, c));
  if (c < channels) take(Eight<false>(channels, c));
}

template <int64_t KIND>
struct Codes8 {
  __m256 value, low, high;
  __m256i base, first, last;
  explicit Codes8(const bw_grid& g)
      : value(_mm256_set1_ps(g.value)), low(_mm256_set1_ps((float)(g.low - g.base))), high(_mm256_set1_ps((float)(g.high - g.base))),
        base(_mm256_set1_epi32(g.base)), first(_mm256_set1_epi32(g.low)), last(_mm256_set1_epi32(g.high)) {}
  BW_INLINE __m256i operator()(__m256 y) const {
    const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(y, y, _CMP_ORD_Q));
    if (KIND == BW_GRID_STEP) {
      const __m256i reached = _mm256_castps_si256(_mm256_cmp_ps(y, value, _CMP_GE_OQ));
      return _mm256_and_si256(number, _mm256_blendv_epi8(first, last, reached));
    }
    __m256 place = KIND == BW_GRID_DIVIDE ? _mm256_div_ps(y, value) : _mm256_mul_ps(y, value);
    place = _mm256_min_ps(_mm256_max_ps(place, low), high);  // NaN: the second operand
    return _mm256_and_si256(number, _mm256_add_epi32(_mm256_cvtps_epi32(place), base));
  }
};

// Pixels that follow each other, at most MOST_ROWS: their sums lie `stride` apart, and each has a row of constants.
const int MOST_ROWS = 128;
template <class Sum>
struct RowsOf {
  int64_t pixel, count;
  Sum* sums;
  int64_t stride;
  const int32_t* corr[MOST_ROWS];
};
typedef RowsOf<int32_t> Rows;
typedef void (*EmitRows)(const bw_sink&, int64_t channels, const Rows&, uint8_t* codes);

// take(p, integers) for eight channels of each pixel. What it needs of a sink or of rows it has read before: bytes that it stores
// might be anything to the compiler.
template <class At, class Take>
BW_INLINE void by_pixels(const At& at, const Rows& rows, const Take& take) {
  const int64_t count = rows.count, stride = rows.stride;
  const int32_t* sums = rows.sums + at.first;
  const int32_t* const* corr = rows.corr;
  for (int64_t p = 0; p < count; p++, sums += stride) take(p, _mm256_add_epi32(_mm256_loadu_si256((const __m256i*)sums), at.load(corr[p])));
}

inline void emit_any(const bw_sink& sink, int64_t channels, const Rows& rows, uint8_t* codes) {
  for (int64_t p = 0; p < rows.count; p++) {
    int32_t* const sums = rows.sums + p * rows.stride;
    for (int64_t i = 0; i < channels; i++) sums[i] += rows.corr[p][i];
    emit_pixel(sink, channels, rows.pixel + p, sums, codes);
  }
}

inline void emit_integers(const bw_sink& sink, int64_t channels, const Rows& rows, uint8_t*) {
  int32_t* const out = (int32_t*)sink.out + rows.pixel * channels;
  by_eights(channels, [&](const auto& at) {
    by_pixels(at, rows, [&](int64_t p, __m256i value) { at.store(out + p * channels, value); });
  });
}

// Levels that a value reaches, of a ladder that counts up or down; value >= level is not (level > value).
struct Ladder {
  const int32_t* thresholds;
  int64_t levels;
};
template <int LEVELS, class At>
BW_INLINE __m256i count_levels_8(const Ladder& ladder, const At& at, int64_t channels, __m256i flips, __m256i value) {
  const int64_t levels = LEVELS ? LEVELS : ladder.levels;
  __m256i missed = _mm256_setzero_si256();
  BW_UNROLL for (int64_t l = 0; l < levels; l++)
    missed = _mm256_add_epi32(missed, _mm256_cmpgt_epi32(at.load(ladder.thresholds + l * channels), value));
  const __m256i most = _mm256_set1_epi32((int)levels), code = _mm256_add_epi32(most, missed);  // missed counts in steps of -1
  return _mm256_blendv_epi8(code, _mm256_sub_epi32(most, code), flips);
}

template <int LEVELS>
void emit_counts(const bw_sink& sink, int64_t channels, const Rows& rows, uint8_t*) {
  uint8_t* const out = (uint8_t*)sink.out + rows.pixel * channels;
  by_eights(channels, [&](const auto& at) {
    const __m256i flips = at.flips(sink.flip);
    const Ladder ladder = {sink.thresholds, sink.levels};
    by_pixels(at, rows, [&](int64_t p, __m256i value) { at.store_bytes(out + p * channels, count_levels_8<LEVELS>(ladder, at, channels, flips, value)); });
  });
}

// Bit q of eight codes to byte first / 8 of plane q; a plane ends with whole words.
template <class At>
BW_INLINE void store_bits(uint32_t* words, int64_t planes, int64_t channels, const At& at, __m256i code) {
  const int64_t length = bw_words(channels, 1) * 4;
  for (int64_t q = 0; q < planes; q++) {
    uint8_t* const to = (uint8_t*)words + q * length;
    const unsigned bits = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(code, 31 - (int)q)));
    to[at.first / 8] = (uint8_t)(bits & ((1u << at.count) - 1));
    if (at.first + 8 >= channels)
      for (int64_t i = at.first / 8 + 1; i < length; i++) to[i] = 0;
  }
}

template <int LEVELS>
void emit_words(const bw_sink& sink, int64_t channels, const Rows& rows, uint8_t*) {
  const int64_t planes = LEVELS == 1 ? 1 : LEVELS == 3 ? 2 : sink.out_planes, words = bw_words(channels, 1) * planes;
  uint32_t* const out = (uint32_t*)sink.out + rows.pixel * words;
  by_eights(channels, [&](const auto& at) {
    const __m256i flips = at.flips(sink.flip);
    const Ladder ladder = {sink.thresholds, sink.levels};
    by_pixels(at, rows, [&](int64_t p, __m256i value) {
      store_bits(out + p * words, planes, channels, at, count_levels_8<LEVELS>(ladder, at, channels, flips, value));
    });
  });
}

template <int64_t KIND>
void emit_grid(const bw_sink& sink, int64_t channels, const Rows& rows, uint8_t*) {
  const Codes8<KIND> codes(*sink.grid);
  uint8_t* const out = (uint8_t*)sink.out + rows.pixel * channels;
  by_eights(channels, [&](const auto& at) {
    const __m256 scale = at.load(sink.scale), add = at.load(sink.add);
    by_pixels(at, rows, [&](int64_t p, __m256i value) {
      at.store_bytes(out + p * channels, codes(_mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(value), scale), add)));
    });
  });
}

enum Beside { NOTHING, CUT, LADDER, CODES };

template <Beside BESIDE, int64_t KIND>
void emit_floats(const bw_sink& sink, int64_t channels, const Rows& rows, uint8_t*) {
  const bw_grid none = {};
  const Codes8<KIND> codes(BESIDE == CODES ? *sink.grid : none);
  const __m256 floor = _mm256_set1_ps(sink.relu ? 0.0f : -INFINITY);
  const int64_t from = rows.pixel * channels, planes = BESIDE == LADDER ? sink.out_planes : 1, words = bw_words(channels, 1) * planes;
  float* const out = (float*)sink.out + from;
  const float* const residual = sink.residual ? sink.residual + from : nullptr;
  uint8_t* const bytes = (uint8_t*)sink.extra + from;
  uint32_t* const bits = (uint32_t*)sink.extra + rows.pixel * words;
  const float* const cuts = sink.cuts;
  const int64_t levels = sink.levels;
  const bool cut_to_bytes = sink.extra_bytes;
  by_eights(channels, [&](const auto& at) {
    const __m256 scale = at.load(sink.scale), add = at.load(sink.add);
    const __m256 cut = BESIDE == CUT && cuts ? at.load(cuts) : _mm256_setzero_ps();
    const __m256i flips = BESIDE == CUT ? at.flips(sink.flip) : _mm256_setzero_si256();
    by_pixels(at, rows, [&](int64_t p, __m256i value) {
      __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(value), scale), add);
      if (residual) y = _mm256_add_ps(y, at.load(residual + p * channels));
      y = _mm256_max_ps(floor, y);  // the second operand where one is NaN
      at.store(out + p * channels, _mm256_castps_si256(y));
      if (BESIDE == CODES) at.store_bytes(bytes + p * channels, codes(y));
      if (BESIDE == LADDER) {
        __m256i code = _mm256_setzero_si256();
        for (int64_t l = 0; l < levels; l++)
          code = _mm256_sub_epi32(code, _mm256_castps_si256(_mm256_cmp_ps(y, at.load(cuts + l * channels), _CMP_GE_OQ)));
        store_bits(bits + p * words, planes, channels, at, code);
      }
      if (BESIDE != CUT) return;
      const __m256i reached = _mm256_xor_si256(_mm256_castps_si256(_mm256_cmp_ps(y, cut, _CMP_GE_OQ)), flips);
      if (cut_to_bytes) at.store_bytes(bytes + p * channels, _mm256_srli_epi32(reached, 31));
      else store_bits(bits + p * words, 1, channels, at, reached);
    });
  });
}

// take(kind) as a constant.
template <class Take>
EmitRows by_kind(const bw_grid& grid, const Take& take) {
  switch (grid.kind) {
    case BW_GRID_STEP: return take(std::integral_constant<int64_t, BW_GRID_STEP>());
    case BW_GRID_DIVIDE: return take(std::integral_constant<int64_t, BW_GRID_DIVIDE>());
    default: return take(std::integral_constant<int64_t, BW_GRID_MULTIPLY>());
  }
}

inline EmitRows emitter_of(const bw_sink& sink, int64_t channels) {
  if (sink.mode == BW_INT32) return emit_integers;
  if (sink.mode == BW_FLOAT32) {
    if (!sink.extra) return emit_floats<NOTHING, BW_GRID_STEP>;
    if (sink.grid) return by_kind(*sink.grid, [](auto kind) { return (EmitRows)emit_floats<CODES, decltype(kind)::value>; });
    if (sink.levels <= 1) return emit_floats<CUT, BW_GRID_STEP>;
    return sink.levels <= COUNTED_LEVELS ? emit_floats<LADDER, BW_GRID_STEP> : emit_any;
  }
  if (sink.mode == BW_BYTES && sink.grid) return by_kind(*sink.grid, [](auto kind) { return (EmitRows)emit_grid<decltype(kind)::value>; });
  if (sink.levels > COUNTED_LEVELS) return emit_any;
  if (sink.mode == BW_BYTES) return sink.levels == 1 ? emit_counts<1> : sink.levels == 3 ? emit_counts<3> : emit_counts<0>;
  if (sink.out_groups != 1 && channels / sink.out_groups % 32) return emit_any;
  return sink.levels == 1 && sink.out_planes == 1 ? emit_words<1> : sink.levels == 3 && sink.out_planes == 2 ? emit_words<3> : emit_words<0>;
}

}  // namespace
