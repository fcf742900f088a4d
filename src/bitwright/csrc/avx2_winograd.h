// AVX2: 3x3 convolutions of byte codes by Winograd's F(4x4, 3x3), exact (winograd4.h): 36 products of 16 bits for 16 pixels instead of
// 144, and vpmaddwd does not take longer for 16 bits than vpmaddubsw with what it needs for 8.
//
// Tiles of 4x4 pixels are done in chunks. Of a chunk V [36][tiles][channels] is made, then for each block of 16 outputs the products
// M [36][tiles][16] and their transforms, the sums [pixels][outputs]; then these become what the caller asked for.
#pragma once
#include "avx2_emit.h"
#include "window.h"
#include "winograd4.h"

namespace {

const int64_t WINOGRAD_WEIGHTS = 256 * 256;  // pairs of channels: 72 bytes each have to come from the cache in time
const int64_t CHUNK_ROOM = 256 << 10;     // bytes of V, M and sums of a chunk
const int WINOGRAD_TILES = 4;                // of a register tile, with 16 outputs each

inline bool winograd_shape(const bw_conv& conv) {
  return conv.groups == 1 && conv.kh == 3 && conv.kw == 3 && conv.stride_h == 1 && conv.stride_w == 1 && conv.dil_h == 1 &&
         conv.dil_w == 1 && conv.c >= 16 && conv.o >= 16 && conv.c * conv.o <= WINOGRAD_WEIGHTS;
}

inline int64_t winograd_size(const bw_conv& conv) { return bw_ceil_div(conv.o, 16) * 36 * bw_ceil_div(conv.c, 2) * 64; }

// [16 outputs][36 places][pairs of channels][16 outputs][2]
inline void winograd_weights(const bw_conv& conv, const int16_t* values, int16_t* packed) {
  const int64_t pairs = bw_ceil_div(conv.c, 2);
  memset(packed, 0, (size_t)winograd_size(conv));
  for (int64_t o = 0; o < conv.o; o++)
    for (int64_t c = 0; c < conv.c; c++) {
      int16_t u[36];
      winograd4_filter(values + o * 9 * conv.c + c, conv.c, u);
      for (int64_t i = 0; i < 36; i++) packed[((o / 16 * 36 + i) * pairs + c / 2) * 32 + o % 16 * 2 + c % 2] = u[i];
    }
}

BW_INLINE void winograd_line(const __m256i (&d)[6], __m256i (&v)[6]) {
  const __m256i a = _mm256_sub_epi16(d[4], _mm256_slli_epi16(d[2], 2)), b = _mm256_sub_epi16(d[3], _mm256_slli_epi16(d[1], 2));
  const __m256i c = _mm256_sub_epi16(d[4], d[2]), e = _mm256_slli_epi16(_mm256_sub_epi16(d[3], d[1]), 1);
  v[0] = _mm256_add_epi16(_mm256_slli_epi16(_mm256_sub_epi16(d[0], d[2]), 2), c);
  v[1] = _mm256_add_epi16(a, b), v[2] = _mm256_sub_epi16(a, b), v[3] = _mm256_add_epi16(c, e), v[4] = _mm256_sub_epi16(c, e);
  v[5] = _mm256_sub_epi16(_mm256_sub_epi16(d[5], d[3]), _mm256_slli_epi16(e, 1));
}

BW_INLINE void winograd_sums(const __m256i (&m)[6], __m256i (&y)[4]) {
  const __m256i s = _mm256_add_epi32(m[1], m[2]), d = _mm256_sub_epi32(m[1], m[2]);
  const __m256i p = _mm256_add_epi32(m[3], m[4]), q = _mm256_sub_epi32(m[3], m[4]);
  y[0] = _mm256_add_epi32(_mm256_add_epi32(m[0], _mm256_slli_epi32(s, 2)), p);
  y[1] = _mm256_add_epi32(_mm256_slli_epi32(d, 1), q);
  y[2] = _mm256_add_epi32(s, p);
  y[3] = _mm256_add_epi32(_mm256_add_epi32(d, _mm256_slli_epi32(q, 1)), m[5]);
}

// P tiles x 16 outputs at one place.
template <int P>
void winograd_products(const int16_t* v, int64_t v_step, const int16_t* w, int64_t pairs, int32_t* out) {
  __m256i sum[P][2];
  BW_UNROLL for (int p = 0; p < P; p++) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < pairs; k++, w += 32) {
    const __m256i w0 = _mm256_loadu_si256((const __m256i*)w), w1 = _mm256_loadu_si256((const __m256i*)(w + 16));
    BW_UNROLL for (int p = 0; p < P; p++) {
      int32_t pair;
      memcpy(&pair, v + p * v_step + 2 * k, 4);
      const __m256i two = _mm256_set1_epi32(pair);
      sum[p][0] = _mm256_add_epi32(sum[p][0], _mm256_madd_epi16(two, w0));
      sum[p][1] = _mm256_add_epi32(sum[p][1], _mm256_madd_epi16(two, w1));
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < 2; c++) _mm256_storeu_si256((__m256i*)(out + p * 16 + c * 8), sum[p][c]);
}

struct WinogradJob {
  const bw_conv& conv;
  const bw_sink& sink;
  Window<uint8_t> window;
  const int16_t* weights;
  EmitRows emit;
  int64_t pairs, width, stride, across, down;  // width: numbers of V for one tile and place; stride: of the sums of a pixel

  // V of one tile.
  void input(int64_t tile, int16_t* v, int64_t place) const {
    const int64_t x = tile % across * 4, y = tile / across % down * 4, n = tile / (across * down);
    const int64_t height = conv.h + 2 * conv.pad_h, wide = conv.w + 2 * conv.pad_w;
    const uint8_t* rows[6];  // beyond the image any pixel serves: its result is not written
    int64_t columns[6];
    for (int64_t i = 0; i < 6; i++) {
      rows[i] = window.image + n * window.step_n + (y + i < height ? y + i : height - 1) * window.step_y;
      columns[i] = (x + i < wide ? x + i : wide - 1) * window.step_x;
    }
    for (int64_t c = 0; c < conv.c; c += 16) {  // what lies behind the last channel meets weights of zero, or none
      __m256i half[6][6];
      BW_UNROLL for (int j = 0; j < 6; j++) {
        __m256i d[6], to[6];
        BW_UNROLL for (int i = 0; i < 6; i++) d[i] = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(rows[i] + columns[j] + c)));
        winograd_line(d, to);
        BW_UNROLL for (int i = 0; i < 6; i++) half[i][j] = to[i];
      }
      BW_UNROLL for (int i = 0; i < 6; i++) {
        __m256i to[6];
        winograd_line(half[i], to);
        BW_UNROLL for (int j = 0; j < 6; j++) _mm256_storeu_si256((__m256i*)(v + (i * 6 + j) * place + c), to[j]);
      }
    }
  }

  // The products of a block of 16 outputs with all tiles of a chunk.
  void products(const int16_t* v, int64_t tiles, int64_t block, int32_t* m) const {
    for (int64_t i = 0; i < 36; i++, v += tiles * width, m += tiles * 16) {
      const int16_t* const w = weights + (block * 36 + i) * pairs * 32;
      int64_t t = 0;
      for (; t + WINOGRAD_TILES <= tiles; t += WINOGRAD_TILES) winograd_products<WINOGRAD_TILES>(v + t * width, width, w, pairs, m + t * 16);
      for (; t < tiles; t++) winograd_products<1>(v + t * width, width, w, pairs, m + t * 16);
    }
  }

  // Eight outputs of the sixteen pixels of a tile.
  void add_up(const int32_t* m, int64_t place, int32_t* sums) const {
    __m256i half[4][6];
    BW_UNROLL for (int j = 0; j < 6; j++) {
      __m256i column[6], y[4];
      BW_UNROLL for (int i = 0; i < 6; i++) column[i] = _mm256_loadu_si256((const __m256i*)(m + (i * 6 + j) * place));
      winograd_sums(column, y);
      BW_UNROLL for (int i = 0; i < 4; i++) half[i][j] = y[i];
    }
    const __m256i ninth = _mm256_set1_epi32(0x38e38e39);
    static constexpr int SHIFTS[4] = {3, 2, 1, 1};
    BW_UNROLL for (int i = 0; i < 4; i++) {
      __m256i y[4];
      winograd_sums(half[i], y);
      BW_UNROLL for (int j = 0; j < 4; j++)
        _mm256_storeu_si256((__m256i*)(sums + (i * 4 + j) * stride), _mm256_srai_epi32(_mm256_mullo_epi32(y[j], ninth), SHIFTS[i] + SHIFTS[j]));
    }
  }

  void write(int64_t tile, int32_t* sums, uint8_t* codes) const {
    const int64_t x = tile % across * 4, y = tile / across % down * 4, n = tile / (across * down);
    Rows rows;
    rows.count = conv.ow - x < 4 ? conv.ow - x : 4, rows.stride = stride;
    for (int64_t i = 0; i < 4 && y + i < conv.oh; i++) {
      rows.pixel = (n * conv.oh + y + i) * conv.ow + x, rows.sums = sums + i * 4 * stride;
      for (int64_t j = 0; j < rows.count; j++)
        rows.corr[j] = conv.corr + (conv.row_class[y + i] * conv.col_classes + conv.col_class[x + j]) * conv.o;
      emit(sink, conv.o, rows, codes);
    }
  }
};

// `window` is that of a copy of the input with its border.
inline int winograd_conv_bytes(const bw_conv& conv, const Window<uint8_t>& window, const int16_t* weights, const bw_sink& sink, int threads) {
  const int64_t blocks = bw_ceil_div(conv.o, 16);
  const WinogradJob job = {conv, sink, window, weights, emitter_of(sink, conv.o), bw_ceil_div(conv.c, 2), bw_ceil_div(conv.c, 16) * 16,
                           blocks * 16, bw_ceil_div(conv.ow, 4), bw_ceil_div(conv.oh, 4)};
  const int64_t tiles = conv.n * job.across * job.down, of_tile = 36 * (job.width * 2 + 64) + 64 * job.stride;
  const int64_t most = items_per_task(threads, tiles, WINOGRAD_TILES, CHUNK_ROOM / of_tile);
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(tiles, most), [&](int64_t task) {
    const int64_t first = task * most, count = tiles - first < most ? tiles - first : most;
    int16_t* v = (int16_t*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(36 * most * job.width) * sizeof(int16_t));
    int32_t* m = (int32_t*)bw_scratch(BW_SCRATCH_ROWS, (size_t)(36 * most * 64));
    int32_t* sums = (int32_t*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(16 * most * job.stride) * sizeof(int32_t));
    uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
    if (!v || !m || !sums || !codes) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    for (int64_t t = 0; t < count; t++) job.input(first + t, v + t * job.width, count * job.width);
    for (int64_t block = 0; block < blocks; block++) {
      job.products(v, count, block, m);
      for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < 16; c += 8) job.add_up(m + t * 16 + c, count * 16, sums + t * 16 * job.stride + block * 16 + c);
    }
    for (int64_t t = 0; t < count; t++) job.write(first + t, sums + t * 16 * job.stride, codes);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a transformed input") : BW_OK;
}

}  // namespace
