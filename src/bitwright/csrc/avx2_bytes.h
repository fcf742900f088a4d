// AVX2: convolutions of byte codes. This instruction set multiplies bytes in pairs whose sum it cuts off at 16 bits, so there are two
// layouts, both exact:
//   quads  four codes with int8 weights, vpmaddubsw, sums of 16 bits that `flush` quads cannot overflow: 32 products an instruction.
//          For weights so small that four quads fit: up to 4 bits beside codes of 8 bits, up to 8 beside codes of 4.
//   pairs  two codes with weights of 16 bits, vpmaddwd: 16 products an instruction, for all others (-255..255).
// Many 3x3 windows take Winograd's form instead (avx2_winograd.h), and most first layers in steps of 2 its form for these (avx2_phases.h).
// As for bits, lanes are outputs and codes are broadcast. A tile of pairs is 6 pixels x 16 outputs: per place 2 loads of weights, 6
// broadcasts, 12 products and 12 additions; Zen 3 starts two products and four operations a cycle, so the products are the limit. Quads
// need registers for sums of 16 bits besides: 4 pixels.
//
// A run whose length is not a whole number of quads or pairs reads into its neighbor; the weights there are zero.
#pragma once
#include <stdlib.h>

#include "avx2_phases.h"

namespace {

const int64_t QUADS_LEAST = 4;  // quads between two moves to 32 bits, which cost as much as a quad

inline int64_t bytes_flush(const bw_conv& conv, int64_t largest) {  // of the weights, without sign
  const int64_t code = conv.x_planes ? (1 << conv.x_planes) - 1 : 255;
  return largest ? 32767 / (2 * code * largest) : 32767;
}

inline int64_t bytes_run(const bw_conv& conv) { return conv.dil_w == 1 || conv.kw == 1 ? conv.kw * conv.c : conv.c; }
inline int64_t bytes_places(const bw_conv& conv, int64_t step) {
  const int64_t run = bytes_run(conv);
  return conv.kh * conv.kw * conv.c / run * bw_ceil_div(run, step);
}
inline int64_t bytes_blocks(const bw_conv& conv) { return bw_ceil_div(conv.o, 16) * 2; }  // vectors of 8 outputs

// The largest layout; 64 bytes in front hold `flush`.
inline int64_t bytes_size(const bw_conv& conv) {
  const int64_t pairs = bytes_blocks(conv) * conv.kh * conv.kw * bw_ceil_div(conv.c, 2) * 32;  // runs of one tap take no less
  const int64_t winograd = winograd_shape(conv) ? winograd_size(conv) : phases_shape(conv) ? phases_size(conv) : 0;
  return 64 + (pairs > winograd ? pairs : winograd);
}

inline int64_t largest_weight(const bw_conv& conv, const int16_t* values) {
  int64_t largest = 0;
  for (int64_t i = 0; i < conv.o * conv.kh * conv.kw * conv.c; i++)
    if (abs(values[i]) > largest) largest = abs(values[i]);
  return largest;
}

inline int32_t bytes_layout(const bw_conv& conv, const int16_t* values) {
  if (winograd_shape(conv) && winograd4_exact(conv, values)) return BW_LAYOUT_WINOGRAD_PAIRS;
  const int64_t largest = largest_weight(conv, values), flush = bytes_flush(conv, largest);
  const bool quads = largest <= 127 && flush >= QUADS_LEAST;
  const int64_t direct = quads ? bytes_places(conv, 4) * (flush + 1) / flush : bytes_places(conv, 2);
  if (phases_shape(conv) && phases_cost(conv) < direct && phases_exact(conv, values)) return BW_LAYOUT_PHASE_PAIRS;
  const int32_t taps = bytes_run(conv) == conv.c && conv.kw > 1 ? 2 : 0;
  return (quads ? BW_LAYOUT_QUADS : BW_LAYOUT_PAIRS) | taps;
}

// [8 outputs][places][32 bytes]
template <class T>
void bytes_weights(const bw_conv& conv, const int16_t* values, T* packed) {
  const int64_t step = 32 / 8 / (int64_t)sizeof(T), run = bytes_run(conv), places = bytes_places(conv, step);
  const int64_t runs = conv.kh * conv.kw * conv.c / run;
  memset(packed, 0, (size_t)(bytes_blocks(conv) * places * 32));
  for (int64_t o = 0; o < conv.o; o++)
    for (int64_t r = 0; r < runs; r++)
      for (int64_t i = 0; i < run; i++) {
        const int64_t place = r * bw_ceil_div(run, step) + i / step;
        packed[(o / 8 * places + place) * 8 * step + o % 8 * step + i % step] = (T)*values++;
      }
}

inline void lanes_bytes_weights(const bw_conv& conv, const int16_t* values, int32_t layout, void* body) {
  const int64_t flush = bytes_flush(conv, largest_weight(conv, values));
  memset(body, 0, 64);
  memcpy(body, &flush, sizeof flush);
  if (layout == BW_LAYOUT_WINOGRAD_PAIRS) return winograd_weights(conv, values, (int16_t*)((uint8_t*)body + 64));
  if (layout == BW_LAYOUT_PHASE_PAIRS) return phases_weights(conv, values, (int16_t*)((uint8_t*)body + 64));
  if ((layout & ~2) == BW_LAYOUT_QUADS) bytes_weights(conv, values, (int8_t*)body + 64);
  else bytes_weights(conv, values, (int16_t*)((uint8_t*)body + 64));
}

template <class T>
struct BytesJob {
  typedef T element;
  const bw_conv& conv;
  Window<T> window;
  Places places;
  const uint8_t* weights;
  int64_t flush;
  static constexpr int64_t width = 16;
  static constexpr int pixels = sizeof(T) == 2 ? 6 : TILE_PIXELS, rows = 1;
  size_t sums_size() const { return (size_t)(CHUNK * bw_ceil_div(conv.o, width) * width) * sizeof(int32_t); }

  template <int P>
  BW_INLINE void tile(Walk<T>& walk, int64_t, int64_t block, int32_t* sums, int64_t stride) const;
};

template <class T>
BW_INLINE __m256i broadcast(const T* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
BW_INLINE __m256i vector_at(const uint8_t* from) { return _mm256_loadu_si256((const __m256i*)from); }

template <int P>
BW_INLINE void add_places(const Places& places, int64_t, const int16_t* const (&x)[P], const uint8_t* w, int64_t w_step, __m256i (&sum)[P][2]) {
  for (const int32_t *at = places.place, *const end = at + places.count; at < end; at++, w += 32) {
    const __m256i w0 = vector_at(w), w1 = vector_at(w + w_step);
    BW_UNROLL for (int p = 0; p < P; p++) {
      const __m256i two = broadcast(x[p] + *at);
      sum[p][0] = _mm256_add_epi32(sum[p][0], _mm256_madd_epi16(two, w0));
      sum[p][1] = _mm256_add_epi32(sum[p][1], _mm256_madd_epi16(two, w1));
    }
  }
}

template <int P>
BW_INLINE void add_places(const Places& places, int64_t flush, const uint8_t* const (&x)[P], const uint8_t* w, int64_t w_step,
                          __m256i (&sum)[P][2]) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int32_t *at = places.place, *const end = at + places.count;
  while (at < end) {
    const int32_t* const stop = end - at < flush ? end : at + flush;
    __m256i part[P][2];
    BW_UNROLL for (int p = 0; p < P; p++) part[p][0] = part[p][1] = _mm256_setzero_si256();
    for (; at < stop; at++, w += 32) {
      const __m256i w0 = vector_at(w), w1 = vector_at(w + w_step);
      BW_UNROLL for (int p = 0; p < P; p++) {
        const __m256i four = broadcast(x[p] + *at);
        part[p][0] = _mm256_add_epi16(part[p][0], _mm256_maddubs_epi16(four, w0));
        part[p][1] = _mm256_add_epi16(part[p][1], _mm256_maddubs_epi16(four, w1));
      }
    }
    BW_UNROLL for (int p = 0; p < P; p++)
      BW_UNROLL for (int c = 0; c < 2; c++) sum[p][c] = _mm256_add_epi32(sum[p][c], _mm256_madd_epi16(part[p][c], ones));
  }
}

template <class T>
template <int P>
BW_INLINE void BytesJob<T>::tile(Walk<T>& walk, int64_t, int64_t block, int32_t* sums, int64_t stride) const {
  const T* x[P];
  BW_UNROLL for (int p = 0; p < P; p++) x[p] = walk.address(), walk.next();
  const int64_t w_step = places.count * 32;
  __m256i sum[P][2];
  BW_UNROLL for (int p = 0; p < P; p++) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
  add_places<P>(places, flush, x, weights + block * 2 * w_step, w_step, sum);
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < 2; c++) _mm256_storeu_si256((__m256i*)(sums + p * stride + c * 8), sum[p][c]);
}

inline void copy_codes(const uint8_t* from, int64_t count, uint8_t* to) { memcpy(to, from, (size_t)count); }
inline void copy_codes(const uint8_t* from, int64_t count, int16_t* to) {
  for (int64_t i = 0; i < count; i++) to[i] = from[i];
}

// As T: always a copy (with or without a border), since the last run may read beyond the input.
template <class T>
int conv_bytes_as(const bw_conv& conv, const uint8_t* x, int64_t flush, const uint8_t* weights, const bw_sink& sink, int threads) {
  const int64_t step = 4 / (int64_t)sizeof(T), row = conv.w * conv.c;
  BytesJob<T> job = {conv, {}, {}, weights, flush};
  const T* const image = bordered<T>(conv, conv.c, threads, [x, row](T* to, int64_t y) { copy_codes(x + y * row, row, to); });
  if (!image) return bw_fail(BW_NO_MEMORY, "out of memory for the padded input");
  set_window(conv, image, conv.c, conv.c, false, &job.window);
  if (!make_places(job.window, step, bytes_places(conv, step), &job.places)) return bw_fail(BW_NO_MEMORY, "out of memory for the places of a window");
  return sink.pool_kernel ? conv_and_pool(job, sink, threads) : conv_in_chunks(job, sink, 0, threads);
}

inline int lanes_conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body, const bw_sink& sink, int threads) {
  int64_t flush;
  memcpy(&flush, body, sizeof flush);
  const uint8_t* const weights = (const uint8_t*)body + 64;
  if (layout == BW_LAYOUT_WINOGRAD_PAIRS || layout == BW_LAYOUT_PHASE_PAIRS) {
    Window<uint8_t> window;
    if (!make_window(conv, x, conv.c, conv.c, true, false, threads, &window)) return bw_fail(BW_NO_MEMORY, "out of memory for the padded input");
    return (layout == BW_LAYOUT_PHASE_PAIRS ? phases_conv_bytes : winograd_conv_bytes)(conv, window, (const int16_t*)weights, sink, threads);
  }
  return (layout & ~2) == BW_LAYOUT_QUADS ? conv_bytes_as<uint8_t>(conv, x, flush, weights, sink, threads)
                                          : conv_bytes_as<int16_t>(conv, x, flush, weights, sink, threads);
}

}  // namespace
