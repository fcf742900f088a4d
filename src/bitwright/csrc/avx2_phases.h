// AVX2: convolutions of byte codes in steps of 2 of an image with few channels, a net's first layer: Winograd's F(3x3, 4x4) over phases
// (floats_phases.h), in integers and exact.
//
// A window of 5 to 8 in steps of 2 falls into 2x2 phases of up to 4x4 taps in steps of 1; C channels, at most 4, become 4 C. The points
// are those of winograd4.h, 0, 1, -1, 2, -2 and infinity, and so is B':
//   V = B' d B: within +-68 * 255, 16 bits;
//   U = H g H', H g = (6 g0, -(g0 + g1 + g2 + g3), -(g0 - g1 + g2 - g3), g0 + 2 g1 + 4 g2 + 8 g3, g0 - 2 g1 + 4 g2 - 8 g3, 6 g3): 16 bits
//   for all weights of 8 bits, which is looked at when they are packed; others stay with the direct kernel;
//   M = sum of U V over channels, y = A' M A with rows 24 y0 = m0 + 4 (m1 + m2) + (m3 + m4), 12 y1 = 2 (m1 - m2) + (m3 - m4),
//   6 y2 = (m1 + m2) + (m3 + m4) + m5.
// All of it modulo 2^32. What comes out is 9 * 2^k * I with k <= 6; 9 has an inverse modulo 2^32, and |I| < 2^25 for any weights.
//
// A phase of at most 3 taps has nothing at infinity: such pairs of channels are left out. With 3 channels and 7x7 a tile of 3x3 pixels
// takes 187 vpmaddwd for 8 outputs, where the direct kernel takes 693. A register tile is 6 such tiles x 16 outputs at one of the 36
// places: a pair takes 2 loads of weights, 6 broadcasts, 12 products and 12 additions.
#pragma once
#include "avx2_pool.h"
#include "avx2_winograd.h"

namespace {

const int PHASE_GROUP = 6;

inline bool phases_shape(const bw_conv& conv) {
  return conv.groups == 1 && conv.kh >= 5 && conv.kh <= 8 && conv.kw >= 5 && conv.kw <= 8 && conv.stride_h == 2 && conv.stride_w == 2 &&
         conv.dil_h == 1 && conv.dil_w == 1 && conv.c <= 4 && conv.o >= 16;
}

// The pairs of lanes that are multiplied at each of 6 x 6 places, one column of these after the other. Lanes: even rows, from 8 on odd
// ones; of each the even columns' channels, then the odd columns'.
struct PhasePairs {
  int32_t begin[37], lane[36 * 8];
  explicit PhasePairs(const bw_conv& conv) {
    int32_t count = 0;
    for (int64_t i = 0; i < 36; i++) {
      begin[i] = count;
      for (int32_t at = 0; at < 16; at += 2) {
        const bool down = i % 6 < 5 || conv.kh - at / 8 >= 7, across = i / 6 < 5 || conv.kw - at % 8 / conv.c >= 7;
        if (at % 8 < 2 * conv.c && down && across) lane[count++] = at;
      }
    }
    begin[36] = count;
  }
};

// Of a pixel and 8 outputs, in products; what there is besides weighs as much as 15 of them.
inline int64_t phases_cost(const bw_conv& conv) { return PhasePairs(conv).begin[36] / 9 + 15; }

inline int64_t phases_size(const bw_conv& conv) { return bw_ceil_div(conv.o, 16) * 36 * 2 * conv.c * 64; }

inline void phase_line(const int (&g)[4], int (&to)[6]) {
  const int even = g[0] + g[2], odd = g[1] + g[3], far = g[0] + 4 * g[2], other = 2 * g[1] + 8 * g[3];
  to[0] = 6 * g[0], to[1] = -(even + odd), to[2] = -(even - odd), to[3] = far + other, to[4] = far - other, to[5] = 6 * g[3];
}

// take(output, lane, U [across][down]) for all filters and lanes.
template <class Take>
void phase_filters(const bw_conv& conv, const int16_t* values, const Take& take) {
  for (int64_t o = 0; o < conv.o; o++)
    for (int64_t i = 0; i < 4 * conv.c; i++) {
      const int64_t y = i / (2 * conv.c), x = i / conv.c % 2, c = i % conv.c;
      int down[4][6], u[36];
      for (int64_t k = 0; k < 4; k++) {
        int g[4];
        for (int64_t j = 0; j < 4; j++)
          g[j] = 2 * j + y < conv.kh && 2 * k + x < conv.kw ? values[((o * conv.kh + 2 * j + y) * conv.kw + 2 * k + x) * conv.c + c] : 0;
        phase_line(g, down[k]);
      }
      for (int64_t j = 0; j < 6; j++) {
        int across[6];
        phase_line({down[0][j], down[1][j], down[2][j], down[3][j]}, across);
        for (int64_t k = 0; k < 6; k++) u[k * 6 + j] = across[k];
      }
      take(o, y * 8 + x * conv.c + c, u);
    }
}

inline bool phases_exact(const bw_conv& conv, const int16_t* values) {
  bool fits = true;
  phase_filters(conv, values, [&](int64_t, int64_t, const int (&u)[36]) {
    for (int64_t i = 0; i < 36; i++) fits = fits && u[i] == (int16_t)u[i];
  });
  return fits;
}

// [16 outputs][36 places][pairs of that place][16 outputs][2]
inline void phases_weights(const bw_conv& conv, const int16_t* values, int16_t* packed) {
  const PhasePairs pairs(conv);
  memset(packed, 0, (size_t)phases_size(conv));
  phase_filters(conv, values, [&](int64_t o, int64_t lane, const int (&u)[36]) {
    for (int64_t i = 0; i < 36; i++)
      for (int64_t k = pairs.begin[i]; k < pairs.begin[i + 1]; k++)
        if (pairs.lane[k] == lane / 2 * 2) packed[(o / 16 * pairs.begin[36] + k) * 32 + o % 16 * 2 + lane % 2] = (int16_t)u[i];
  });
}

BW_INLINE void phase_sums(const __m256i (&m)[6], __m256i (&y)[3]) {
  const __m256i s = _mm256_add_epi32(m[1], m[2]), d = _mm256_sub_epi32(m[1], m[2]);
  const __m256i p = _mm256_add_epi32(m[3], m[4]), q = _mm256_sub_epi32(m[3], m[4]);
  y[0] = _mm256_add_epi32(_mm256_add_epi32(m[0], _mm256_slli_epi32(s, 2)), p);
  y[1] = _mm256_add_epi32(_mm256_slli_epi32(d, 1), q);
  y[2] = _mm256_add_epi32(_mm256_add_epi32(s, p), m[5]);
}

// Of a group of tiles: V, the sums of a column of places, and these transformed.
struct PhaseRoom {
  int16_t v[36][PHASE_GROUP][16];
  int32_t m[6][PHASE_GROUP][16], half[3][6][PHASE_GROUP][16];
};

// The sums of P tiles x 16 outputs at one place.
template <int P>
BW_INLINE void phase_products(const int16_t* v, const int32_t* lane, const int32_t* end, const int16_t* w, int32_t* out) {
  __m256i sum[P][2];
  BW_UNROLL for (int p = 0; p < P; p++) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
  for (; lane < end; lane++, w += 32) {
    const __m256i w0 = _mm256_loadu_si256((const __m256i*)w), w1 = _mm256_loadu_si256((const __m256i*)(w + 16));
    const int16_t* const at = v + *lane;
    BW_UNROLL for (int p = 0; p < P; p++) {
      int32_t pair;
      memcpy(&pair, at + p * 16, 4);
      const __m256i two = _mm256_set1_epi32(pair);
      sum[p][0] = _mm256_add_epi32(sum[p][0], _mm256_madd_epi16(two, w0));
      sum[p][1] = _mm256_add_epi32(sum[p][1], _mm256_madd_epi16(two, w1));
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < 2; c++) _mm256_storeu_si256((__m256i*)(out + p * 16 + c * 8), sum[p][c]);
}

struct PhasesJob {
  static constexpr int rows = 3;  // of pixels that are made together
  const bw_conv& conv;
  Window<uint8_t> window;  // of a copy of the input with its border
  const int16_t* weights;
  PhasePairs pairs;
  int64_t stride;  // of the sums of a pixel
  int64_t across() const { return bw_ceil_div(conv.ow, 3 * PHASE_GROUP); }  // groups of tiles
  size_t sums_size() const { return (size_t)(9 * PHASE_GROUP * stride) * sizeof(int32_t); }

  // V of `tiles` tiles; three of the six columns of a tile are those of its left neighbor. Beyond the image any pixel serves: its weight
  // is zero, or its result is not written. Lanes beyond the channels are never read.
  void inputs(int64_t n, int64_t y, int64_t x, int64_t tiles, PhaseRoom& room) const {
    const int64_t height = conv.h + 2 * conv.pad_h, row = window.step_y / 2;
    const uint8_t* from[12];
    for (int64_t i = 0; i < 12; i++)
      from[i] = window.image + n * window.step_n + (2 * y + i < height ? 2 * y + i : height - 1) * row + x * window.step_x;
    __m256i columns[6][6];
    const auto column = [&](int64_t at, __m256i (&to)[6]) {
      __m256i d[6];
      BW_UNROLL for (int i = 0; i < 6; i++) {
        const __m128i even = _mm_loadl_epi64((const __m128i*)(from[2 * i] + at)), odd = _mm_loadl_epi64((const __m128i*)(from[2 * i + 1] + at));
        d[i] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi64(even, odd));
      }
      winograd_line(d, to);
    };
    int64_t at = 0;
    for (int j = 0; j < 3; j++, at += window.step_x) column(at, columns[j]);
    for (int64_t t = 0; t < tiles; t++) {
      for (int j = 3; j < 6; j++, at += window.step_x) column(at, columns[j]);
      BW_UNROLL for (int i = 0; i < 6; i++) {
        const __m256i d[6] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]};
        __m256i to[6];
        winograd_line(d, to);
        BW_UNROLL for (int j = 0; j < 6; j++) _mm256_storeu_si256((__m256i*)room.v[j * 6 + i][t], to[j]);
      }
      BW_UNROLL for (int j = 0; j < 3; j++)
        BW_UNROLL for (int i = 0; i < 6; i++) columns[j][i] = columns[j + 3][i];
    }
  }

  // The sums of P tiles from `first` on, of a block of 16 outputs.
  template <int P>
  void tiles(PhaseRoom& room, int64_t first, int64_t block, int32_t* sums) const {
    const int16_t* const w = weights + block * pairs.begin[36] * 32;
    for (int64_t j = 0; j < 6; j++) {
      for (int64_t i = 0; i < 6; i++) {
        const int32_t* const begin = pairs.begin + j * 6 + i;
        phase_products<P>(room.v[j * 6 + i][first], pairs.lane + begin[0], pairs.lane + begin[1], w + begin[0] * 32, room.m[i][0]);
      }
      for (int64_t at = 0; at < P * 16; at += 8) {
        __m256i m[6], y[3];
        BW_UNROLL for (int i = 0; i < 6; i++) m[i] = _mm256_loadu_si256((const __m256i*)(room.m[i][0] + at));
        phase_sums(m, y);
        BW_UNROLL for (int i = 0; i < 3; i++) _mm256_storeu_si256((__m256i*)(room.half[i][j][0] + at), y[i]);
      }
    }
    const __m256i ninth = _mm256_set1_epi32(0x38e38e39);
    for (int i = 0; i < 3; i++)
      for (int64_t at = 0; at < P * 16; at += 8) {
        int32_t* const to = sums + ((i * PHASE_GROUP + first + at / 16) * 3) * stride + block * 16 + at % 16;
        __m256i m[6], y[3];
        BW_UNROLL for (int j = 0; j < 6; j++) m[j] = _mm256_loadu_si256((const __m256i*)(room.half[i][j][0] + at));
        phase_sums(m, y);
        const __m128i down = _mm_cvtsi32_si128(3 - i);
        BW_UNROLL for (int j = 0; j < 3; j++) {
          const __m256i sum = _mm256_srai_epi32(_mm256_mullo_epi32(y[j], ninth), 3 - j);
          _mm256_storeu_si256((__m256i*)(to + j * stride), _mm256_sra_epi32(sum, down));
        }
      }
  }

  // A group of tiles, of rows y..y + 2, to what `sink` asks for; row i is that of number place(i) there.
  template <class Place>
  void group(const bw_sink& sink, EmitRows emit, int64_t n, int64_t y, int64_t group, PhaseRoom& room, int32_t* sums, uint8_t* codes,
             const Place& place) const {
    const int64_t x = group * 3 * PHASE_GROUP, left = bw_ceil_div(conv.ow - x, 3), count = left < PHASE_GROUP ? left : PHASE_GROUP;
    inputs(n, y, x, count, room);
    for (int64_t block = 0; block < stride / 16; block++) {
      int64_t t = 0;
      for (; t + PHASE_GROUP <= count; t += PHASE_GROUP) tiles<PHASE_GROUP>(room, t, block, sums);
      for (; t + 2 <= count; t += 2) tiles<2>(room, t, block, sums);
      if (t < count) tiles<1>(room, t, block, sums);
    }
    Rows rows;
    rows.count = conv.ow - x < 3 * count ? conv.ow - x : 3 * count, rows.stride = stride;
    for (int64_t i = 0; i < 3 && y + i < conv.oh; i++) {
      rows.pixel = place(i) * conv.ow + x, rows.sums = sums + i * 3 * PHASE_GROUP * stride;
      for (int64_t p = 0; p < rows.count; p++)
        rows.corr[p] = conv.corr + (conv.row_class[y + i] * conv.col_classes + conv.col_class[x + p]) * conv.o;
      emit(sink, conv.o, rows, codes);
    }
  }
};

// As floats_of_rows in avx2_pool.h.
inline bool floats_of_rows(const PhasesJob& job, const bw_sink& plain, int64_t n, int64_t y, int64_t depth, int32_t* sums, uint8_t* codes) {
  PhaseRoom* const room = (PhaseRoom*)bw_scratch(BW_SCRATCH_PANEL, sizeof(PhaseRoom));
  if (!room) return false;
  const EmitRows emit = emitter_of(plain, job.conv.o);
  for (int64_t group = 0; group < job.across(); group++)
    job.group(plain, emit, n, y, group, *room, sums, codes, [&](int64_t i) { return (y + i) % depth; });
  return true;
}

inline int phases_in_groups(const PhasesJob& job, const bw_sink& sink, int threads) {
  const bw_conv& conv = job.conv;
  const EmitRows emit = emitter_of(sink, conv.o);
  const int64_t down = bw_ceil_div(conv.oh, 3), across = job.across(), groups = conv.n * down * across;
  const int64_t most = items_per_task(threads, groups, 1, groups);
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(groups, most), [&](int64_t task) {
    PhaseRoom* const room = (PhaseRoom*)bw_scratch(BW_SCRATCH_PANEL, sizeof(PhaseRoom));
    int32_t* const sums = (int32_t*)bw_scratch(BW_SCRATCH_PATCH, job.sums_size());
    uint8_t* const codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
    if (!room || !sums || !codes) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    for (int64_t i = task * most; i < groups && i < (task + 1) * most; i++) {
      const int64_t n = i / (down * across), y = i / across % down * 3;
      job.group(sink, emit, n, y, i % across, *room, sums, codes, [&](int64_t k) { return n * conv.oh + y + k; });
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a transformed input") : BW_OK;
}

inline int phases_conv_bytes(const bw_conv& conv, const Window<uint8_t>& window, const int16_t* weights, const bw_sink& sink, int threads) {
  const PhasesJob job = {conv, window, weights, PhasePairs(conv), bw_ceil_div(conv.o, 16) * 16};
  return sink.pool_kernel ? conv_and_pool(job, sink, threads) : phases_in_groups(job, sink, threads);
}

}  // namespace
