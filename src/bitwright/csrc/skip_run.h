// Convolutions with a base and a rest, strip by strip of output pixels, so that what a strip reads stays in the caches:
//   copy    the inputs of the strip, chunk by chunk, with zeros around the image
//   base    of all outputs by register tiles; a comparison of each tile leaves sixteen bits a pixel
//   list    of the pixels that are on, output by output
//   rest    a dot product for each entry, several pixels of one output at a time: its weights are read once for them
//   finish  what becomes of the sums
// A kernel gives the types and the steps that depend on them (skip_floats.h, skip_codes.h). Whatever is on, a sum is added up in one
// order: first the base, run by run, then the rest in passes over chunks, each the sum of one dot product.
#pragma once
#include "parallel.h"
#include "skip.h"
#include "skip_lanes.h"

namespace {

const int64_t SKIP_PIXELS = 128;        // of a strip, about
const int64_t SKIP_NEAR = 96 * 1024;    // bytes that a pass over the list may read of the inputs
const int64_t SKIP_PASS = 4096;         // bytes of weights of an output in a pass

struct SkipPlan {
  int64_t rows, cols, in_rows, in_cols;   // of a strip: output pixels, and the inputs under them
  int64_t down, across;                   // strips of an image
  int64_t plane;                          // elements of a chunk of a strip
  int64_t pass;                           // chunks of a pass
};

inline SkipPlan skip_plan(const SkipShape& shape, int64_t cell, int threads) {
  const bw_conv& conv = shape.conv;
  SkipPlan plan = {};
  const int64_t weights = shape.runs * shape.run * cell;
  plan.pass = SKIP_PASS / weights < 1 ? 1 : SKIP_PASS / weights;
  if (plan.pass > shape.rest_chunks()) plan.pass = shape.rest_chunks();
  plan.cols = conv.ow < SKIP_PIXELS ? conv.ow : bw_ceil_div(conv.ow, bw_ceil_div(conv.ow, SKIP_PIXELS));
  plan.rows = bw_ceil_div(SKIP_PIXELS, plan.cols) < conv.oh ? bw_ceil_div(SKIP_PIXELS, plan.cols) : conv.oh;
  for (;; plan.rows = bw_ceil_div(plan.rows, 2)) {
    plan.down = bw_ceil_div(conv.oh, plan.rows), plan.rows = bw_ceil_div(conv.oh, plan.down);
    plan.in_rows = (plan.rows - 1) * conv.stride_h + (conv.kh - 1) * conv.dil_h + 1;
    plan.in_cols = (plan.cols - 1) * conv.stride_w + (conv.kw - 1) * conv.dil_w + 1;
    plan.plane = plan.in_rows * plan.in_cols * shape.width;
    const bool few = threads > 1 && conv.n * plan.down < 4 * threads;
    if (plan.rows == 1 || (!few && plan.plane * plan.pass * cell <= SKIP_NEAR)) break;
  }
  plan.across = bw_ceil_div(conv.ow, plan.cols);
  return plan;
}

// What a thread works with on one strip.
template <class Kernel>
struct Strip {
  typedef typename Kernel::Cell Cell;
  typedef typename Kernel::Sum Sum;
  const SkipShape& shape;
  const SkipPlan& plan;
  int64_t n, oy, ox, rows, cols, pixels;
  Cell* cells;       // [chunks][in_rows][in_cols][width]
  Sum* sums;         // [pixels][panels * 16]
  uint16_t* on;      // [panels][pixels, a multiple of 32]: bit by output
  int32_t* place;    // [pixels] where the window of a pixel begins in a chunk
  int64_t* number;   // [pixels] in the whole output
  int64_t* corr;     // [pixels] where the constants of a pixel begin in a table like conv.corr
  int64_t* runs;     // where the runs of a pass begin, from the window
  uint16_t* list;    // pixels that are on, output by output
  int32_t* begin;    // [panels * 16 + 1] into the list
  void* row;         // [o] integers and twice [o] bytes, for the kernel

  Strip(const SkipShape& shape_, const SkipPlan& plan_) : shape(shape_), plan(plan_) {}
  int64_t wide() const { return shape.panels * 16; }
  int64_t lined() const { return bw_ceil_div(plan.rows * plan.cols, 32) * 32; }
  int64_t pixel(int64_t i) const { return number[i]; }

  bool memory() {
    const int64_t most = plan.rows * plan.cols, chunks = shape.chunks();
    cells = (Cell*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)(chunks * plan.plane) * sizeof(Cell) + 64);
    sums = (Sum*)bw_scratch(BW_SCRATCH_SUMS, (size_t)(most * wide()) * sizeof(Sum));
    on = (uint16_t*)bw_scratch(BW_SCRATCH_CUTS, (size_t)(shape.panels * lined()) * 2);
    corr = (int64_t*)bw_scratch(BW_SCRATCH_ROWS, (size_t)most * 20);
    number = corr + most, place = (int32_t*)(number + most);
    const int64_t pieces = (shape.rest_chunks() + shape.parts) * shape.runs * bw_ceil_div(shape.run, 16);
    runs = (int64_t*)bw_scratch(BW_SCRATCH_PATCH, (size_t)pieces * 8);
    list = (uint16_t*)bw_scratch(BW_SCRATCH_PLACES, (size_t)(lined() * wide()) * 2 + 64);
    begin = (int32_t*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(wide() + 1) * 4);
    row = bw_scratch(BW_SCRATCH_ROW, (size_t)shape.conv.o * 6);
    return row && cells && sums && on && corr && runs && list && begin;
  }

  void begin_at(int64_t task) {
    const bw_conv& conv = shape.conv;
    n = task / (plan.down * plan.across);
    oy = task / plan.across % plan.down * plan.rows, ox = task % plan.across * plan.cols;
    rows = conv.oh - oy < plan.rows ? conv.oh - oy : plan.rows;
    cols = conv.ow - ox < plan.cols ? conv.ow - ox : plan.cols;
    pixels = rows * cols;
    for (int64_t y = 0, i = 0; y < rows; y++)
      for (int64_t x = 0; x < cols; x++, i++) {
        number[i] = (n * conv.oh + oy + y) * conv.ow + ox + x;
        place[i] = (int32_t)((y * conv.stride_h * plan.in_cols + x * conv.stride_w) * shape.width);
        if (conv.corr) corr[i] = (conv.row_class[oy + y] * conv.col_classes + conv.col_class[ox + x]) * conv.o;
      }
  }

  void copy(const Kernel& kernel, const typename Kernel::Input* x) {
    const bw_conv& conv = shape.conv;
    const int64_t top = oy * conv.stride_h - conv.pad_h, left = ox * conv.stride_w - conv.pad_w, row = plan.in_cols * shape.width;
    int64_t before = -left, after = left + plan.in_cols - conv.w;  // columns of zeros
    before = before < 0 ? 0 : before > plan.in_cols ? plan.in_cols : before;
    after = after < 0 ? 0 : after > plan.in_cols - before ? plan.in_cols - before : after;
    for (int64_t chunk = 0; chunk < shape.chunks(); chunk++) {
      const int64_t group = chunk / (shape.shares * shape.parts), share = chunk / shape.parts % shape.shares;
      const int64_t count = shape.chunk_count(chunk);
      if (!kernel.reads(share)) continue;
      const int64_t channel = group * shape.fan + shape.chunk_channel(chunk);
      for (int64_t r = 0; r < plan.in_rows; r++) {
        Cell* to = cells + chunk * plan.plane + r * row;
        if (top + r < 0 || top + r >= conv.h) {
          memset(to, 0, (size_t)row * sizeof(Cell));
          continue;
        }
        memset(to, 0, (size_t)(before * shape.width) * sizeof(Cell));
        const typename Kernel::Input* from = x + ((n * conv.h + top + r) * conv.w + left + before) * conv.c + channel;
        to += before * shape.width;
        const int64_t inside = plan.in_cols - before - after;
        Kernel::copy(shape, share, from, inside, count, to);
        to += inside * shape.width;
        memset(to, 0, (size_t)(after * shape.width) * sizeof(Cell));
      }
    }
  }

  // The runs of chunks first..last-1 in `runs`, cut into pieces; chunk(i) gives their numbers.
  template <class Chunk>
  int64_t set_runs(int64_t first, int64_t last, int64_t piece, const Chunk& chunk) {
    const bw_conv& conv = shape.conv;
    int64_t count = 0;
    for (int64_t i = first; i < last; i++)
      for (int64_t r = 0; r < shape.runs; r++)
        for (int64_t j = 0; j < shape.run; j += piece)
          runs[count++] = chunk(i) * plan.plane + r / shape.runs_x * conv.dil_h * plan.in_cols * shape.width +
                          r % shape.runs_x * conv.dil_w * shape.width + j;
    return count;
  }

  int64_t set_base_runs(const SkipOutputs& o) {
    return set_runs(0, shape.parts, shape.run, [&](int64_t i) { return shape.base_chunk(o, i); });
  }

  void make_list() {
    int32_t count = 0;
    for (int64_t panel = 0; panel < shape.panels; panel++)
      for (int lane = 0; lane < 16; lane++) {
        begin[panel * 16 + lane] = count;
        const uint16_t* bits = on + panel * lined();
#if defined(__AVX512F__)
        const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (int64_t i = 0; i < pixels; i += 32) {
          const uint32_t mine = _mm512_test_epi16_mask(_mm512_loadu_si512(bits + i), _mm512_set1_epi16((int16_t)(1 << lane)));
          BW_UNROLL for (int half = 0; half < 2; half++) {
            const __mmask16 some = (__mmask16)(mine >> 16 * half);
            const __m512i found = _mm512_maskz_compress_epi32(some, _mm512_add_epi32(numbers, _mm512_set1_epi32((int)i + 16 * half)));
            _mm256_storeu_si256((__m256i*)(list + count), _mm512_cvtepi32_epi16(found));
            count += __builtin_popcount(some);
          }
        }
#elif defined(BW_LANES_AVX2)
        const __m256i bit = _mm256_set1_epi16((int16_t)(1 << lane));
        for (int64_t i = 0; i < pixels; i += 16) {
          const __m256i off = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)(bits + i)), bit), _mm256_setzero_si256());
          const int mine = ~_mm_movemask_epi8(_mm_packs_epi16(_mm256_castsi256_si128(off), _mm256_extracti128_si256(off, 1)));
          BW_UNROLL for (int half = 0; half < 2; half++) {
            const int some = mine >> 8 * half & 255;
            const __m256i found = _mm256_and_si256(eight_numbers(LANE_LISTS.of[some]), _mm256_set1_epi32(15));
            const __m128i eight = _mm_packus_epi32(_mm256_castsi256_si128(found), _mm256_extracti128_si256(found, 1));
            _mm_storeu_si128((__m128i*)(list + count), _mm_add_epi16(eight, _mm_set1_epi16((int16_t)(i + 8 * half))));
            count += __builtin_popcount(some);
          }
        }
#else
        for (int64_t i = 0; i < pixels; i++) list[count] = (uint16_t)i, count += bits[i] >> lane & 1;
#endif
      }
    begin[shape.panels * 16] = count;
  }

  // P listed pixels of the output at `column`: the dot products of its weights w with their runs. Not inlined, so that addresses and
  // sums stay in registers; so is base_tile.
  template <int P>
  __attribute__((noinline)) void few(const Kernel& kernel, const uint16_t* listed, const void* w, int64_t column, int64_t run_count) {
    const Cell* x[P];
    Sum* to[P];
    BW_UNROLL for (int p = 0; p < P; p++) x[p] = cells + place[listed[p]], to[p] = sums + listed[p] * wide() + column;
    kernel.template dots<P>(x, runs, run_count, w, to);
  }
  template <int P>
  void fewer(const Kernel& kernel, int64_t count, const uint16_t* listed, const void* w, int64_t column, int64_t run_count) {
    if (count == P) return few<P>(kernel, listed, w, column, run_count);
    if constexpr (P > 1) fewer<P - 1>(kernel, count, listed, w, column, run_count);
  }

  void rest(const Kernel& kernel) {
    for (int64_t i = 0; i < shape.output_groups(); i++) {
      const SkipOutputs o = shape.outputs(i);
      for (int64_t first = 0; first < shape.rest_chunks(); first += plan.pass) {
        const int64_t last = first + plan.pass < shape.rest_chunks() ? first + plan.pass : shape.rest_chunks();
        const int64_t count = set_runs(first, last, kernel.piece(), [&](int64_t c) { return shape.rest_chunk(o, c); });
        for (int64_t j = 0; j < o.count; j++) {
          const int64_t column = o.panel * 16 + j;
          const void* w = kernel.rest_weights(o.first + j, first);
          const uint16_t* at = list + begin[column];
          int64_t left = begin[column + 1] - begin[column];
          for (; left >= SKIP_MANY; left -= SKIP_MANY, at += SKIP_MANY) few<SKIP_MANY>(kernel, at, w, column, count);
          fewer<SKIP_MANY - 1>(kernel, left, at, w, column, count);
        }
      }
    }
  }
};

template <class Kernel>
int skip_run(const Kernel& kernel, const typename Kernel::Input* x, int threads) {
  const SkipShape& shape = kernel.shape;
  const SkipPlan plan = skip_plan(shape, sizeof(typename Kernel::Cell), threads);
  int no_memory = 0;
  for_tasks(threads, shape.conv.n * plan.down * plan.across, [&](int64_t task) {
    Strip<Kernel> strip(shape, plan);
    if (!strip.memory()) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    strip.begin_at(task);
    strip.copy(kernel, x);
    memset(strip.on, 0, (size_t)(shape.panels * strip.lined()) * 2);
    kernel.base(strip);
    strip.make_list();
    strip.rest(kernel);
    kernel.finish(strip);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a strip of pixels") : BW_OK;
}

}  // namespace
