// AVX-512 (VNNI): convolution of byte codes. As for bits, lanes are output channels; a vector holds four
// consecutive weights of K as int8 for sixteen channels, four input codes are broadcast, and vpdpbusd adds the
// four products exactly (it does not saturate).
//
// A tile is 4 pixels x 64 channels, or 8 x 32 or 8 x 16 where so many are left: per four codes of 4 x 64, 4 loads of weights, 4
// broadcasts and 16 vpdpbusd. Zen 4 starts one such product a cycle and reads one vector a cycle, so the products are the limit;
// 8 x 16 needs nine loads for eight products, and there the loads are.
//
// Weights beyond int8 (-255..255) are split W = 2 high + low with low in {0, 1}: two passes, still exact.
// A run whose length is not a multiple of four reads into its neighbour; the weights there are zero.
#pragma once
#include "avx512_winograd4.h"

namespace {

// Bits of the layout number above BW_LAYOUT_LANES_BYTES.
// two parts; a run is one tap (dilated) and not kw of them; avx512_winograd.h; avx512_winograd4.h, which is one of these too
enum { BYTES_SPLIT = 1, BYTES_TAPS = 2, BYTES_WINOGRAD = 4, BYTES_WINOGRAD4 = 5 };

inline int64_t bytes_run(const bw_conv& conv, int32_t layout) { return layout & BYTES_TAPS ? conv.c : conv.kw * conv.c; }
inline int64_t bytes_quads(const bw_conv& conv, int32_t layout) {
  return conv.kh * (layout & BYTES_TAPS ? conv.kw : 1) * bw_ceil_div(bytes_run(conv, layout), 4);
}
inline int64_t bytes_parts(int32_t layout) { return layout & BYTES_SPLIT ? 2 : 1; }

inline int32_t lanes_bytes_layout(const bw_conv& conv, const int16_t* values) {
  if (winograd_fits(conv, values)) return BW_LAYOUT_LANES_BYTES | BYTES_WINOGRAD;
  if (winograd4_fits(conv, values)) return BW_LAYOUT_LANES_BYTES | BYTES_WINOGRAD4;
  const int64_t count = conv.o * conv.kh * conv.kw * conv.c;
  int32_t layout = BW_LAYOUT_LANES_BYTES;
  for (int64_t i = 0; i < count; i++)
    if (values[i] < -128 || values[i] > 127) layout |= BYTES_SPLIT;
  return conv.dil_w != 1 && conv.kw > 1 ? layout | BYTES_TAPS : layout;
}

inline int64_t lanes_bytes_size(const bw_conv& conv) {  // of the largest layout but WINOGRAD4
  return bw_ceil_div(conv.o, 16) * 2 * conv.kh * conv.kw * bw_ceil_div(conv.c, 4) * 64 + 64;
}

inline int64_t lanes_bytes_room(const bw_conv& conv) {  // one size serves all layouts
  const int64_t size = lanes_bytes_size(conv), wide = winograd4_shape(conv) ? winograd4_size(conv) : 0;
  return size > wide ? size : wide;
}

inline void lanes_bytes_weights(const bw_conv& conv, const int16_t* values, int32_t layout, void* body) {
  if ((layout & 7) == BYTES_WINOGRAD4) return winograd4_weights(conv, values, body);
  if (layout & BYTES_WINOGRAD) return winograd_weights(conv, values, body);
  const int64_t run = bytes_run(conv, layout), quads = bytes_quads(conv, layout), parts = bytes_parts(layout);
  const int64_t runs = conv.kh * conv.kw * conv.c / run;
  int8_t* packed = (int8_t*)body;
  memset(body, 0, (size_t)lanes_bytes_size(conv));
  for (int64_t o = 0; o < conv.o; o++)
    for (int64_t r = 0; r < runs; r++)
      for (int64_t i = 0; i < run; i++) {
        const int value = *values++, low = parts == 2 ? value & 1 : 0, high = parts == 2 ? (value - low) / 2 : value;
        const int64_t lane = (r * bw_ceil_div(run, 4) + i / 4) * 64 + o % 16 * 4 + i % 4;
        packed[o / 16 * parts * quads * 64 + lane] = (int8_t)high;
        if (parts == 2) packed[(o / 16 * parts + 1) * quads * 64 + lane] = (int8_t)low;
      }
}

struct BytesCall {
  const bw_conv& conv;
  const bw_sink& sink;
  Window<uint8_t> window;
  Places quads;
  const int8_t* weights;
  int64_t parts;
};

template <class Emit>
struct BytesJob : BytesCall {
  typedef uint8_t element;
  Emit emit;
  BytesJob(const BytesCall& call, Emit emit) : BytesCall(call), emit(emit) {}
  template <int P, int C, bool>
  BW_INLINE void tile(Walk<uint8_t>& walk, int64_t pixel, int64_t block) const;
};

// The products of one place: four codes of P pixels with 16 C outputs.
template <int P, int C>
BW_INLINE void add_products(const uint8_t* const (&x)[P], int64_t place, const int8_t* w, int64_t w_step, __m512i (&sum)[P][C]) {
  __m512i wv[C];
  BW_UNROLL for (int c = 0; c < C; c++) wv[c] = _mm512_load_si512(w + c * w_step);
  BW_UNROLL for (int p = 0; p < P; p++) {
    int32_t four;
    memcpy(&four, x[p] + place, 4);
    BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm512_dpbusd_epi32(sum[p][c], _mm512_set1_epi32(four), wv[c]);
  }
}

template <int P, int C>
BW_INLINE void byte_products(const Places& quads, const uint8_t* const (&x)[P], const int8_t* w, int64_t w_step, __m512i (&sum)[P][C]) {
  const int32_t *at = quads.place, *const end = at + quads.count;
  if constexpr (P * C == 1) {  // a product waits four cycles for the sum before it: four sums take turns
    __m512i more[3][P][C] = {};
    for (; end - at >= 4; at += 4, w += 256) {
      add_products<P, C>(x, at[0], w, w_step, sum);
      BW_UNROLL for (int i = 0; i < 3; i++) add_products<P, C>(x, at[i + 1], w + 64 * (i + 1), w_step, more[i]);
    }
    BW_UNROLL for (int i = 0; i < 3; i++) sum[0][0] = _mm512_add_epi32(sum[0][0], more[i][0][0]);
  }
  for (; at < end; at++, w += 64) add_products<P, C>(x, *at, w, w_step, sum);
}

template <class Emit>
template <int P, int C, bool>
BW_INLINE void BytesJob<Emit>::tile(Walk<uint8_t>& walk, int64_t pixel, int64_t block) const {
  const int64_t w_step = parts * quads.count * 64;
  const uint8_t* x[P];
  const int32_t* corr[P];
  BW_UNROLL for (int p = 0; p < P; p++) x[p] = walk.address(), corr[p] = walk.corr(), walk.next();
  __m512i sum[P][C];
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm512_setzero_si512();
  for (int64_t part = 0; part < parts; part++) {
    if (part)
      BW_UNROLL for (int p = 0; p < P; p++)
        BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm512_slli_epi32(sum[p][c], 1);
    byte_products<P, C>(quads, x, weights + block * w_step + part * quads.count * 64, w_step, sum);
  }
  emit(SumsOfTile<P, C>{sink, conv.o, pixel, block, corr, sum});
}

inline int lanes_conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body,
                            const bw_sink& sink, int threads) {
  // Always a copy (with or without a border): the last run may read three codes beyond the input.
  Window<uint8_t> window;
  if (!make_window(conv, x, conv.c, conv.c, true, false, threads, &window))
    return bw_fail(BW_NO_MEMORY, "out of memory for the padded input");
  if (layout & BYTES_WINOGRAD) {
    const auto run = [&](const bw_sink& to, int nt) {
      return (layout & 7) == BYTES_WINOGRAD4 ? winograd4_conv_bytes(conv, window, body, to, nt) : winograd_conv_bytes(conv, window, body, to, nt);
    };
    return plain_words(sink, conv.o) ? run(sink, threads) : emit_in_two_steps(conv, sink, threads, run);
  }
  Places quads;
  if (!make_places(window, 4, bytes_quads(conv, layout), &quads)) return bw_fail(BW_NO_MEMORY, "out of memory for the places of a window");
  const int64_t pixels = conv.n * conv.oh * conv.ow;
  const auto part = [&](const bw_sink& to, int nt, int64_t first, int64_t last) {
    const BytesCall call = {conv, to, window, quads, (const int8_t*)body, bytes_parts(layout)};
    with_emitter_of_bytes(to, [&](auto emit) {
      typedef BytesJob<decltype(emit)> J;
      const TileChoice<J> choice =
          pixels < 4 ? TileChoice<J>{strip<J, 1, 4, false>, nullptr, strip<J, 1, 1, false>, 4, 1}
                     : TileChoice<J>{strip<J, 4, 4, false>, strip<J, 8, 2, false>, strip<J, 8, 1, false>, 4, 4};
      run_tiles(J(call, emit), choice, nt, first, last);
    });
  };
  const auto run = [&](const bw_sink& to, int nt) { return part(to, nt, 0, pixels), (int)BW_OK; };
  if (sink.pool_kernel)
    return pooled(conv, sink, threads, [&](const bw_sink& to, int64_t first, int64_t last) { part(to, 1, first, last); });
  if (!plain_words(sink, conv.o)) return emit_in_two_steps(conv, sink, threads, run);
  return run(sink, threads);
}

}  // namespace
