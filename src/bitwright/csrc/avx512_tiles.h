// AVX-512: how a convolution is cut into register tiles, strips and tasks. A Job has `conv`, `window` and
// tile<P, C, CARRY>(walk, pixel, block), which does P pixels x 16 C channels from pixel and block on.
#pragma once
#include "avx512_direct.h"
#include "window.h"
#include "generic_emit.h"

namespace {

// A number of its own for each call, for what a thread keeps from one task to the next.
uint64_t calls = 0;
inline uint64_t next_call() { return __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED); }

// All pixels first..last-1 of C channel blocks, P pixels at a time, the rest by narrower tiles.
template <class Job, int P, int C, bool CARRY>
void strip(const Job& job, int64_t first, int64_t last, int64_t block) {
  Walk<typename Job::element> walk(job.conv, job.window, first);
  int64_t pixel = first;
  for (; pixel + P <= last; pixel += P) job.template tile<P, C, CARRY>(walk, pixel, block);
  if (P > 4)
    for (; pixel + 4 <= last; pixel += 4) job.template tile<4, C, CARRY>(walk, pixel, block);
  for (; pixel < last; pixel++) job.template tile<1, C, CARRY>(walk, pixel, block);
}

template <class Job>
struct TileChoice {
  typedef void (*Strip)(const Job&, int64_t first, int64_t last, int64_t block);
  Strip wide, pair, narrow;  // take `blocks`, two and one channel blocks; pair null: two are taken one by one
  int64_t blocks, pixels;    // of the wide tile
};

template <class Job>
inline void run_tiles(const Job& job, const TileChoice<Job>& choice, int threads, int64_t from, int64_t to) {
  const bw_conv& conv = job.conv;
  const int64_t pixels = to - from, wide = bw_ceil_div(conv.o, 16) / choice.blocks, rest = bw_ceil_div(conv.o, 16) % choice.blocks;
  const int64_t pairs = choice.pair ? rest / 2 : 0, strips = wide + rest - pairs;
  // A strip's weights stay in L1 while it walks over a chunk of pixels; a chunk's input stays in L2. With
  // threads: about eight tasks for each, in whole tiles.
  int64_t chunk = 1024;
  if (threads > 1) {
    const int64_t share = bw_ceil_div(pixels * strips, 8 * threads);
    if (share < chunk) chunk = bw_ceil_div(share, choice.pixels) * choice.pixels;
  }
  for_tasks(threads, strips * bw_ceil_div(pixels, chunk), [&](int64_t task) {
    const int64_t first = from + task / strips * chunk, at = task % strips, block = wide * choice.blocks;
    const int64_t last = first + chunk < to ? first + chunk : to;
    if (at < wide) choice.wide(job, first, last, at * choice.blocks);
    else if (at < wide + pairs) choice.pair(job, first, last, block + (at - wide) * 2);
    else choice.narrow(job, first, last, block + at - wide + pairs);
  });
}

// Groups that end inside a word cannot be written sixteen channels at a time: integers first, codes after.
template <class Run>
inline int emit_in_two_steps(const bw_conv& conv, const bw_sink& sink, int threads, const Run& run) {
  const int64_t pixels = conv.n * conv.oh * conv.ow;
  int32_t* values = (int32_t*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(pixels * conv.o) * 4);
  uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
  if (!values || !codes) return bw_fail(BW_NO_MEMORY, "out of memory for %lld results", (long long)(pixels * conv.o));
  bw_sink integers = sink;
  integers.mode = BW_INT32, integers.out = values;
  if (int error = run(integers, threads)) return error;
  for (int64_t pixel = 0; pixel < pixels; pixel++) emit_pixel(sink, conv.o, pixel, values + pixel * conv.o, codes);
  return BW_OK;
}

}  // namespace
