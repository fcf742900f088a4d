// AVX2: floats of a convolution go through a max-pooling before they reach memory. A ring holds the rows of one window, and those
// that were made with the last of them; it stays in the second cache. Of a band of rows each is computed once.
#pragma once
#include "avx2_chunks.h"
#include "checks.h"

namespace {

const int64_t POOL_BAND = 8;  // pooled rows that a thread takes at once

// The floats of the Job::rows rows from `y` on of image `n`, as far as there are, to the ring of `depth` rows that `plain` writes to.
// False: no memory.
template <class Job>
bool floats_of_rows(const Job& job, const bw_sink& plain, int64_t n, int64_t y, int64_t depth, int32_t* sums, uint8_t* codes) {
  const bw_conv& conv = job.conv;
  const int64_t blocks = bw_ceil_div(conv.o, job.width), begin = (n * conv.oh + y) * conv.ow, most = CHUNK / Job::pixels * Job::pixels;
  const EmitRows emit = emitter_of(plain, conv.o);
  for (int64_t first = 0; first < conv.ow; first += most) {
    const int64_t last = first + most < conv.ow ? first + most : conv.ow;
    for (int64_t block = 0; block < blocks; block++) chunk_sums(job, begin + first, begin + last, block, sums, blocks * job.width);
    Rows rows;
    rows.pixel = y % depth * conv.ow + first, rows.count = last - first, rows.sums = sums, rows.stride = blocks * job.width;
    border_rows(conv, begin + first, rows.count, rows.corr);
    emit(plain, conv.o, rows, codes);
  }
  return true;
}

// As much of a window as lies inside the image: `wide` pixels from number `begin` on of each of its rows, `step` floats each.
struct PoolWindow {
  const float* rows[BW_MAX_POOL];
  int64_t high, begin, wide, step;
};

// The largest of each of V * 8 channels.
template <int V>
BW_INLINE void pool_vectors(const PoolWindow& window, int64_t first, float* out) {
  __m256 most[V];
  BW_UNROLL for (int v = 0; v < V; v++) most[v] = _mm256_set1_ps(-INFINITY);
  const int64_t begin = window.begin * window.step + first, wide = window.wide * window.step;
  for (int64_t y = 0; y < window.high; y++)
    for (const float *at = window.rows[y] + begin, *const end = at + wide; at < end; at += window.step)
      BW_UNROLL for (int v = 0; v < V; v++) most[v] = _mm256_max_ps(most[v], _mm256_loadu_ps(at + v * 8));
  BW_UNROLL for (int v = 0; v < V; v++) _mm256_storeu_ps(out + first + v * 8, most[v]);
}

// A row of the pooled image, from the rows top..end - 1 of the ring of `depth`, to out [width][o].
inline void pool_row(const bw_conv& conv, const bw_sink& sink, const float* ring, int64_t depth, int64_t top, int64_t end, int64_t width,
                     float* out) {
  PoolWindow window;
  window.high = end - top, window.step = conv.o;
  for (int64_t y = top; y < end; y++) window.rows[y - top] = ring + y % depth * conv.ow * conv.o;
  for (int64_t x = 0; x < width; x++, out += conv.o) {
    const int64_t left = x * sink.pool_stride - sink.pool_pad, stop = left + sink.pool_kernel < conv.ow ? left + sink.pool_kernel : conv.ow;
    window.begin = left < 0 ? 0 : left, window.wide = stop - window.begin;
    int64_t c = 0;
    for (; c + 32 <= conv.o; c += 32) pool_vectors<4>(window, c, out);
    for (; c + 8 <= conv.o; c += 8) pool_vectors<1>(window, c, out);
    for (; c < conv.o; c++) {
      float most = -INFINITY;
      for (int64_t y = 0; y < window.high; y++)
        for (int64_t i = 0; i < window.wide; i++) {
          const float next = window.rows[y][(window.begin + i) * conv.o + c];
          most = most > next ? most : next;
        }
      out[c] = most;
    }
  }
}

// One bit beside each of the floats y of pixels that follow each other.
inline void bits_beside(const bw_sink& sink, int64_t channels, int64_t pixel, int64_t count, const float* y) {
  const int64_t words = bw_words(channels, 1);
  by_eights(channels, [=, &sink](const auto& to) {
    const auto at = to;  // as in by_pixels
    const __m256 cut = sink.cuts ? at.load(sink.cuts) : _mm256_setzero_ps();
    const __m256i flips = at.flips(sink.flip);
    const bool as_bytes = sink.extra_bytes;
    uint8_t* bytes = (uint8_t*)sink.extra + pixel * channels;
    uint32_t* bits = (uint32_t*)sink.extra + pixel * words;
    const float* from = y;
    for (int64_t p = count; p > 0; p--, from += channels, bytes += channels, bits += words) {
      const __m256i reached = _mm256_xor_si256(_mm256_castps_si256(_mm256_cmp_ps(at.load(from), cut, _CMP_GE_OQ)), flips);
      if (as_bytes) at.store_bytes(bytes, _mm256_srli_epi32(reached, 31));
      else store_bits(bits, 1, channels, at, reached);
    }
  });
}

template <class Job>
int conv_and_pool(const Job& job, const bw_sink& sink, int threads) {
  const bw_conv& conv = job.conv;
  const int64_t height = pooled_size(conv.oh, sink), width = pooled_size(conv.ow, sink), kernel = sink.pool_kernel;
  const int64_t band = threads > 1 ? POOL_BAND : height, bands = bw_ceil_div(height, band), depth = kernel + Job::rows - 1;
  int no_memory = 0;
  for_tasks(threads, conv.n * bands, [&](int64_t task) {
    float* const ring = (float*)bw_scratch(BW_SCRATCH_POOL, (size_t)(depth * conv.ow * conv.o) * 4);
    int32_t* const sums = (int32_t*)bw_scratch(BW_SCRATCH_PATCH, job.sums_size());
    uint8_t* const codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
    if (!ring || !sums || !codes) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    bw_sink plain = sink;
    plain.out = ring, plain.extra = nullptr, plain.pool_kernel = 0;
    const int64_t n = task / bands, first = task % bands * band, last = first + band < height ? first + band : height;
    int64_t next = 0;
    for (int64_t y = first; y < last; y++) {
      const int64_t from = y * sink.pool_stride - sink.pool_pad, top = from < 0 ? 0 : from, end = from + kernel < conv.oh ? from + kernel : conv.oh;
      for (next = next < top ? top : next; next < end; next += Job::rows)
        if (!floats_of_rows(job, plain, n, next, depth, sums, codes)) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
      const int64_t pixel = (n * height + y) * width;
      float* const out = (float*)sink.out + pixel * conv.o;
      pool_row(conv, sink, ring, depth, top, end, width, out);
      if (sink.extra && !sink.grid) bits_beside(sink, conv.o, pixel, width, out);
      for (int64_t x = 0; sink.extra && sink.grid && x < width; x++) emit_beside(sink, conv.o, pixel + x, out + x * conv.o, codes);
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for floats that are pooled") : BW_OK;
}

}  // namespace
