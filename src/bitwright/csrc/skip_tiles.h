// The base by register tiles: P pixels x 16 C outputs. Lanes are outputs; one input of a pixel, or four codes, is broadcast.
//
// A kernel gives the vectors (Vector, STEP elements of the inputs in each product) and what is done with them.
#pragma once
#include "skip_run.h"

namespace {

template <int P, int C, class Kernel>
__attribute__((noinline)) void base_tile(const Kernel& kernel, Strip<Kernel>& strip, const SkipOutputs& o, int64_t block, int64_t pixel,
                                         int64_t run_count) {
  typedef typename Kernel::Vector Vector;
  const SkipShape& shape = strip.shape;
  const int64_t panel_size = kernel.panel_size(), run = shape.run;
  const auto* w = kernel.panels() + (o.panel + block) * panel_size;
  const typename Kernel::Cell* x[P];
  BW_UNROLL for (int p = 0; p < P; p++) x[p] = strip.cells + strip.place[pixel + p];
  Vector sum[P][C];
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = kernel.zero();
  for (int64_t part = 0; part < kernel.weight_parts(); part++) {
    if (part)
      BW_UNROLL for (int p = 0; p < P; p++)
        BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = kernel.doubled(sum[p][c]);
    for (int64_t r = 0; r < run_count; r++)
      for (int64_t j = strip.runs[r], end = j + run; j < end; j += Kernel::STEP, w += 16 * Kernel::STEP) {
        Vector wv[C];
        BW_UNROLL for (int c = 0; c < C; c++) wv[c] = kernel.weights_at(w + c * panel_size);
        BW_UNROLL for (int p = 0; p < P; p++) {
          const Vector xv = kernel.spread(x[p] + j);
          BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = kernel.product(sum[p][c], xv, wv[c]);
        }
      }
  }
  BW_UNROLL for (int c = 0; c < C; c++) {
    const int64_t before = (block + c) * 16, panel = o.panel + block + c;
    const uint16_t lanes = first_lanes(o.count - before);
    const Vector threshold = kernel.threshold(o.first + before, lanes);
    BW_UNROLL for (int p = 0; p < P; p++) {
      const Vector base = kernel.begun(strip, sum[p][c], pixel + p, o.first + before, lanes);
      kernel.keep(strip.sums + (pixel + p) * strip.wide() + panel * 16, base);
      strip.on[panel * strip.lined() + pixel + p] = kernel.exceeds(base, threshold) & lanes;
    }
  }
}

template <int P, int C, class Kernel>
void base_tiles(const Kernel& kernel, Strip<Kernel>& strip, const SkipOutputs& o, int64_t block, int64_t run_count) {
  int64_t pixel = 0;
  for (; pixel + P <= strip.pixels; pixel += P) base_tile<P, C>(kernel, strip, o, block, pixel, run_count);
  if (P > 4)
    for (; pixel + 4 <= strip.pixels; pixel += 4) base_tile<4, C>(kernel, strip, o, block, pixel, run_count);
  for (; pixel < strip.pixels; pixel++) base_tile<1, C>(kernel, strip, o, block, pixel, run_count);
}

template <class Kernel>
void base_by_tiles(const Kernel& kernel, Strip<Kernel>& strip) {
  for (int64_t i = 0; i < strip.shape.output_groups(); i++) {
    const SkipOutputs o = strip.shape.outputs(i);
    const int64_t blocks = bw_ceil_div(o.count, 16), count = strip.set_base_runs(o);
    int64_t block = 0;
#if defined(__AVX512F__)
    for (; block + 4 <= blocks; block += 4) base_tiles<Kernel::WIDE, 4>(kernel, strip, o, block, count);
    for (; block + 2 <= blocks; block += 2) base_tiles<8, 2>(kernel, strip, o, block, count);
    for (; block < blocks; block++) base_tiles<8, 1>(kernel, strip, o, block, count);
#else
    for (; block < blocks; block++) base_tiles<SKIP_MANY, 1>(kernel, strip, o, block, count);
#endif
  }
}

}  // namespace
