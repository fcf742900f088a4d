// AVX2: byte codes of a gated layer. The base of all pixels is made first, by the dense kernels (avx2_bytes.h): outputs with the same base
// are a convolution of their own, over the channels, or the high bits, that they read. The rest is dot products of single outputs, as
// quads or pairs of codes (there), whichever is exact: T is uint8 or int16.
#pragma once
#include "avx2_bytes.h"
#include "skip_codes.h"

namespace {

// The body: int64 flush of the rest, filled up to 64 bytes; for each base int32 layout, filled up to 64 bytes, and its weights; then rest
// [o][chunks][runs][run, filled up with zeros to whole vectors].
struct SkipParts {
  static int64_t most() { return SkipCodes::most(); }
  static bw_conv part(const SkipShape& s, const SkipOutputs& o) {
    bw_conv conv = s.conv;
    conv.groups = 1, conv.o = o.count, conv.c = s.low_bits ? s.fan : s.share_end(o.base) - s.share_begin(o.base);
    if (s.low_bits) conv.x_planes = (conv.x_planes ? conv.x_planes : 8) - s.low_bits;
    return conv;
  }
  static int64_t first_channel(const SkipShape& s, const SkipOutputs& o) { return o.group * s.fan + (s.low_bits ? 0 : s.share_begin(o.base)); }
  static int64_t part_size(const bw_conv& part) { return 64 + (bytes_size(part) + 63) / 64 * 64; }
  static int64_t rest_begin(const SkipShape& s) {
    int64_t size = 64;
    for (int64_t i = 0; i < s.output_groups(); i++) size += part_size(part(s, s.outputs(i)));
    return size;
  }
  static int64_t size(const SkipShape& s) {  // pairs take most
    return rest_begin(s) + s.conv.o * s.rest_chunks() * s.runs * bw_ceil_div(s.run, 16) * 32;
  }

  static int64_t largest(const SkipShape& s, const int16_t* values) {
    bw_conv all = s.conv;
    all.c = s.fan;
    return largest_weight(all, values);
  }
  static int64_t flush_of(const SkipShape& s, int64_t most) {
    bw_conv rest = s.conv;
    if (s.low_bits) rest.x_planes = s.low_bits;
    return bytes_flush(rest, most);
  }
  static int32_t layout(const SkipShape& s, const int16_t* values) {
    const int64_t most = largest(s, values);
    return most <= 127 && flush_of(s, most) >= QUADS_LEAST ? BW_LAYOUT_SKIP_PART_QUADS : BW_LAYOUT_SKIP_PART_PAIRS;
  }

  template <class T>
  static void rest_weights(const SkipShape& s, const int16_t* values, T* to) {
    const int64_t row = bw_ceil_div(s.run, 32 / (int64_t)sizeof(T)) * 32 / (int64_t)sizeof(T);
    s.for_outputs([&](const SkipOutputs& group, int64_t o, int64_t, int64_t) {
      for (int64_t i = 0; i < s.rest_chunks(); i++, to += s.runs * row)
        s.weights(values, o, s.rest_chunk(group, i), [&](int64_t r, int64_t at, int w) { to[r * row + at] = (T)w; });
    });
  }
  static void pack(const SkipShape& s, const int16_t* values, int32_t layout, void* body) {
    memset(body, 0, (size_t)size(s));
    const int64_t flush = flush_of(s, largest(s, values)), taps = s.conv.kh * s.conv.kw;
    memcpy(body, &flush, sizeof flush);
    int16_t* mine = (int16_t*)bw_scratch(BW_SCRATCH_RING, (size_t)(s.outs * taps * s.fan) * 2);
    uint8_t* to = (uint8_t*)body + 64;
    for (int64_t i = 0; mine && i < s.output_groups(); i++) {  // no memory: layouts of 0, which no call takes
      const SkipOutputs o = s.outputs(i);
      const bw_conv conv = part(s, o);
      const int64_t first = first_channel(s, o) - o.group * s.fan;
      for (int64_t row = 0; row < o.count * taps; row++)
        memcpy(mine + row * conv.c, values + (o.first * taps + row) * s.fan + first, (size_t)conv.c * 2);
      const int32_t base = bytes_layout(conv, mine);
      memcpy(to, &base, sizeof base);
      lanes_bytes_weights(conv, mine, base, to + 64);
      to += part_size(conv);
    }
    if (layout == BW_LAYOUT_SKIP_PART_QUADS) rest_weights(s, values, (int8_t*)body + rest_begin(s));
    else rest_weights(s, values, (int16_t*)((uint8_t*)body + rest_begin(s)));
  }

  // Whether the bases were packed for this stride and dilation.
  static bool fits(const SkipShape& s, const void* body) {
    const uint8_t* at = (const uint8_t*)body + 64;
    for (int64_t i = 0; i < s.output_groups(); i++) {
      const bw_conv conv = part(s, s.outputs(i));
      int32_t base;
      memcpy(&base, at, sizeof base);
      if (!base || (base == BW_LAYOUT_WINOGRAD_PAIRS && !winograd_shape(conv)) || (base == BW_LAYOUT_PHASE_PAIRS && !phases_shape(conv)))
        return false;
      at += part_size(conv);
    }
    return true;
  }
};

template <class T>
struct SkipLanes : SkipCodes {
  typedef T Cell;
  static const int64_t LANES = 32 / (int64_t)sizeof(T);
  const uint8_t* packed;
  const uint8_t* rest;
  int64_t flush;
  const int32_t* given;  // bases, without corr and the low bits: of one group of outputs after the other [n][oh][ow][its outputs]
  SkipLanes(const SkipShape& shape_, const bw_skip& skip_, const bw_sink& sink_, int32_t, const void* body)
      : SkipCodes{shape_, skip_, sink_}, packed((const uint8_t*)body), rest(packed + SkipParts::rest_begin(shape_)), given(nullptr) {
    memcpy(&flush, body, sizeof flush);
  }
  bool reads(int64_t share) const { return shape.low_bits ? share == 1 : shape.own || share; }

  static void copy(const SkipShape& s, int64_t share, const uint8_t* from, int64_t pixels, int64_t count, T* to) {
    const int kept = kept_bits(s, share);
    const int64_t wide = s.width, channels = s.conv.c;
    for (; pixels > 0; pixels--, from += channels, to += wide) {
      for (int64_t i = 0; i < count; i++) to[i] = (T)(from[i] & kept);
      for (int64_t i = count; i < wide; i++) to[i] = 0;
    }
  }

  // Before the strips. False: no memory.
  bool prepare(const uint8_t* x, int32_t, int threads) {
    const bw_conv& all = shape.conv;
    const int64_t pixels = all.n * all.h * all.w, made = all.n * all.oh * all.ow, none = all.oh + all.ow + all.o;
    int32_t* const zeros = (int32_t*)bw_scratch(BW_SCRATCH_RING, (size_t)none * 4 + (size_t)(pixels * shape.fan));
    int32_t* to = (int32_t*)bw_scratch(BW_SCRATCH_POOL, (size_t)(made * all.o) * 4);
    if (!zeros || !to) return false;
    memset(zeros, 0, (size_t)none * 4);
    uint8_t* const codes = (uint8_t*)(zeros + none);
    const uint8_t* body = packed + 64;
    given = to;
    for (int64_t i = 0; i < shape.output_groups(); i++) {
      const SkipOutputs o = shape.outputs(i);
      bw_conv conv = SkipParts::part(shape, o);
      conv.row_classes = conv.col_classes = 1, conv.row_class = zeros, conv.col_class = zeros + all.oh, conv.corr = zeros + all.oh + all.ow;
      const int64_t share = items_per_task(threads, pixels, 1, pixels), first = SkipParts::first_channel(shape, o);
      for_tasks(threads, bw_ceil_div(pixels, share), [&](int64_t task) {
        const int64_t end = (task + 1) * share < pixels ? (task + 1) * share : pixels, wide = conv.c;
        const int low = (int)shape.low_bits;
        uint8_t* to_pixel = codes + task * share * wide;
        for (int64_t p = task * share; p < end; p++, to_pixel += wide) {
          const uint8_t* const from = x + p * all.c + first;
          if (low)
            for (int64_t c = 0; c < wide; c++) to_pixel[c] = (uint8_t)(from[c] >> low);
          else memcpy(to_pixel, from, (size_t)wide);
        }
      });
      int32_t layout;
      memcpy(&layout, body, sizeof layout);
      bw_sink integers = {};
      integers.out = to;
      if (lanes_conv_bytes(conv, codes, layout, body + 64, integers, threads) != BW_OK) return false;
      body += SkipParts::part_size(conv), to += made * o.count;
    }
    return true;
  }

  void base(Strip<SkipLanes>& strip) const {
    const int64_t made = shape.conv.n * shape.conv.oh * shape.conv.ow;
    const __m128i shift = _mm_cvtsi64_si128(shape.low_bits);
    for (int64_t i = 0; i < shape.output_groups(); i++) {
      const SkipOutputs o = shape.outputs(i);
      const int32_t* const bases = given + made * o.first;
      for (int64_t j = 0; j < o.count; j += 8) {
        const int lanes = first_lanes(o.count - j) & 255;
        const __m256i here = lanes_of(lanes);
        const auto some = [&](const int32_t* from) { return _mm256_maskload_epi32(from, here); };
        const __m256i cut = some((const int32_t*)skip.threshold + o.first + j);
        uint8_t* on = (uint8_t*)(strip.on + (o.panel + j / 16) * strip.lined()) + j / 8 % 2;
        int32_t* to = strip.sums + o.panel * 16 + j;
        const int64_t pixels = strip.pixels, wide = strip.wide();
        const int64_t *const number = strip.number, *const corr_at = strip.corr;
        const int32_t* const corr = shape.conv.corr + o.first + j;
        for (int64_t pixel = 0; pixel < pixels; pixel++, on += 2, to += wide) {
          const __m256i high = some(bases + number[pixel] * o.count + j);
          const __m256i sum = _mm256_add_epi32(_mm256_sll_epi32(high, shift), some(corr + corr_at[pixel]));
          _mm256_storeu_si256((__m256i*)to, sum);
          *on = (uint8_t)(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(sum, cut))) & lanes);
        }
      }
    }
  }

  int64_t piece() const { return LANES; }  // what lies beyond a run is multiplied with zeros
  int64_t rest_size() const { return shape.runs * bw_ceil_div(shape.run, LANES) * 32; }
  const void* rest_weights(int64_t o, int64_t chunk) const { return rest + (o * shape.rest_chunks() + chunk) * rest_size(); }

  template <int P>
  BW_INLINE void dots(const T* const (&x)[P], const int64_t* pieces, int64_t count, const void* row, int32_t* const (&to)[P]) const {
    const uint8_t* w = (const uint8_t*)row;
    __m256i sum[P];
    BW_UNROLL for (int p = 0; p < P; p++) sum[p] = _mm256_setzero_si256();
    if constexpr (sizeof(T) == 2) {
      for (int64_t i = 0; i < count; i++, w += 32) {
        const __m256i wv = vector_at(w);
        BW_UNROLL for (int p = 0; p < P; p++)
          sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(vector_at((const uint8_t*)(x[p] + pieces[i])), wv));
      }
    } else {
      for (int64_t i = 0; i < count;) {
        const int64_t stop = count - i < flush ? count : i + flush;
        __m256i part[P];
        BW_UNROLL for (int p = 0; p < P; p++) part[p] = _mm256_setzero_si256();
        for (; i < stop; i++, w += 32) {
          const __m256i wv = vector_at(w);
          BW_UNROLL for (int p = 0; p < P; p++) part[p] = _mm256_add_epi16(part[p], _mm256_maddubs_epi16(vector_at(x[p] + pieces[i]), wv));
        }
        BW_UNROLL for (int p = 0; p < P; p++) sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(part[p], _mm256_set1_epi16(1)));
      }
    }
    int32_t sums[(P + 3) / 4 * 4];
    BW_UNROLL for (int p = 0; p < P; p += 4) {
      const __m256i ab = _mm256_hadd_epi32(sum[p], sum[p + 1 < P ? p + 1 : p]);
      const __m256i cd = _mm256_hadd_epi32(sum[p + 2 < P ? p + 2 : p], sum[p + 3 < P ? p + 3 : p]);
      const __m256i four = _mm256_hadd_epi32(ab, cd);
      _mm_storeu_si128((__m128i*)(sums + p), _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
    }
    BW_UNROLL for (int p = 0; p < P; p++) *to[p] += sums[p];
  }
};

}  // namespace
