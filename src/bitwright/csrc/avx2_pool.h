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
    Walk<typename Job::element> walk(conv, job.window, begin + first);
    Rows rows;
    rows.pixel = y % depth * conv.ow + first, rows.count = last - first, rows.sums = sums, rows.stride = blocks * job.width;
    for (int64_t p = 0; p < rows.count; p++, walk.next()) rows.corr[p] = walk.corr();
    emit(plain, conv.o, rows, codes);
  }
  return true;
}

// A row of the pooled image, from the rows top..end - 1 of the ring of `depth`, to out [width][o].
inline void pool_row(const bw_conv& conv, const bw_sink& sink, const float* ring, int64_t depth, int64_t top, int64_t end, int64_t width, float* out) {
  const int64_t row = conv.ow * conv.o;
  for (int64_t x = 0; x < width; x++, out += conv.o) {
    const int64_t left = x * sink.pool_stride - sink.pool_pad, begin = left < 0 ? 0 : left;
    const int64_t stop = left + sink.pool_kernel < conv.ow ? left + sink.pool_kernel : conv.ow;
    by_eights(conv.o, [&](const auto& at) {
      __m256 most = _mm256_set1_ps(-INFINITY);
      for (int64_t y = top; y < end; y++)
        for (int64_t i = begin; i < stop; i++) most = _mm256_max_ps(most, at.load(ring + y % depth * row + i * conv.o));
      at.store(out, _mm256_castps_si256(most));
    });
  }
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
      float* const out = (float*)sink.out + (n * height + y) * width * conv.o;
      pool_row(conv, sink, ring, depth, top, end, width, out);
      for (int64_t x = 0; sink.extra && x < width; x++) emit_beside(sink, conv.o, (n * height + y) * width + x, out + x * conv.o, codes);
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for floats that are pooled") : BW_OK;
}

}  // namespace
