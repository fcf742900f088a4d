// AVX-512: floats of a convolution go through a max-pooling before they reach memory. A ring holds the rows of one window,
// [kernel][OW][O], which stays in L2; each row is computed once. Blocks of 4 x 16 channels stay in registers over the taps of
// a window: one load and one maximum a tap.
#pragma once
#include "avx512_tiles.h"
#include "generic_pack.h"

namespace {

// Max-pooling of codes in words, four words of each plane at a time: the planes of the largest code so far stay in registers.
template <int PLANES>
BW_INLINE void pool_words(const bw_pool& pool, const uint32_t* x, uint32_t* out, int64_t row) {
  const int64_t n = row / pool.oh, oy = row % pool.oh, words = pool.channels, pixel = PLANES * words;
  const int64_t top = oy * pool.stride_h - pool.pad_h;
  out += row * pool.ow * pixel;
  for (int64_t ox = 0; ox < pool.ow; ox++, out += pixel) {
    const int64_t left = ox * pool.stride_w - pool.pad_w;
    for (int64_t word = 0; word < words; word += 4) {
      __m128i best[PLANES];
      BW_UNROLL for (int p = 0; p < PLANES; p++) best[p] = _mm_setzero_si128();
      for (int64_t iy = top; iy < top + pool.kh * pool.dil_h; iy += pool.dil_h) {
        if (iy < 0 || iy >= pool.h) continue;
        for (int64_t ix = left; ix < left + pool.kw * pool.dil_w; ix += pool.dil_w) {
          if (ix < 0 || ix >= pool.w) continue;
          const uint32_t* from = x + ((n * pool.h + iy) * pool.w + ix) * pixel + word;
          __m128i same = _mm_set1_epi32(-1), more = _mm_setzero_si128(), code[PLANES];
          BW_UNROLL for (int p = PLANES - 1; p >= 0; p--) {  // the highest plane that differs decides
            code[p] = _mm_loadu_si128((const __m128i*)(from + p * words));
            more = _mm_or_si128(more, _mm_and_si128(same, _mm_andnot_si128(best[p], code[p])));
            same = _mm_andnot_si128(_mm_xor_si128(code[p], best[p]), same);
          }
          BW_UNROLL for (int p = 0; p < PLANES; p++)
            best[p] = _mm_or_si128(_mm_and_si128(code[p], more), _mm_andnot_si128(more, best[p]));
        }
      }
      BW_UNROLL for (int p = 0; p < PLANES; p++) _mm_storeu_si128((__m128i*)(out + p * words + word), best[p]);
    }
  }
}

inline int lanes_maxpool_bits(const bw_pool& pool, const uint32_t* x, uint32_t* out, int threads) {
  if (pool.channels % 4 || pool.planes > 2) return generic_maxpool_bits(pool, x, out, threads);
  for_tasks(threads, pool.n * pool.oh, [&](int64_t row) {
    pool.planes == 1 ? pool_words<1>(pool, x, out, row) : pool_words<2>(pool, x, out, row);
  });
  return BW_OK;
}

struct PoolRow {             // one row of pooled pixels of one image
  const float* const* rows;  // of the convolution, from y = first on
  int64_t count, width;      // rows of the window inside the image; pixels in a row
  int64_t pixel, pixels;     // the first pooled pixel over all images; how many
};

template <Beside BESIDE, Rounding ROUNDING>
void pool_row(const bw_sink& sink, int64_t channels, const PoolRow& row) {
  const bw_grid none = {};
  const Codes16<ROUNDING> codes(BESIDE == CODES ? *sink.grid : none);
  const int64_t kernel = sink.pool_kernel, stride = sink.pool_stride, pad = sink.pool_pad, words = bw_words(channels, 1);
  for (int64_t block = 0; block * 16 < channels; block += MOST_BLOCKS) {
    const int blocks = (int)(channels - block * 16 < MOST_BLOCKS * 16 ? bw_ceil_div(channels - block * 16, 16) : MOST_BLOCKS);
    __m512 cut[MOST_BLOCKS], most[MOST_BLOCKS];
    __mmask16 lanes[MOST_BLOCKS], flips[MOST_BLOCKS];
    for (int c = 0; c < MOST_BLOCKS; c++) {
      lanes[c] = c < blocks ? lanes_of(channels, block + c) : 0;
      flips[c] = BESIDE == CUT_WORDS || BESIDE == CUT_BYTES ? flips_of(sink, block + c, lanes[c]) : 0;
      cut[c] = sink.cuts && BESIDE != CODES ? _mm512_maskz_loadu_ps(lanes[c], sink.cuts + (block + c) * 16) : _mm512_setzero_ps();
    }
    for (int64_t ox = 0; ox < row.pixels; ox++) {
      const int64_t left = ox * stride - pad, first = left < 0 ? 0 : left;
      const int64_t last = left + kernel < row.width ? left + kernel : row.width;
      BW_UNROLL for (int c = 0; c < MOST_BLOCKS; c++) most[c] = _mm512_set1_ps(-INFINITY);
      for (int64_t y = 0; y < row.count; y++)
        for (int64_t x = first; x < last; x++) {
          const float* from = row.rows[y] + x * channels + block * 16;
          BW_UNROLL for (int c = 0; c < MOST_BLOCKS; c++) {
            most[c] = _mm512_max_ps(most[c], _mm512_maskz_loadu_ps(lanes[c], from + c * 16));  // not larger: the second
          }
        }
      const int64_t at = (row.pixel + ox) * channels + block * 16;
      uint64_t bits = 0;
      for (int c = 0; c < blocks; c++) {
        store_16((float*)sink.out + at + c * 16, lanes[c], _mm512_castps_si512(most[c]));
        if (BESIDE == CODES) store_bytes((uint8_t*)sink.extra + at + c * 16, lanes[c], codes(most[c]));
        if (BESIDE != CUT_WORDS && BESIDE != CUT_BYTES) continue;
        const __mmask16 reached = _mm512_mask_cmp_ps_mask(lanes[c], most[c], cut[c], _CMP_GE_OQ) ^ flips[c];
        if (BESIDE == CUT_WORDS) bits |= (uint64_t)reached << 16 * c;
        else store_bytes((uint8_t*)sink.extra + at + c * 16, lanes[c], _mm512_maskz_set1_epi32(reached, 1));
      }
      if (BESIDE == CUT_WORDS)
        store_halves((uint32_t*)sink.extra + (row.pixel + ox) * words, channels, block, blocks, bits);
    }
  }
}

// What the ring of a thread holds: the last rows of `from`..done-1 of an image, of one call. Tasks that follow each other on a thread go on
// with it, so that no row is computed twice.
struct Ring {
  uint64_t call;
  int64_t image, from, done;
};
thread_local Ring ring_of_thread = {};

// rows(sink, first, last): the convolution of pixels first..last-1 into sink.out, where pixel 0 would lie.
template <class Rows>
int pooled(const bw_conv& conv, const bw_sink& sink, int threads, const Rows& rows) {
  const int64_t kernel = sink.pool_kernel, stride = sink.pool_stride, pad = sink.pool_pad, size = conv.ow * conv.o;
  const int64_t height = bw_windows(conv.oh, kernel, stride, pad, 1), width = bw_windows(conv.ow, kernel, stride, pad, 1);
  bw_sink plain = sink;
  plain.extra = nullptr, plain.pool_kernel = 0;
  void (*pool)(const bw_sink&, int64_t, const PoolRow&) = nullptr;
  of_floats(sink, [&](auto kind) { pool = pool_row<decltype(kind)::BESIDE, decltype(kind)::ROUNDING>; });
  const int64_t share = items_per_task(threads, height, 1, height), tasks = bw_ceil_div(height, share);
  const uint64_t call = next_call();
  int no_memory = 0;
  for_tasks(threads, conv.n * tasks, [&](int64_t task) {
    const int64_t n = task / tasks, from = task % tasks * share, to = from + share < height ? from + share : height;
    float* ring = (float*)bw_scratch(BW_SCRATCH_RING, (size_t)(kernel * size) * sizeof(float));
    if (!ring) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    Ring& held = ring_of_thread;
    if (held.call != call || held.image != n) held = {call, n, 0, 0};
    bw_sink line = plain;
    const float* window[BW_MAX_POOL];
    for (int64_t row = from; row < to; row++) {
      const int64_t top = row * stride - pad, first = top < 0 ? 0 : top;
      const int64_t last = top + kernel < conv.oh ? top + kernel : conv.oh;
      if (held.from > first || held.done < first || held.done > top + kernel) held.from = held.done = first;
      for (; held.done < last; held.done++) {
        const int64_t pixel = (n * conv.oh + held.done) * conv.ow;
        line.out = (void*)((uintptr_t)(ring + held.done % kernel * size) - (uintptr_t)(pixel * conv.o) * sizeof(float));
        rows(line, pixel, pixel + conv.ow);
      }
      for (int64_t y = first; y < last; y++) window[y - first] = ring + y % kernel * size;
      pool(sink, conv.o, {window, last - first, conv.ow, (n * height + row) * width, width});
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for rows that are pooled") : BW_OK;
}

}  // namespace
