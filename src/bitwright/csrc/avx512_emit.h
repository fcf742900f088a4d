// AVX-512: the int32 sums of a register tile to the tensor the caller asked for. Bit for bit what emit_pixel
// (generic_emit.h) does: integers are exact, and the float path rounds after the product and after the sum.
//
// One function per kind of result, chosen once a call. It runs over the pixels of one vector of channels, whose constants stay
// in registers, and stores the bits of all vectors of a pixel at once. Instructions per sixteen results: integers 3, floats 6,
// with a residual 7, a byte code beside them 8 more, one bit 4.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "avx512_levels.h"

#define BW_UNROLL _Pragma("GCC unroll 16")

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

// ---- codes by an even ladder, as grid_codes of generic_emit.h ---------------------------------------------------------

enum Rounding { BY_MULTIPLYING, BY_DIVIDING, BY_STEP, BY_QUICK };

inline Rounding rounding_of(const bw_grid& grid) {
  if (grid.kind == BW_GRID_STEP) return BY_STEP;
  if (grid.kind == BW_GRID_MULTIPLY) return BY_MULTIPLYING;
  return grid.quick > 0 ? BY_QUICK : BY_DIVIDING;
}

template <Rounding ROUNDING>
struct Codes16 {
  __m512 value, low, high, rest;
  __m512i base, first, last;
  bool zero_low;
  explicit Codes16(const bw_grid& grid)
      : value(_mm512_set1_ps(ROUNDING == BY_QUICK ? grid.quick : grid.value)),
        low(_mm512_set1_ps(ROUNDING == BY_QUICK ? grid.bottom : (float)(grid.low - grid.base))),
        high(_mm512_set1_ps(ROUNDING == BY_QUICK ? grid.top : (float)(grid.high - grid.base))),
        rest(_mm512_set1_ps(grid.rest)), base(_mm512_set1_epi32(grid.base)), first(_mm512_set1_epi32(grid.low)),
        last(_mm512_set1_epi32(grid.high)), zero_low(grid.low == 0) {}

  BW_INLINE __m512i operator()(__m512 y) const {
    if (ROUNDING == BY_STEP) {
      const __mmask16 number = _mm512_cmp_ps_mask(y, y, _CMP_ORD_Q), reached = _mm512_cmp_ps_mask(y, value, _CMP_GE_OQ);
      return _mm512_mask_mov_epi32(_mm512_maskz_mov_epi32(number, first), reached, last);
    }
    __m512 place = y;
    if (ROUNDING == BY_DIVIDING) place = _mm512_div_ps(y, value);
    if (ROUNDING == BY_MULTIPLYING) place = _mm512_mul_ps(y, value);
    place = _mm512_min_ps(_mm512_max_ps(place, low), high);  // NaN: the second operand, the lowest code
    if (ROUNDING == BY_QUICK) place = _mm512_fmadd_ps(place, value, _mm512_mul_ps(place, rest));
    const __m512i code =
        _mm512_add_epi32(_mm512_cvt_roundps_epi32(place, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), base);
    return zero_low ? code : _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(y, y, _CMP_ORD_Q), code);
  }
};

// A store with a mask takes longer.
BW_INLINE void store_16(void* to, __mmask16 lanes, __m512i values) {
  if (lanes == 0xffff) _mm512_storeu_si512(to, values);
  else _mm512_mask_storeu_epi32(to, lanes, values);
}

BW_INLINE void store_bytes(uint8_t* to, __mmask16 lanes, __m512i codes) {
  if (lanes == 0xffff) _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(codes));
  else _mm_mask_storeu_epi8(to, lanes, _mm512_cvtepi32_epi8(codes));
}

template <Rounding ROUNDING>
void grid_bytes_by(const bw_grid& grid, const float* x, int64_t count, uint8_t* out) {
  const Codes16<ROUNDING> codes(grid);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = lanes_of(count, i / 16);
    store_bytes(out + i, lanes, codes(_mm512_maskz_loadu_ps(lanes, x + i)));
  }
}

inline void grid_bytes(const bw_grid& grid, const float* x, int64_t count, uint8_t* out) {
  switch (rounding_of(grid)) {
    case BY_MULTIPLYING: return grid_bytes_by<BY_MULTIPLYING>(grid, x, count, out);
    case BY_DIVIDING: return grid_bytes_by<BY_DIVIDING>(grid, x, count, out);
    case BY_STEP: return grid_bytes_by<BY_STEP>(grid, x, count, out);
    case BY_QUICK: return grid_bytes_by<BY_QUICK>(grid, x, count, out);
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

const int MOST_PIXELS = 8, MOST_BLOCKS = 4;

struct Tile {
  int64_t pixel, block;        // the first ones
  int pixels, blocks;
  const int32_t* const* corr;  // of each pixel
  const __m512i* sums;         // [pixels][blocks]

  BW_INLINE __m512i integers(int p, int c, __mmask16 lanes) const {
    return _mm512_add_epi32(sums[p * blocks + c], _mm512_maskz_loadu_epi32(lanes, corr[p] + (block + c) * 16));
  }
};

typedef void (*EmitTile)(const bw_sink&, int64_t channels, const Tile&);

// The bits of one plane of a pixel, sixteen a block from bit 0 on. The last block of an odd number also clears the upper half
// of its word; otherwise halves are written alone, so threads on neighbouring blocks do not meet.
BW_INLINE void store_halves(uint32_t* plane, int64_t channels, int64_t block, int blocks, uint64_t bits) {
  uint16_t* halves = (uint16_t*)plane + block;
  if (blocks == 4) {
    memcpy(halves, &bits, 8);
    halves += 4;
  } else {
    for (int b = 0; b < blocks; b++) *halves++ = (uint16_t)(bits >> 16 * b);
  }
  if ((block + blocks) % 2 && (block + blocks) * 16 >= channels) *halves = 0;
}

// The masks of C vectors as one number, sixteen bits a vector from bit 0 on.
template <int C>
BW_INLINE uint64_t joined_masks(const __mmask16 (&masks)[C]) {
  if constexpr (C == 4)
    return _cvtmask64_u64(_mm512_kunpackd(_mm512_kunpackw(masks[3], masks[2]), _mm512_kunpackw(masks[1], masks[0])));
  uint64_t bits = 0;
  BW_UNROLL for (int c = 0; c < C; c++) bits |= (uint64_t)masks[c] << 16 * c;
  return bits;
}

inline void emit_integers(const bw_sink& sink, int64_t channels, const Tile& given) {
  const Tile tile = given;  // a copy that no store can change
  int32_t* const out = (int32_t*)sink.out + tile.pixel * channels + tile.block * 16;
  for (int c = 0; c < tile.blocks; c++) {
    const __mmask16 lanes = lanes_of(channels, tile.block + c);
    for (int p = 0; p < tile.pixels; p++) store_16(out + p * channels + c * 16, lanes, tile.integers(p, c, lanes));
  }
}

enum Beside { NOTHING, CUT_WORDS, CUT_BYTES, LADDER_WORDS, CODES };

template <Beside BESIDE, Rounding ROUNDING>
void emit_floats(const bw_sink& sink, int64_t channels, const Tile& given) {
  const Tile tile = given;  // a copy that no store can change
  const int planes = BESIDE == LADDER_WORDS ? (int)sink.out_planes : 1;
  uint64_t bits[BESIDE == LADDER_WORDS ? BW_MAX_PLANES : 1][MOST_PIXELS] = {};
  uint32_t* const words = (uint32_t*)sink.extra + tile.pixel * planes * bw_words(channels, 1);
  const __m512 floor = _mm512_set1_ps(sink.relu ? 0.0f : -INFINITY);
  const bw_grid none = {};
  const Codes16<ROUNDING> codes(BESIDE == CODES ? *sink.grid : none);
  const float* const residual = sink.residual;
  float* const out = (float*)sink.out;
  uint8_t* const extra = (uint8_t*)sink.extra;
  for (int c = 0; c < tile.blocks; c++) {
    const int64_t first = (tile.block + c) * 16;
    const __mmask16 lanes = lanes_of(channels, tile.block + c);
    const __m512 scale = _mm512_maskz_loadu_ps(lanes, sink.scale + first);
    const __m512 add = _mm512_maskz_loadu_ps(lanes, sink.add + first);
    const __m512 cut = (BESIDE == CUT_WORDS || BESIDE == CUT_BYTES) && sink.cuts ? _mm512_maskz_loadu_ps(lanes, sink.cuts + first) : _mm512_setzero_ps();
    const __mmask16 flips = BESIDE == CUT_WORDS || BESIDE == CUT_BYTES ? flips_of(sink, tile.block + c, lanes) : 0;
    for (int p = 0; p < tile.pixels; p++) {
      const int64_t at = (tile.pixel + p) * channels + first;
      __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(tile.integers(p, c, lanes)), scale), add);
      if (residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, residual + at));
      y = _mm512_max_ps(floor, y);  // the second operand where one is NaN
      store_16(out + at, lanes, _mm512_castps_si512(y));
      if (BESIDE == CODES) store_bytes(extra + at, lanes, codes(y));
      if (BESIDE == LADDER_WORDS) {
        __m512i code = _mm512_setzero_si512();
        for (int64_t l = 0; l < sink.levels; l++) {
          const __m512 level = _mm512_maskz_loadu_ps(lanes, sink.cuts + l * channels + first);
          code = _mm512_mask_add_epi32(code, _mm512_mask_cmp_ps_mask(lanes, y, level, _CMP_GE_OQ), code, _mm512_set1_epi32(1));
        }
        for (int q = 0; q < planes; q++)
          bits[q][p] |= (uint64_t)_mm512_test_epi32_mask(code, _mm512_set1_epi32(1 << q)) << 16 * c;
      }
      if (BESIDE != CUT_WORDS && BESIDE != CUT_BYTES) continue;
      const __mmask16 reached = _mm512_mask_cmp_ps_mask(lanes, y, cut, _CMP_GE_OQ) ^ flips;
      if (BESIDE == CUT_BYTES) store_bytes(extra + at, lanes, _mm512_maskz_set1_epi32(reached, 1));
      else bits[0][p] |= (uint64_t)reached << 16 * c;
    }
  }
  if (BESIDE != CUT_WORDS && BESIDE != LADDER_WORDS) return;
  for (int p = 0; p < tile.pixels; p++)
    for (int q = 0; q < planes; q++)
      store_halves(words + (p * planes + q) * bw_words(channels, 1), channels, tile.block, tile.blocks, bits[q][p]);
}

template <Rounding ROUNDING>
void emit_grid(const bw_sink& sink, int64_t channels, const Tile& given) {
  const Tile tile = given;  // a copy that no store can change
  const Codes16<ROUNDING> codes(*sink.grid);
  for (int c = 0; c < tile.blocks; c++) {
    const int64_t first = (tile.block + c) * 16;
    const __mmask16 lanes = lanes_of(channels, tile.block + c);
    const __m512 scale = _mm512_maskz_loadu_ps(lanes, sink.scale + first);
    const __m512 add = _mm512_maskz_loadu_ps(lanes, sink.add + first);
    for (int p = 0; p < tile.pixels; p++) {
      const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(tile.integers(p, c, lanes)), scale), add);
      store_bytes((uint8_t*)sink.out + (tile.pixel + p) * channels + first, lanes, codes(y));
    }
  }
}

// Codes by thresholds. One and three levels, the common ones, are comparisons whose masks are the bits already: of three
// reached levels code = 3 the low bit is the parity of the masks and the high bit the middle one.
template <int LEVELS>
void emit_planes(const bw_sink& sink, int64_t channels, const Tile& given) {
  const Tile tile = given;  // a copy that no store can change
  const int planes = (int)sink.out_planes;
  uint64_t bits[BW_MAX_PLANES][MOST_PIXELS] = {};
  for (int c = 0; c < tile.blocks; c++) {
    const int64_t first = (tile.block + c) * 16;
    const __mmask16 lanes = lanes_of(channels, tile.block + c), flips = flips_of(sink, tile.block + c, lanes);
    __m512i cut[LEVELS ? LEVELS : 1];
    for (int l = 0; l < LEVELS; l++) cut[l] = _mm512_maskz_loadu_epi32(lanes, sink.thresholds + l * channels + first);
    for (int p = 0; p < tile.pixels; p++) {
      const __m512i value = tile.integers(p, c, lanes);
      if (LEVELS == 1) {
        bits[0][p] |= (uint64_t)(_mm512_mask_cmpge_epi32_mask(lanes, value, cut[0]) ^ flips) << 16 * c;
      } else if (LEVELS == 3) {
        const __mmask16 one = _mm512_mask_cmpge_epi32_mask(lanes, value, cut[0]);
        const __mmask16 two = _mm512_mask_cmpge_epi32_mask(lanes, value, cut[LEVELS / 2]);
        const __mmask16 three = _mm512_mask_cmpge_epi32_mask(lanes, value, cut[LEVELS - 1]);
        bits[0][p] |= (uint64_t)(__mmask16)(one ^ two ^ three ^ flips) << 16 * c;
        bits[1][p] |= (uint64_t)(__mmask16)(two ^ flips) << 16 * c;
      } else {
        const __m512i count = count_levels_16(sink, channels, tile.block + c, lanes, value);
        const __m512i code = _mm512_mask_sub_epi32(count, flips, _mm512_set1_epi32((int)sink.levels), count);
        for (int q = 0; q < planes; q++)
          bits[q][p] |= (uint64_t)_mm512_mask_test_epi32_mask(lanes, code, _mm512_set1_epi32(1 << q)) << 16 * c;
      }
    }
  }
  const int64_t words = bw_ceil_div(channels, 32);
  for (int p = 0; p < tile.pixels; p++)
    for (int q = 0; q < planes; q++)
      store_halves((uint32_t*)sink.out + ((tile.pixel + p) * planes + q) * words, channels, tile.block, tile.blocks, bits[q][p]);
}

inline void emit_counts(const bw_sink& sink, int64_t channels, const Tile& given) {
  const Tile tile = given;  // a copy that no store can change
  for (int c = 0; c < tile.blocks; c++) {
    const __mmask16 lanes = lanes_of(channels, tile.block + c), flips = flips_of(sink, tile.block + c, lanes);
    for (int p = 0; p < tile.pixels; p++) {
      const __m512i count = count_levels_16(sink, channels, tile.block + c, lanes, tile.integers(p, c, lanes));
      const __m512i code = _mm512_mask_sub_epi32(count, flips, _mm512_set1_epi32((int)sink.levels), count);
      store_bytes((uint8_t*)sink.out + (tile.pixel + p) * channels + (tile.block + c) * 16, lanes, code);
    }
  }
}

template <Beside B, Rounding R>
struct Kind {
  static constexpr Beside BESIDE = B;
  static constexpr Rounding ROUNDING = R;
};

// take(Kind) for what a sink of floats wants beside them.
template <class Take>
void of_floats(const bw_sink& sink, const Take& take) {
  if (!sink.extra) return take(Kind<NOTHING, BY_STEP>());
  if (!sink.grid && sink.levels > 1) return take(Kind<LADDER_WORDS, BY_STEP>());
  if (!sink.grid && sink.extra_bytes) return take(Kind<CUT_BYTES, BY_STEP>());
  if (!sink.grid) return take(Kind<CUT_WORDS, BY_STEP>());
  switch (rounding_of(*sink.grid)) {
    case BY_MULTIPLYING: return take(Kind<CODES, BY_MULTIPLYING>());
    case BY_DIVIDING: return take(Kind<CODES, BY_DIVIDING>());
    case BY_QUICK: return take(Kind<CODES, BY_QUICK>());
    case BY_STEP: return take(Kind<CODES, BY_STEP>());
  }
}

inline EmitTile emitter_of(const bw_sink& sink) {
  EmitTile found = emit_counts;
  if (sink.mode == BW_INT32) return emit_integers;
  if (sink.mode == BW_WORDS)
    return sink.levels == 1 ? emit_planes<1> : sink.levels == 3 ? emit_planes<3> : emit_planes<0>;
  if (sink.mode == BW_FLOAT32)
    of_floats(sink, [&](auto kind) { found = emit_floats<decltype(kind)::BESIDE, decltype(kind)::ROUNDING>; });
  else if (sink.grid)
    switch (rounding_of(*sink.grid)) {
      case BY_MULTIPLYING: return emit_grid<BY_MULTIPLYING>;
      case BY_DIVIDING: return emit_grid<BY_DIVIDING>;
      case BY_QUICK: return emit_grid<BY_QUICK>;
      case BY_STEP: return emit_grid<BY_STEP>;
    }
  return found;
}

}  // namespace
