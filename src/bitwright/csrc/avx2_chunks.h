// AVX2: how a convolution is cut into chunks of pixels and blocks of outputs. The sums of a chunk, [pixels][outputs], stay in the
// first caches until all blocks of outputs are there; then they become what the caller asked for (avx2_emit.h, avx2_narrow.h).
#pragma once
#include "avx2_narrow.h"
#include "window.h"

namespace {

const int64_t CHUNK = 32;  // pixels
const int TILE_PIXELS = 4;        // of most register tiles, with two vectors of outputs each

// `job` has width (outputs of a block), pixels (of a register tile) and tile<P>(walk, pixel, block, sums, stride): the sums of P pixels from `pixel` on, at
// sums[p * stride], with the outputs of one block. Pixels are counted from `first_pixel` on in the tensors of the sink.
template <class Job, class Sum>
void chunk_sums(const Job& job, int64_t first, int64_t last, int64_t block, Sum* sums, int64_t stride) {
  Walk<typename Job::element> walk(job.conv, job.window, first);
  int64_t pixel = first;
  for (; pixel + Job::pixels <= last; pixel += Job::pixels)
    job.template tile<Job::pixels>(walk, pixel, block, sums + (pixel - first) * stride + block * job.width, stride);
  for (; pixel < last; pixel++) job.template tile<1>(walk, pixel, block, sums + (pixel - first) * stride + block * job.width, stride);
}

template <class Sum = int32_t, class Job>
int conv_in_chunks(const Job& job, const bw_sink& sink, int64_t first_pixel, int threads) {
  const bw_conv& conv = job.conv;
  const int64_t pixels = conv.n * conv.oh * conv.ow, blocks = bw_ceil_div(conv.o, job.width), stride = blocks * job.width;
  const int64_t chunk = items_per_task(threads, pixels, Job::pixels, CHUNK / Job::pixels * Job::pixels), chunks = bw_ceil_div(pixels, chunk);
  const bool many = chunks >= 2 * threads;  // else the blocks of outputs are the tasks
  const Emission emit(sink, conv.o);
  const size_t work = emit.room((Sum*)nullptr, chunk * stride);
  int no_memory = 0;
  for_tasks(many ? threads : 1, chunks, [&](int64_t task) {
    Sum* sums = (Sum*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(chunk * stride) * sizeof(Sum));
    void* room = work ? bw_scratch(BW_SCRATCH_PANEL, work) : nullptr;
    uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
    if (!sums || (work && !room) || !codes) {
      __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
      return;
    }
    const int64_t first = task * chunk, last = first + chunk < pixels ? first + chunk : pixels;
    for_tasks(many ? 1 : threads, blocks, [&](int64_t block) { chunk_sums(job, first, last, block, sums, stride); });
    RowsOf<Sum> rows;
    rows.pixel = first_pixel + first, rows.count = last - first, rows.sums = sums, rows.stride = stride;
    border_rows(conv, first, rows.count, rows.corr);
    emit(rows, room, codes);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for the sums of a convolution") : BW_OK;
}

}  // namespace
