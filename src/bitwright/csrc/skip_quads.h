// AVX-512 (VNNI): byte codes. Base: a vector holds four weights for each of sixteen outputs, four codes are broadcast
// (avx512_bytes.h); rest: a vector holds 64 weights of one output. Weights beyond int8 are split W = 2 high + low, low in {0, 1}.
//
// The base of a precision gate is as large as the whole layer, and a byte product takes the same time for few bits as for eight. Where
// Winograd's form takes the high bits (avx512_winograd.h), it makes the base of all pixels first.
#pragma once
#include "avx512_bytes.h"
#include "skip_codes.h"

namespace {

struct SkipQuads : SkipCodes {
  typedef uint8_t Cell;
  const int8_t* packed;
  int64_t layers;              // 2: high and low
  const int32_t* given;        // base of every pixel [n][oh][ow][o], over 2^low_bits and without corr; or null
  SkipQuads(const SkipShape& shape_, const bw_skip& skip_, const bw_sink& sink_, int32_t layout, const void* body)
      : SkipCodes{shape_, skip_, sink_}, packed((const int8_t*)body), layers(layout == BW_LAYOUT_SKIP_QUADS_SPLIT ? 2 : 1),
        given(nullptr) {}

  // base [panels][layers][chunks][runs][quads][16][4], rest [o][layers][chunks][runs][run, whole vectors]
  static int64_t quads(const SkipShape& s) { return bw_ceil_div(s.run, 4); }
  static int64_t vectors(const SkipShape& s) { return bw_ceil_div(s.run, 64); }
  static int64_t base_size(const SkipShape& s) { return s.parts * s.runs * quads(s) * 64; }  // of a layer
  static int64_t rest_size(const SkipShape& s) { return s.runs * vectors(s) * 64; }          // of a chunk
  // The layer over the high bits.
  static bw_conv high(const SkipShape& s) {
    bw_conv conv = s.conv;
    conv.x_planes = (conv.x_planes ? conv.x_planes : 8) - s.low_bits;
    return conv;
  }
  static int64_t winograd_size(const SkipShape& s) { return lanes_bytes_size(s.conv) / 64 * 64 + 64; }
  static int64_t size(const SkipShape& s, int32_t layout) {
    const int64_t rest = s.conv.o * s.rest_chunks() * rest_size(s), layers = layout == BW_LAYOUT_SKIP_QUADS_SPLIT ? 2 : 1;
    return layout == BW_LAYOUT_SKIP_WINOGRAD ? winograd_size(s) + rest : layers * (s.panels * base_size(s) + rest);
  }
  static int64_t size(const SkipShape& s) {  // one that serves every layout
    const int64_t quads = size(s, BW_LAYOUT_SKIP_QUADS_SPLIT), winograd = size(s, BW_LAYOUT_SKIP_WINOGRAD);
    return quads > winograd ? quads : winograd;
  }
  static bool takes(int32_t layout) {
    return layout == BW_LAYOUT_SKIP_QUADS || layout == BW_LAYOUT_SKIP_QUADS_SPLIT || layout == BW_LAYOUT_SKIP_WINOGRAD;
  }
  static int32_t layout(const SkipShape& s, const int16_t* values) {
    if (s.low_bits && s.conv.groups == 1 && winograd_fits(high(s), values)) return BW_LAYOUT_SKIP_WINOGRAD;
    for (int64_t i = 0; i < s.conv.o * s.conv.kh * s.conv.kw * s.fan; i++)
      if (values[i] < -128 || values[i] > 127) return BW_LAYOUT_SKIP_QUADS_SPLIT;
    return BW_LAYOUT_SKIP_QUADS;
  }
  static void pack(const SkipShape& s, const int16_t* values, int32_t layout, void* body) {
    const bool winograd = layout == BW_LAYOUT_SKIP_WINOGRAD;
    const int64_t layers = layout == BW_LAYOUT_SKIP_QUADS_SPLIT ? 2 : 1, chunk = s.runs * quads(s) * 64;
    memset(body, 0, (size_t)size(s, layout));
    if (winograd) winograd_weights(high(s), values, body);
    int8_t* const rest_begin = (int8_t*)body + (winograd ? winograd_size(s) : s.panels * layers * base_size(s));
    for (int64_t layer = 0; layer < layers; layer++) {
      const auto piece = [&](int w) { return (int8_t)(layers == 1 ? w : layer ? w & 1 : (w - (w & 1)) / 2); };
      s.for_outputs([&](const SkipOutputs& group, int64_t o, int64_t panel, int64_t lane) {
        int8_t* base = (int8_t*)body + (panel * layers + layer) * base_size(s) + lane * 4;
        for (int64_t i = 0; i < (winograd ? 0 : s.parts); i++, base += chunk)
          s.weights(values, o, s.base_chunk(group, i),
                    [&](int64_t r, int64_t at, int w) { base[(r * quads(s) + at / 4) * 64 + at % 4] = piece(w); });
        int8_t* rest = rest_begin + (o * layers + layer) * s.rest_chunks() * rest_size(s);
        for (int64_t i = 0; i < s.rest_chunks(); i++, rest += rest_size(s))
          s.weights(values, o, s.rest_chunk(group, i),
                    [&](int64_t r, int64_t at, int w) { rest[r * vectors(s) * 64 + at] = piece(w); });
      });
    }
  }

  static __mmask64 first_bytes(int64_t count) { return count >= 64 ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1; }
  static void copy(const SkipShape& s, int64_t share, const uint8_t* from, int64_t pixels, int64_t count, uint8_t* to) {
    const __m512i kept = _mm512_set1_epi8((char)kept_bits(s, share));
    for (int64_t i = 0; i < s.width; i += 64) {
      const __mmask64 some = first_bytes(count - i), all = first_bytes(s.width - i);
      for (int64_t p = 0; p < pixels; p++)
        _mm512_mask_storeu_epi8(to + p * s.width + i, all, _mm512_and_si512(_mm512_maskz_loadu_epi8(some, from + p * s.conv.c + i), kept));
    }
  }

  // ---- base: see skip_tiles.h ----
  typedef __m512i Vector;
  static const int STEP = 4, WIDE = 4;  // WIDE: pixels of a tile with four vectors of outputs
  const int8_t* panels() const { return packed; }
  int64_t panel_size() const { return layers * base_size(shape); }
  int64_t weight_parts() const { return layers; }
  __m512i zero() const { return _mm512_setzero_si512(); }
  __m512i doubled(__m512i x) const { return _mm512_slli_epi32(x, 1); }
  __m512i weights_at(const int8_t* w) const { return _mm512_load_si512(w); }
  __m512i spread(const uint8_t* x) const {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  __m512i product(__m512i sum, __m512i x, __m512i w) const { return _mm512_dpbusd_epi32(sum, x, w); }
  __m512i threshold(int64_t o, uint16_t lanes) const { return _mm512_maskz_loadu_epi32(lanes, (const int32_t*)skip.threshold + o); }
  __m512i begun(const Strip<SkipQuads>& strip, __m512i sum, int64_t pixel, int64_t o, uint16_t lanes) const {
    return _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(lanes, shape.conv.corr + strip.corr[pixel] + o));
  }
  void keep(int32_t* to, __m512i sum) const { _mm512_storeu_si512(to, sum); }
  uint16_t exceeds(__m512i base, __m512i threshold) const { return _mm512_cmpgt_epi32_mask(base, threshold); }
  void base(Strip<SkipQuads>& strip) const {
    if (!given) return base_by_tiles(*this, strip);
    const __m128i shift = _mm_cvtsi64_si128(skip.low_bits);
    shape.for_panels([&](int64_t panel, int64_t first, int64_t count) {
      const uint16_t lanes = first_lanes(count);
      const __m512i cut = threshold(first, lanes);
      for (int64_t i = 0; i < strip.pixels; i++) {
        const __m512i high = _mm512_maskz_loadu_epi32(lanes, given + strip.pixel(i) * shape.conv.o + first);
        const __m512i base = begun(strip, _mm512_sll_epi32(high, shift), i, first, lanes);
        keep(strip.sums + i * strip.wide() + panel * 16, base);
        strip.on[panel * strip.lined() + i] = exceeds(base, cut) & lanes;
      }
    });
  }

  // Before the strips: the base of all pixels, where Winograd's form makes it. False: no memory.
  bool prepare(const uint8_t* x, int32_t layout, int threads) {
    if (layout != BW_LAYOUT_SKIP_WINOGRAD) return true;
    bw_conv conv = high(shape);
    const int64_t row = conv.w * conv.c, zeros = conv.oh + conv.ow + conv.o;
    const __m128i shift = _mm_cvtsi64_si128(skip.low_bits);
    const __m512i kept = _mm512_set1_epi8((char)(255 >> skip.low_bits));
    int32_t* none = (int32_t*)bw_scratch(BW_SCRATCH_PANEL, (size_t)zeros * 4);
    int32_t* sums = (int32_t*)bw_scratch(BW_SCRATCH_POOL, (size_t)(conv.n * conv.oh * conv.ow * conv.o) * 4);
    if (!none || !sums) return false;
    memset(none, 0, (size_t)zeros * 4);
    conv.row_classes = conv.col_classes = 1, conv.row_class = none, conv.col_class = none + conv.oh;
    conv.corr = none + conv.oh + conv.ow;
    const uint8_t* image = bordered<uint8_t>(conv, conv.c, threads, [&](uint8_t* to, int64_t y) {
      for (int64_t i = 0; i < row; i += 64) {
        const __mmask64 some = first_bytes(row - i);
        const __m512i pairs = _mm512_srl_epi16(_mm512_maskz_loadu_epi8(some, x + y * row + i), shift);
        _mm512_mask_storeu_epi8(to + i, some, _mm512_and_si512(pairs, kept));
      }
    });
    if (!image) return false;
    Window<uint8_t> window;
    set_window(conv, image, conv.c, conv.c, false, &window);
    bw_sink integers = {};
    integers.out = sums;
    given = sums;
    return winograd_conv_bytes(conv, window, packed, integers, threads) == BW_OK;
  }
  bool reads(int64_t share) const { return !given || share == 1; }

  // ---- rest ----
  const void* rest_weights(int64_t o, int64_t chunk) const {
    const int64_t chunks = o * layers * shape.rest_chunks() + chunk;
    return packed + (given ? winograd_size(shape) : shape.panels * panel_size()) + chunks * rest_size(shape);
  }

  // Pieces of 64 codes; what lies beyond a run is multiplied with zeros.
  int64_t piece() const { return 64; }
  template <int P>
  BW_INLINE void dots(const uint8_t* const (&x)[P], const int64_t* pieces, int64_t count, const void* row, int32_t* const (&to)[P]) const {
    const int8_t* w = (const int8_t*)row;
    __m512i sum[P];
    BW_UNROLL for (int p = 0; p < P; p++) sum[p] = _mm512_setzero_si512();
    const auto add = [&] {
      for (int64_t i = 0; i < count; i++, w += 64) {
        const __m512i wv = _mm512_loadu_si512(w);
        BW_UNROLL for (int p = 0; p < P; p++) sum[p] = _mm512_dpbusd_epi32(sum[p], _mm512_loadu_si512(x[p] + pieces[i]), wv);
      }
    };
    add();
    if (layers == 2) {
      BW_UNROLL for (int p = 0; p < P; p++) sum[p] = _mm512_slli_epi32(sum[p], 1);
      w = (const int8_t*)row + shape.rest_chunks() * rest_size(shape);
      add();
    }
    int32_t sums[(P + 3) / 4 * 4];
    BW_UNROLL for (int p = 0; p < P; p += 4)
      sums_of_four<AddIntegers>(_mm512_castsi512_ps(sum[p]), _mm512_castsi512_ps(sum[p + 1 < P ? p + 1 : p]),
                                _mm512_castsi512_ps(sum[p + 2 < P ? p + 2 : p]), _mm512_castsi512_ps(sum[p + 3 < P ? p + 3 : p]), sums + p);
    BW_UNROLL for (int p = 0; p < P; p++) *to[p] += sums[p];
  }
};

}  // namespace
