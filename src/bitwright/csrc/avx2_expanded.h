// AVX2: many rows of a linear layer whose weights lie as bits (avx2_bits.h). A look-up pays once for each plane of the weight and each
// half of the input; where those are many, 16 outputs' weights become bytes once and serve all rows as in avx2_bytes.h. On few rows,
// reading the weights takes longest, and bits stay bits.
#pragma once
#include "avx2_bytes.h"
#include "avx2_folded.h"

namespace {

const int64_t EXPANDED_ROWS = 5;  // on fewer, making the bytes takes longer than the look-ups

inline bool expands(const bw_conv& conv) {
  const bool many = rows_of_layer(conv) && conv.n >= EXPANDED_ROWS && lookup_halves(conv) * conv.w_planes > 2;
  return many && 2 * 255 * largest_weight_of(conv) <= INT16_MAX;
}

// 16 outputs, as [2][units * 4][8 outputs][4 inputs] bytes. What a plane adds to each of four inputs is looked up by their four bits.
inline void expand_block(const bw_conv& conv, const uint8_t* bits, int64_t units, uint8_t* to) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i in_order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  alignas(16) int8_t added[BW_MAX_PLANES][4][16];
  for (int64_t q = 0; q < conv.w_planes; q++)
    for (int i = 0; i < 4; i++)
      for (int choice = 0; choice < 16; choice++) added[q][i][choice] = (int8_t)(choice >> i & 1 ? conv.w_mult[q] : 0);
  for (int64_t u = 0; u < units; u++)
    for (int half = 0; half < 2; half++) {  // of a byte; each has two groups of four inputs, one in each lane
      __m256i x[4];
      BW_UNROLL for (int i = 0; i < 4; i++) x[i] = _mm256_set1_epi8((char)conv.w_zero);
      for (int64_t q = 0; q < conv.w_planes; q++) {
        const __m256i both = vector_at(bits + (q * units + u) * 32);
        const __m256i choice = _mm256_shuffle_epi8(_mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, low), in_order);
        BW_UNROLL for (int i = 0; i < 4; i++) {
          const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)added[q][i]));
          x[i] = _mm256_add_epi8(x[i], _mm256_shuffle_epi8(table, choice));
        }
      }
      const __m256i a = _mm256_unpacklo_epi8(x[0], x[1]), b = _mm256_unpacklo_epi8(x[2], x[3]);
      const __m256i c = _mm256_unpackhi_epi8(x[0], x[1]), d = _mm256_unpackhi_epi8(x[2], x[3]);
      const __m256i fours[4] = {_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b), _mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d)};
      BW_UNROLL for (int i = 0; i < 4; i++) {
        uint8_t* const place = to + ((i / 2 * units + u) * 4 + 2 * half) * 32 + i % 2 * 16;
        _mm_storeu_si128((__m128i*)place, _mm256_castsi256_si128(fours[i]));
        _mm_storeu_si128((__m128i*)(place + 32), _mm256_extracti128_si256(fours[i], 1));
      }
    }
}

template <int P>
BW_INLINE void expanded_rows(const bw_conv& conv, const Places& places, int64_t flush, const uint8_t* codes, const uint8_t* w, int32_t* sums, int64_t stride) {
  const uint8_t* x[P];
  __m256i sum[P][2];
  BW_UNROLL for (int p = 0; p < P; p++) x[p] = codes + p * places.count * 4, sum[p][0] = sum[p][1] = _mm256_setzero_si256();
  add_places<P>(places, flush, x, w, places.count * 32, sum);
  const __m256i mult = _mm256_set1_epi32(conv.x_mult[0]);
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < 2; c++) _mm256_storeu_si256((__m256i*)(sums + p * stride + c * 8), _mm256_mullo_epi32(sum[p][c], mult));
}

inline int expanded_conv_bits(const bw_conv& conv, const uint32_t* x, const void* body, const bw_sink& sink, int threads) {
  const int64_t units = lookup_units(conv), length = units * UNIT, blocks = bw_ceil_div(conv.o, 16), stride = blocks * 16;
  const int64_t words = bw_ceil_div(conv.c, 32) * conv.x_planes, flush = bytes_flush(conv, largest_weight_of(conv));
  uint8_t* const codes = (uint8_t*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)(conv.n * length) + 16);
  int32_t* const sums = (int32_t*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(conv.n * stride) * 4);
  int32_t* const place = (int32_t*)bw_scratch(BW_SCRATCH_PLACES, (size_t)length);
  uint8_t* const of_row = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
  int no_memory = !codes || !sums || !place || !of_row;
  for (int64_t i = 0; i < units * 4 && !no_memory; i++) place[i] = (int32_t)(i * 4);
  for (int64_t n = 0; n < conv.n && !no_memory; n++)  // what the last word has beyond a row's length is written over by the next row
    for (int64_t word = 0; word < bw_ceil_div(conv.c, 32); word++)
      _mm256_storeu_si256((__m256i*)(codes + n * length + word * 32), word_codes(conv, x + n * words + word));
  const Places places = {place, units * 4};
  if (!no_memory) for_tasks(threads, blocks, [&](int64_t block) {
    uint8_t* const w = (uint8_t*)bw_scratch(BW_SCRATCH_PANEL, (size_t)length * 16);
    if (!w) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    expand_block(conv, (const uint8_t*)body + block * conv.w_planes * units * 32, units, w);
    int64_t n = 0;
    for (; n + TILE_PIXELS <= conv.n; n += TILE_PIXELS)
      expanded_rows<TILE_PIXELS>(conv, places, flush, codes + n * length, w, sums + n * stride + block * 16, stride);
    for (; n < conv.n; n++) expanded_rows<1>(conv, places, flush, codes + n * length, w, sums + n * stride + block * 16, stride);
  });
  if (no_memory) return bw_fail(BW_NO_MEMORY, "out of memory for the weights of a linear layer");
  const EmitRows emit = emitter_of(sink, conv.o);
  const int32_t* const corr = conv.corr + (conv.row_class[0] * conv.col_classes + conv.col_class[0]) * conv.o;
  for (int64_t first = 0; first < conv.n; first += MOST_ROWS) {
    Rows rows;
    rows.pixel = first, rows.count = conv.n - first < MOST_ROWS ? conv.n - first : MOST_ROWS;
    rows.sums = sums + first * stride, rows.stride = stride;
    for (int64_t p = 0; p < rows.count; p++) rows.corr[p] = corr;
    emit(sink, conv.o, rows, of_row);
  }
  return BW_OK;
}

}  // namespace
