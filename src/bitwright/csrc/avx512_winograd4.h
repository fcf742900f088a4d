// AVX-512 (VNNI): 3x3 convolutions of byte codes by Winograd's F(4x4, 3x3), in integers and exact: thirty-six products of 16 bits for
// sixteen pixels instead of 144 of 8 bits, which is half the time of the direct kernel before the transforms (winograd4.h).
//
// Weights take 72 bytes for 9 of int8: beyond what the third cache gives in time the direct kernel wins.
#pragma once
#include "avx512_winograd.h"
#include "winograd4.h"

namespace {

const int64_t WINOGRAD4_WEIGHTS = 256 * 256;  // pairs of channels
const int64_t WINOGRAD4_ROOM = 640 << 10;     // bytes of V and M: they stay in the second cache
const int WINOGRAD4_PIXELS = 6;               // tiles of a register tile

inline bool winograd4_shape(const bw_conv& conv) {
  return conv.kh == 3 && conv.kw == 3 && conv.stride_h == 1 && conv.stride_w == 1 && conv.dil_h == 1 && conv.dil_w == 1 &&
         conv.c >= 32 && conv.o >= 16 && conv.c * conv.o <= WINOGRAD4_WEIGHTS;
}

inline bool winograd4_fits(const bw_conv& conv, const int16_t* values) { return winograd4_shape(conv) && winograd4_exact(conv, values); }

inline int64_t winograd4_size(const bw_conv& conv) { return bw_ceil_div(conv.o, 16) * 36 * bw_ceil_div(conv.c, 2) * 64; }

// [groups of four blocks][36 places][pairs of channels][blocks][16 outputs][2]
inline void winograd4_weights(const bw_conv& conv, const int16_t* values, void* body) {
  const int64_t pairs = bw_ceil_div(conv.c, 2), blocks = bw_ceil_div(conv.o, 16);
  int16_t* packed = (int16_t*)body;
  memset(body, 0, (size_t)winograd4_size(conv));
  for (int64_t o = 0; o < conv.o; o++) {
    const int64_t group = o / 64, wide = blocks - group * 4 < 4 ? blocks - group * 4 : 4;
    int16_t* const to = packed + group * 4 * 36 * pairs * 32 + o % 64 / 16 * 32 + o % 16 * 2;
    for (int64_t c = 0; c < conv.c; c++) {
      int16_t u[36];
      winograd4_filter(values + o * 9 * conv.c + c, conv.c, u);
      for (int i = 0; i < 36; i++) to[(i * pairs + c / 2) * wide * 32 + c % 2] = u[i];
    }
  }
}

BW_INLINE void winograd4_line(const __m512i (&d)[6], __m512i (&v)[6]) {
  const __m512i a = _mm512_sub_epi16(d[4], _mm512_slli_epi16(d[2], 2)), b = _mm512_sub_epi16(d[3], _mm512_slli_epi16(d[1], 2));
  const __m512i c = _mm512_sub_epi16(d[4], d[2]), e = _mm512_slli_epi16(_mm512_sub_epi16(d[3], d[1]), 1);
  v[0] = _mm512_add_epi16(_mm512_slli_epi16(_mm512_sub_epi16(d[0], d[2]), 2), c);
  v[1] = _mm512_add_epi16(a, b), v[2] = _mm512_sub_epi16(a, b), v[3] = _mm512_add_epi16(c, e), v[4] = _mm512_sub_epi16(c, e);
  v[5] = _mm512_sub_epi16(_mm512_sub_epi16(d[5], d[3]), _mm512_slli_epi16(e, 1));
}

// V of one tile, [36][tiles][width].
inline void winograd4_input(const Window<uint8_t>& window, const bw_conv& conv, int64_t n, int64_t y, int64_t x, int16_t* v, int64_t place) {
  const int64_t height = conv.h + 2 * conv.pad_h, width = conv.w + 2 * conv.pad_w;
  const uint8_t* rows[6];  // beyond the image any pixel serves: its result is not written
  int64_t columns[6];
  for (int64_t i = 0; i < 6; i++) {
    rows[i] = window.image + n * window.step_n + (y + i < height ? y + i : height - 1) * window.step_y;
    columns[i] = (x + i < width ? x + i : width - 1) * window.step_x;
  }
  for (int64_t c = 0; c < conv.c; c += 32) {
    const __mmask32 lanes = conv.c - c >= 32 ? ~0u : (1u << (conv.c - c)) - 1;
    __m512i down[6][6];
    BW_UNROLL for (int j = 0; j < 6; j++) {
      __m512i d[6], to[6];
      BW_UNROLL for (int i = 0; i < 6; i++) d[i] = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(lanes, rows[i] + columns[j] + c));
      winograd4_line(d, to);
      BW_UNROLL for (int i = 0; i < 6; i++) down[i][j] = to[i];
    }
    BW_UNROLL for (int i = 0; i < 6; i++) {
      __m512i to[6];
      winograd4_line(down[i], to);
      BW_UNROLL for (int j = 0; j < 6; j++) _mm512_storeu_si512(v + (i * 6 + j) * place + c, to[j]);
    }
  }
}

// P tiles x 16 C outputs at one place.
template <int P, int C>
__attribute__((noinline)) void winograd4_products(const int16_t* v, int64_t v_step, const int16_t* w, int64_t pairs, int32_t* out) {
  __m512i sum[P][C];
  const int16_t* at[P];
  BW_UNROLL for (int p = 0; p < P; p++) at[p] = v + p * v_step;
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm512_setzero_si512();
  for (int64_t k = 0; k < pairs; k++, w += C * 32) {
    __m512i wv[C];
    BW_UNROLL for (int c = 0; c < C; c++) wv[c] = _mm512_load_si512(w + c * 32);
    BW_UNROLL for (int p = 0; p < P; p++) {
      int32_t two;
      memcpy(&two, at[p] + 2 * k, 4);
      BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm512_dpwssd_epi32(sum[p][c], _mm512_set1_epi32(two), wv[c]);
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) _mm512_store_si512(out + (p * C + c) * 16, sum[p][c]);
}

template <int P, int C>
void winograd4_some(const int16_t* v, int64_t v_step, const int16_t* w, int64_t pairs, int32_t* out, int64_t tiles) {
  if (tiles == P) return winograd4_products<P, C>(v, v_step, w, pairs, out);
  if constexpr (P > 1) winograd4_some<P - 1, C>(v, v_step, w, pairs, out, tiles);
}

BW_INLINE void winograd4_sums(const __m512i (&m)[6], __m512i (&y)[4]) {
  const __m512i s = _mm512_add_epi32(m[1], m[2]), d = _mm512_sub_epi32(m[1], m[2]);
  const __m512i p = _mm512_add_epi32(m[3], m[4]), q = _mm512_sub_epi32(m[3], m[4]);
  y[0] = _mm512_add_epi32(_mm512_add_epi32(m[0], _mm512_slli_epi32(s, 2)), p);
  y[1] = _mm512_add_epi32(_mm512_slli_epi32(d, 1), q);
  y[2] = _mm512_add_epi32(s, p);
  y[3] = _mm512_add_epi32(_mm512_add_epi32(d, _mm512_slli_epi32(q, 1)), m[5]);
}

struct Winograd4Job {
  const bw_conv& conv;
  const bw_sink& sink;
  Window<uint8_t> window;
  const int16_t* weights;
  EmitTile emit;
  int64_t pairs, width, across, down;  // width: numbers of V for one tile and place; tiles of an image

  // C blocks of outputs of tiles first..last-1, whose V is given.
  template <int C>
  void outputs(int64_t first, int64_t last, int64_t group, const int16_t* v, int32_t* m) const {
    const int64_t tiles = last - first, turns = bw_ceil_div(tiles, WINOGRAD4_PIXELS), place = tiles * C * 16;
    for (int64_t i = 0; i < 36; i++) {
      const int16_t* w = weights + (group * 4 * 36 + i * C) * pairs * 32;
      for (int64_t turn = 0; turn < turns; turn++) {
        const int64_t begin = tiles * turn / turns, end = tiles * (turn + 1) / turns;
        winograd4_some<WINOGRAD4_PIXELS, C>(v + (i * tiles + begin) * width, width, w, pairs, m + i * place + begin * C * 16, end - begin);
      }
    }
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t tile = first + t, x = tile % across * 4, y = tile / across % down * 4, n = tile / (across * down);
      const int pixels = (int)(conv.ow - x < 4 ? conv.ow - x : 4);
      __m512i sums[4][4 * C];
      for (int c = 0; c < C; c++) add_up(m + (t * C + c) * 16, place, sums, c, C);
      for (int64_t row = 0; row < 4 && y + row < conv.oh; row++) {
        const int32_t* corr[MOST_PIXELS];
        for (int p = 0; p < pixels; p++)
          corr[p] = conv.corr + (conv.row_class[y + row] * conv.col_classes + conv.col_class[x + p]) * conv.o;
        emit(sink, conv.o, {(n * conv.oh + y + row) * conv.ow + x, group * 4, pixels, C, corr, sums[row]});
      }
    }
  }

  template <int N>
  static BW_INLINE void add_up(const int32_t* m, int64_t place, __m512i (&to)[4][N], int block, int blocks) {
    __m512i half[4][6];
    BW_UNROLL for (int j = 0; j < 6; j++) {
      __m512i column[6], y[4];
      BW_UNROLL for (int i = 0; i < 6; i++) column[i] = _mm512_load_si512(m + (i * 6 + j) * place);
      winograd4_sums(column, y);
      BW_UNROLL for (int i = 0; i < 4; i++) half[i][j] = y[i];
    }
    const __m512i ninth = _mm512_set1_epi32(0x38e38e39);
    BW_UNROLL for (int i = 0; i < 4; i++) {
      __m512i y[4];
      winograd4_sums(half[i], y);
      BW_UNROLL for (int j = 0; j < 4; j++)
        to[i][j * blocks + block] = _mm512_srai_epi32(_mm512_mullo_epi32(y[j], ninth), SHIFTS[i] + SHIFTS[j]);
    }
  }
  static constexpr int SHIFTS[4] = {3, 2, 1, 1};
};
constexpr int Winograd4Job::SHIFTS[4];

inline int winograd4_conv_bytes(const bw_conv& conv, const Window<uint8_t>& window, const void* body, const bw_sink& sink, int threads) {
  const int64_t blocks = bw_ceil_div(conv.o, 16), groups = bw_ceil_div(blocks, 4), wide = blocks < 4 ? blocks : 4;
  const Winograd4Job job = {conv, sink, window, (const int16_t*)body, emitter_of(sink), bw_ceil_div(conv.c, 2),
                            bw_ceil_div(conv.c, 32) * 32, bw_ceil_div(conv.ow, 4), bw_ceil_div(conv.oh, 4)};
  const int64_t tiles = conv.n * job.across * job.down, room = WINOGRAD4_ROOM / (36 * (job.width * 2 + wide * 64));
  int64_t chunks = bw_ceil_div(tiles, room);
  // With threads: outputs in parts, each of which makes V again, but reads only its own weights; then fewer tiles, down to those of
  // a register tile, because each chunk reads all weights.
  int64_t parts = threads > 1 ? bw_ceil_div(2 * threads, chunks) : 1;
  if (parts > groups) parts = groups;
  const int64_t wanted = bw_ceil_div(2 * threads, parts), finest = bw_ceil_div(tiles, WINOGRAD4_PIXELS);
  if (threads > 1 && chunks < wanted) chunks = wanted < finest ? wanted : chunks < finest ? finest : chunks;
  const int64_t most = bw_ceil_div(tiles, chunks);
  int no_memory = 0;
  for_tasks(threads, chunks * parts, [&](int64_t task) {
    const int64_t chunk = task / parts, part = task % parts;
    const int64_t first = chunk * tiles / chunks, last = (chunk + 1) * tiles / chunks, count = last - first;
    int16_t* v = (int16_t*)bw_scratch(BW_SCRATCH_PLACES, (size_t)(36 * most * job.width) * sizeof(int16_t));
    int32_t* m = (int32_t*)bw_scratch(BW_SCRATCH_ROWS, (size_t)(36 * most * wide * 64));
    if (!v || !m) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    for (int64_t t = first; t < last; t++)
      winograd4_input(window, conv, t / (job.across * job.down), t / job.across % job.down * 4, t % job.across * 4,
                      v + (t - first) * job.width, count * job.width);
    for (int64_t g = groups * part / parts; g < groups * (part + 1) / parts; g++)
      switch (blocks - g * 4) {
        case 1: job.outputs<1>(first, last, g, v, m); break;
        case 2: job.outputs<2>(first, last, g, v, m); break;
        case 3: job.outputs<3>(first, last, g, v, m); break;
        default: job.outputs<4>(first, last, g, v, m);
      }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a transformed input") : BW_OK;
}

}  // namespace
