// AVX-512: the sums of a register tile to results without a way through memory, for the kinds of result that most nets consist of:
// floats, alone or beside codes, and codes. The same arithmetic as in avx512_emit.h, which takes every other kind, and tiles whose
// last lanes are no channels.
//
// The tile is unrolled, so the constants of a vector of channels are read once for all its pixels, and the bits of a pixel leave as
// one number. Instructions per sixteen results: floats 5, with a residual 6, with a bit 3 more, with two bits 9; one bit 3, two bits 9.
#pragma once
#include "avx512_emit.h"

namespace {

// The sums of P pixels x 16 C channels from `pixel` and `block` on, in registers.
template <int P, int C>
struct SumsOfTile {
  const bw_sink& sink;
  int64_t channels, pixel, block;
  const int32_t* const (&corr)[P];
  const __m512i (&sums)[P][C];

  BW_INLINE __m512i integers(int p, int c) const {
    return _mm512_add_epi32(sums[p][c], _mm512_loadu_si512(corr[p] + (block + c) * 16));
  }
  BW_INLINE bool full() const { return (block + C) * 16 <= channels; }
  BW_INLINE uint64_t flips() const {
    uint64_t bits = 0;
    if (sink.flip)
      BW_UNROLL for (int c = 0; c < C; c++) bits |= (uint64_t)flips_of(sink, block + c, 0xffff) << 16 * c;
    return bits;
  }
};

// Any kind: one function, which reads the sums from memory.
struct EmitAny {
  static constexpr bool DIRECT = false;
  EmitTile emit;
  template <int P, int C>
  BW_INLINE void operator()(const SumsOfTile<P, C>& tile) const {
    __m512i stored[P * C];
    BW_UNROLL for (int p = 0; p < P; p++)
      BW_UNROLL for (int c = 0; c < C; c++) stored[p * C + c] = tile.sums[p][c];
    emit(tile.sink, tile.channels, {tile.pixel, tile.block, P, C, tile.corr, stored});
  }
};

// Codes of three levels: the low bit is the parity of the comparisons, and the high bit the middle one.
template <Beside BESIDE, Rounding ROUNDING = BY_STEP>  // LADDER_WORDS: of three levels
struct EmitFloats {
  static constexpr bool DIRECT = true;
  static constexpr bool BITS = BESIDE == CUT_WORDS || BESIDE == LADDER_WORDS;
  EmitAny any;
  template <int P, int C>
  BW_INLINE void operator()(const SumsOfTile<P, C>& tile) const {
    if (!tile.full()) return any(tile);
    const bw_sink& sink = tile.sink;
    const int64_t first = tile.block * 16, channels = tile.channels, words = bw_words(channels, 1);
    const __m512 floor = _mm512_set1_ps(sink.relu ? 0.0f : -INFINITY);
    const float* const residual = sink.residual ? sink.residual + tile.pixel * channels + first : nullptr;
    float* const out = (float*)sink.out + tile.pixel * channels + first;
    const float *const scales = sink.scale + first, *const adds = sink.add + first, *const cuts = sink.cuts ? sink.cuts + first : nullptr;
    uint8_t* const bytes = (uint8_t*)sink.extra + tile.pixel * channels + first;
    const bw_grid none = {};
    const Codes16<ROUNDING> codes(BESIDE == CODES ? *sink.grid : none);
    uint64_t bits[P] = {}, high[P] = {};
    BW_UNROLL for (int c = 0; c < C; c++) {
      const __m512 scale = _mm512_loadu_ps(scales + c * 16), add = _mm512_loadu_ps(adds + c * 16);
      const __m512 cut = BITS && cuts ? _mm512_loadu_ps(cuts + c * 16) : _mm512_setzero_ps();
      const __m512 two = BESIDE == LADDER_WORDS ? _mm512_loadu_ps(cuts + channels + c * 16) : cut;
      const __m512 three = BESIDE == LADDER_WORDS ? _mm512_loadu_ps(cuts + 2 * channels + c * 16) : cut;
      BW_UNROLL for (int p = 0; p < P; p++) {
        __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(tile.integers(p, c)), scale), add);
        if (residual) y = _mm512_add_ps(y, _mm512_loadu_ps(residual + p * channels + c * 16));
        y = _mm512_max_ps(floor, y);  // the second operand where one is NaN
        _mm512_storeu_ps(out + p * channels + c * 16, y);
        if (BESIDE == CODES) store_bytes(bytes + p * channels + c * 16, 0xffff, codes(y));
        if (!BITS) continue;
        __mmask16 reached = _mm512_cmp_ps_mask(y, cut, _CMP_GE_OQ);
        if (BESIDE == LADDER_WORDS) {
          const __mmask16 middle = _mm512_cmp_ps_mask(y, two, _CMP_GE_OQ);
          reached ^= middle ^ _mm512_cmp_ps_mask(y, three, _CMP_GE_OQ);
          high[p] |= (uint64_t)middle << 16 * c;
        }
        bits[p] |= (uint64_t)reached << 16 * c;
      }
    }
    if (!BITS) return;
    const int64_t planes = BESIDE == LADDER_WORDS ? 2 : 1;
    const uint64_t flips = BESIDE == CUT_WORDS ? tile.flips() : 0;
    uint32_t* to = (uint32_t*)sink.extra + tile.pixel * planes * words;
    BW_UNROLL for (int p = 0; p < P; p++, to += planes * words) {
      store_halves(to, channels, tile.block, C, bits[p] ^ flips);
      if (BESIDE == LADDER_WORDS) store_halves(to + words, channels, tile.block, C, high[p]);
    }
  }
};

template <int LEVELS>
struct EmitLevels {
  static constexpr bool DIRECT = true;
  EmitAny any;
  template <int P, int C>
  BW_INLINE void operator()(const SumsOfTile<P, C>& tile) const {
    if (!tile.full()) return any(tile);
    const bw_sink& sink = tile.sink;
    const int64_t first = tile.block * 16, channels = tile.channels, words = bw_ceil_div(channels, 32);
    const int32_t* const cuts = sink.thresholds + first;
    uint64_t low[P] = {}, high[P] = {};
    BW_UNROLL for (int c = 0; c < C; c++) {
      const __m512i one = _mm512_loadu_si512(cuts + c * 16);
      const __m512i two = LEVELS == 3 ? _mm512_loadu_si512(cuts + channels + c * 16) : one;
      const __m512i three = LEVELS == 3 ? _mm512_loadu_si512(cuts + 2 * channels + c * 16) : one;
      BW_UNROLL for (int p = 0; p < P; p++) {
        const __m512i value = tile.integers(p, c);
        __mmask16 reached = _mm512_cmpge_epi32_mask(value, one);
        if (LEVELS == 3) {
          const __mmask16 middle = _mm512_cmpge_epi32_mask(value, two);
          reached ^= middle ^ _mm512_cmpge_epi32_mask(value, three);
          high[p] |= (uint64_t)middle << 16 * c;
        }
        low[p] |= (uint64_t)reached << 16 * c;
      }
    }
    const uint64_t flips = tile.flips();
    uint32_t* out = (uint32_t*)sink.out + tile.pixel * sink.out_planes * words;
    BW_UNROLL for (int p = 0; p < P; p++, out += sink.out_planes * words) {
      store_halves(out, channels, tile.block, C, low[p] ^ flips);
      if (LEVELS == 3) store_halves(out + words, channels, tile.block, C, high[p] ^ flips);
    }
  }
};

template <Rounding ROUNDING>
struct EmitGrid {
  static constexpr bool DIRECT = true;
  EmitAny any;
  template <int P, int C>
  BW_INLINE void operator()(const SumsOfTile<P, C>& tile) const {
    if (!tile.full()) return any(tile);
    const bw_sink& sink = tile.sink;
    const int64_t first = tile.block * 16, channels = tile.channels;
    const float *const scales = sink.scale + first, *const adds = sink.add + first;
    uint8_t* const out = (uint8_t*)sink.out + tile.pixel * channels + first;
    const Codes16<ROUNDING> codes(*sink.grid);
    BW_UNROLL for (int c = 0; c < C; c++) {
      const __m512 scale = _mm512_loadu_ps(scales + c * 16), add = _mm512_loadu_ps(adds + c * 16);
      BW_UNROLL for (int p = 0; p < P; p++) {
        const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(tile.integers(p, c)), scale), add);
        store_bytes(out + p * channels + c * 16, 0xffff, codes(y));
      }
    }
  }
};

// run(emit) with the way that the results of bits take.
template <class Run>
auto with_emitter_of_bits(const bw_sink& sink, const Run& run) {
  const EmitAny any = {emitter_of(sink)};
  if (sink.mode == BW_FLOAT32 && !sink.extra) return run(EmitFloats<NOTHING>{any});
  if (sink.mode == BW_FLOAT32 && !sink.grid && sink.levels > 1)
    return sink.levels == 3 && sink.out_planes == 2 ? run(EmitFloats<LADDER_WORDS>{any}) : run(any);
  if (sink.mode == BW_FLOAT32 && !sink.grid && !sink.extra_bytes) return run(EmitFloats<CUT_WORDS>{any});
  if (sink.mode == BW_WORDS && sink.levels == 1 && sink.out_planes == 1) return run(EmitLevels<1>{any});
  if (sink.mode == BW_WORDS && sink.levels == 3 && sink.out_planes == 2) return run(EmitLevels<3>{any});
  return run(any);
}

// The same for bytes, whose readers mostly want bytes.
template <class Run>
auto with_emitter_of_bytes(const bw_sink& sink, const Run& run) {
  const EmitAny any = {emitter_of(sink)};
  const bool codes = sink.grid && (sink.mode == BW_BYTES || (sink.mode == BW_FLOAT32 && sink.extra));
  if (codes && rounding_of(*sink.grid) == BY_QUICK)
    return sink.mode == BW_BYTES ? run(EmitGrid<BY_QUICK>{any}) : run(EmitFloats<CODES, BY_QUICK>{any});
  if (codes && rounding_of(*sink.grid) == BY_MULTIPLYING)
    return sink.mode == BW_BYTES ? run(EmitGrid<BY_MULTIPLYING>{any}) : run(EmitFloats<CODES, BY_MULTIPLYING>{any});
  if (codes || (sink.mode == BW_WORDS && sink.levels != 1)) return run(any);
  return with_emitter_of_bits(sink, run);
}

}  // namespace
