// AVX-512 (VNNI): 3x3 convolutions of byte codes below 2^6 with small weights by Winograd's F(2x2, 3x3), in integers and exact:
// sixteen products for four pixels instead of thirty-six.
//
//   V = B' d B of each 4x4 patch d of codes, B' d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3): within 0..4H or -2H..2H for codes up to
//       H <= 63, so that V + 128 (or V itself at the place where it is a sum of four codes) fits uint8;
//   U = (2G) g (2G)', 2G g = (2 g0, g0 + g1 + g2, g0 - g1 + g2, 2 g2): whole numbers, which must fit int8;
//   4 I = A' (sum_c U V) A, A' m = (m0 + m1 + m2, m1 - m2 - m3). What the 128 adds is a constant per output.
//
// Tiles of pixels take turns: V of some tiles is made once, [16][tiles][C]; for 64 outputs at a time each of the sixteen places
// is a matrix product in 4 x 4 register tiles, [16][tiles][64] int32, which the last step adds up. Both lie in L2.
// The limit is 16/36 = 0.44 of the direct kernel's time; what the transforms leave of it, by channels: `bench/forms.py`.
#pragma once
#include "avx512_pool.h"

namespace {

const int WINOGRAD_BITS = 6;           // of a code
const int64_t WINOGRAD_CHANNELS = 32;  // below, the transforms cost more than they save
const int64_t WINOGRAD_TILES = 64;     // at a time

inline void winograd_weight(const int16_t* tap, int64_t step, int (&u)[16]) {
  int rows[4][3];
  for (int x = 0; x < 3; x++) {
    const int a = tap[x * step], b = tap[(3 + x) * step], c = tap[(6 + x) * step];
    rows[0][x] = 2 * a, rows[1][x] = a + b + c, rows[2][x] = a - b + c, rows[3][x] = 2 * c;
  }
  for (int y = 0; y < 4; y++) {
    const int a = rows[y][0], b = rows[y][1], c = rows[y][2];
    u[4 * y] = 2 * a, u[4 * y + 1] = a + b + c, u[4 * y + 2] = a - b + c, u[4 * y + 3] = 2 * c;
  }
}

inline bool winograd_fits(const bw_conv& conv, const int16_t* values) {
  const bool shape = conv.kh == 3 && conv.kw == 3 && conv.stride_h == 1 && conv.stride_w == 1 && conv.dil_h == 1 &&
                     conv.dil_w == 1 && conv.x_planes >= 1 && conv.x_planes <= WINOGRAD_BITS;
  if (!shape || conv.c < WINOGRAD_CHANNELS || conv.c > 4096 || conv.o < 16) return false;
  for (int64_t o = 0; o < conv.o; o++)
    for (int64_t c = 0; c < conv.c; c++) {
      int u[16];
      winograd_weight(values + o * 9 * conv.c + c, conv.c, u);
      for (int i = 0; i < 16; i++)
        if (u[i] < -128 || u[i] > 127) return false;
    }
  return true;
}

// [blocks][16 places][quads of channels][16 outputs][4], then constants [blocks][2 x 2 pixels][16]
inline void winograd_weights(const bw_conv& conv, const int16_t* values, void* body) {
  const int64_t quads = bw_ceil_div(conv.c, 4), blocks = bw_ceil_div(conv.o, 16);
  int8_t* packed = (int8_t*)body;
  int32_t* constants = (int32_t*)(packed + blocks * 16 * quads * 64);
  memset(body, 0, (size_t)(blocks * 16 * quads * 64 + blocks * 4 * 64));
  for (int64_t o = 0; o < conv.o; o++) {
    int sums[16] = {};
    for (int64_t c = 0; c < conv.c; c++) {
      int u[16];
      winograd_weight(values + o * 9 * conv.c + c, conv.c, u);
      for (int i = 0; i < 16; i++) {
        packed[((o / 16 * 16 + i) * quads + c / 4) * 64 + o % 16 * 4 + c % 4] = (int8_t)u[i];
        sums[i] += i == 5 ? 0 : 128 * u[i];
      }
    }
    int rows[2][4];
    for (int x = 0; x < 4; x++) {
      rows[0][x] = sums[x] + sums[4 + x] + sums[8 + x], rows[1][x] = sums[4 + x] - sums[8 + x] - sums[12 + x];
    }
    for (int y = 0; y < 2; y++) {
      int32_t* to = constants + (o / 16 * 4 + 2 * y) * 16 + o % 16;
      to[0] = rows[y][0] + rows[y][1] + rows[y][2], to[16] = rows[y][1] - rows[y][2] - rows[y][3];
    }
  }
}

// V of one tile, [16][tiles][width].
inline void winograd_input(const Window<uint8_t>& window, const bw_conv& conv, int64_t tile, uint8_t* v, int64_t place) {
  const int64_t across = bw_ceil_div(conv.ow, 2), down = bw_ceil_div(conv.oh, 2);
  const int64_t n = tile / (across * down), y = tile / across % down * 2, x = tile % across * 2;
  const int64_t height = conv.h + 2 * conv.pad_h, width = conv.w + 2 * conv.pad_w;
  const uint8_t* from[4][4];  // beyond the image any pixel serves: its result is not written
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++)
      from[i][j] = window.image + n * window.step_n + (y + i < height ? y + i : height - 1) * window.step_y +
                   (x + j < width ? x + j : width - 1) * window.step_x;
  const __m512i middle = _mm512_set1_epi8((char)128);
  for (int64_t c = 0; c < conv.c; c += 64) {
    const __mmask64 lanes = conv.c - c >= 64 ? ~0ull : (1ull << (conv.c - c)) - 1;
    __m512i d[4][4];
    BW_UNROLL for (int j = 0; j < 4; j++) {
      const __m512i a = _mm512_maskz_loadu_epi8(lanes, from[0][j] + c), b = _mm512_maskz_loadu_epi8(lanes, from[1][j] + c);
      const __m512i e = _mm512_maskz_loadu_epi8(lanes, from[2][j] + c), f = _mm512_maskz_loadu_epi8(lanes, from[3][j] + c);
      d[0][j] = _mm512_sub_epi8(a, e), d[1][j] = _mm512_add_epi8(b, e);
      d[2][j] = _mm512_sub_epi8(e, b), d[3][j] = _mm512_sub_epi8(b, f);
    }
    BW_UNROLL for (int i = 0; i < 4; i++) {
      const __m512i a = d[i][0], b = d[i][1], e = d[i][2], f = d[i][3];
      const __m512i whole[4] = {_mm512_sub_epi8(a, e), _mm512_add_epi8(b, e), _mm512_sub_epi8(e, b), _mm512_sub_epi8(b, f)};
      BW_UNROLL for (int j = 0; j < 4; j++)
        _mm512_store_si512(v + (i * 4 + j) * place + c, i == 1 && j == 1 ? whole[j] : _mm512_xor_si512(whole[j], middle));
    }
  }
}

// P tiles x 16 C outputs at one place.
template <int P, int C>
BW_INLINE void winograd_products(const uint8_t* v, int64_t v_step, const int8_t* w, int64_t w_step, int64_t quads, int32_t* out) {
  __m512i sum[P][C];
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm512_setzero_si512();
  for (int64_t k = 0; k < quads; k++, w += 64) {
    __m512i wv[C];
    BW_UNROLL for (int c = 0; c < C; c++) wv[c] = _mm512_load_si512(w + c * w_step);
    BW_UNROLL for (int p = 0; p < P; p++) {
      int32_t four;
      memcpy(&four, v + p * v_step + 4 * k, 4);
      BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm512_dpbusd_epi32(sum[p][c], _mm512_set1_epi32(four), wv[c]);
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) _mm512_store_si512(out + (p * C + c) * 16, sum[p][c]);
}

struct WinogradJob {
  const bw_conv& conv;
  const bw_sink& sink;
  Window<uint8_t> window;
  const int8_t* weights;
  const int32_t* constants;
  EmitTile emit;
  int64_t quads, width;  // width: bytes of V for one tile and place

  // C blocks of outputs of tiles first..last-1, whose V is given.
  template <int C>
  void outputs(int64_t first, int64_t last, int64_t block, const uint8_t* v, int32_t* m) const {
    const int64_t tiles = last - first, w_step = 16 * quads * 64;
    for (int64_t place = 0; place < 16; place++) {
      const int8_t* w = weights + (block * 16 + place) * quads * 64;
      const uint8_t* from = v + place * WINOGRAD_TILES * width;
      int32_t* to = m + place * WINOGRAD_TILES * C * 16;
      int64_t t = 0;
      for (; t + 4 <= tiles; t += 4) winograd_products<4, C>(from + t * width, width, w, w_step, quads, to + t * C * 16);
      for (; t < tiles; t++) winograd_products<1, C>(from + t * width, width, w, w_step, quads, to + t * C * 16);
    }
    const int64_t across = bw_ceil_div(conv.ow, 2), down = bw_ceil_div(conv.oh, 2);
    for (int64_t t = 0, many; t < tiles; t += many) {  // up to four tiles side by side: eight pixels of two rows
      const int64_t tile = first + t, x = tile % across, y = tile / across % down * 2, n = tile / (across * down);
      many = across - x < tiles - t ? across - x : tiles - t;
      if (many > MOST_PIXELS / 2) many = MOST_PIXELS / 2;
      __m512i sums[2][MOST_PIXELS * C];
      for (int64_t i = 0; i < many; i++)
        BW_UNROLL for (int c = 0; c < C; c++) add_up(m + ((t + i) * C + c) * 16, WINOGRAD_TILES * C * 16, block + c,
                                                     sums[0] + 2 * i * C + c, sums[1] + 2 * i * C + c, C);
      const int pixels = (int)(x * 2 + many * 2 <= conv.ow ? many * 2 : many * 2 - 1);
      for (int64_t row = 0; row < 2 && y + row < conv.oh; row++) {
        const int32_t* corr[MOST_PIXELS];
        for (int p = 0; p < pixels; p++)
          corr[p] = conv.corr + (conv.row_class[y + row] * conv.col_classes + conv.col_class[x * 2 + p]) * conv.o;
        emit(sink, conv.o, {(n * conv.oh + y + row) * conv.ow + x * 2, block, pixels, C, corr, sums[row]});
      }
    }
  }

  // The four pixels of a tile, two in `upper` and two in `lower`, `step` vectors apart.
  BW_INLINE void add_up(const int32_t* m, int64_t place, int64_t block, __m512i* upper, __m512i* lower, int64_t step) const {
    __m512i rows[2][4];
    BW_UNROLL for (int x = 0; x < 4; x++) {
      const __m512i a = _mm512_load_si512(m + x * place), b = _mm512_load_si512(m + (4 + x) * place);
      const __m512i c = _mm512_load_si512(m + (8 + x) * place), d = _mm512_load_si512(m + (12 + x) * place);
      rows[0][x] = _mm512_add_epi32(_mm512_add_epi32(a, b), c);
      rows[1][x] = _mm512_sub_epi32(_mm512_sub_epi32(b, c), d);
    }
    BW_UNROLL for (int y = 0; y < 2; y++) {
      const __m512i* row = rows[y];
      const int32_t* constant = constants + (block * 4 + 2 * y) * 16;
      const __m512i left = _mm512_add_epi32(_mm512_add_epi32(row[0], row[1]), row[2]);
      const __m512i right = _mm512_sub_epi32(_mm512_sub_epi32(row[1], row[2]), row[3]);
      __m512i* to = y ? lower : upper;
      to[0] = _mm512_srai_epi32(_mm512_sub_epi32(left, _mm512_loadu_si512(constant)), 2);
      to[step] = _mm512_srai_epi32(_mm512_sub_epi32(right, _mm512_loadu_si512(constant + 16)), 2);
    }
  }
};

// Whose V a thread holds: tasks of the same tiles that follow each other make it once.
struct Held {
  uint64_t call;
  int64_t chunk;
};
thread_local Held winograd_held = {};

inline int winograd_conv_bytes(const bw_conv& conv, const Window<uint8_t>& window, const void* body, const bw_sink& sink,
                               int threads) {
  const int64_t quads = bw_ceil_div(conv.c, 4), blocks = bw_ceil_div(conv.o, 16), width = bw_ceil_div(conv.c, 64) * 64;
  const int64_t tiles = conv.n * bw_ceil_div(conv.oh, 2) * bw_ceil_div(conv.ow, 2);
  const WinogradJob job = {conv, sink, window, (const int8_t*)body, (const int32_t*)((const int8_t*)body + blocks * 16 * quads * 64),
                           emitter_of(sink), quads, width};
  // With threads: about eight tasks, of outputs where tiles are too few.
  const int64_t chunks = bw_ceil_div(tiles, WINOGRAD_TILES), strips = blocks / MOST_BLOCKS + blocks % MOST_BLOCKS;
  int64_t groups = threads > 1 ? bw_ceil_div(8, chunks) : 1;
  if (groups > strips) groups = strips;
  const uint64_t call = next_call();
  int no_memory = 0;
  for_tasks(threads, chunks * groups, [&](int64_t task) {
    const int64_t chunk = task / groups, group = task % groups;
    const int64_t first = chunk * tiles / chunks, last = (chunk + 1) * tiles / chunks;
    uint8_t* v = (uint8_t*)bw_scratch(BW_SCRATCH_PLACES, (size_t)(16 * WINOGRAD_TILES * width));
    int32_t* m = (int32_t*)bw_scratch(BW_SCRATCH_ROWS, (size_t)(16 * WINOGRAD_TILES * MOST_BLOCKS * 64));
    if (!v || !m) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    if (winograd_held.call != call || winograd_held.chunk != chunk) {
      for (int64_t t = first; t < last; t++)
        winograd_input(window, conv, t, v + (t - first) * width, WINOGRAD_TILES * width);
      winograd_held = {call, chunk};
    }
    for (int64_t strip = group * strips / groups; strip < (group + 1) * strips / groups; strip++) {
      const int64_t wide = blocks / MOST_BLOCKS;
      if (strip < wide) job.outputs<MOST_BLOCKS>(first, last, strip * MOST_BLOCKS, v, m);
      else job.outputs<1>(first, last, wide * MOST_BLOCKS + strip - wide, v, m);
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a transformed input") : BW_OK;
}

}  // namespace
