// What becomes of the whole sums of a gated layer, and the gate over two of them: full where base > threshold[o], else base. Sums over
// codes of high bits are the base over 2^low_bits.
#pragma once
#include "generic_emit.h"
#include "parallel.h"

namespace {

// y of `count` outputs from number `first`: fl(fl(sum scale) + add), then the norm of the gate
inline void normed(const bw_sink& sink, const bw_skip& skip, int64_t first, int64_t count, const int32_t* sums, const uint8_t* on, float* y) {
  const float *scale = sink.scale + first, *add = sink.add + first, *then = skip.scale + first, *then_add = skip.add + first;
  for (int64_t i = 0; i < count; i++) y[i] = (float)sums[first + i] * scale[i] + add[i];
  if (skip.off_scale) {
    const float *off = skip.off_scale + first, *off_add = skip.off_add + first;
    for (int64_t i = 0; i < count; i++) y[i] = y[i] * (on[first + i] ? then[i] : off[i]) + (on[first + i] ? then_add[i] : off_add[i]);
  } else {
    for (int64_t i = 0; i < count; i++) y[i] = y[i] * then[i] + then_add[i];
  }
}

// `on`, a byte an output, is read only where the gate has a second norm.
inline void emit_gated(const bw_sink& sink, const bw_skip& skip, int64_t o, int64_t pixel, const int32_t* sums, const uint8_t* on,
                       uint8_t* codes) {
  const bool grid = sink.mode == BW_BYTES && sink.grid;
  if (!skip.scale || !(sink.mode == BW_FLOAT32 || grid)) return emit_pixel(sink, o, pixel, sums, codes);
  if (grid) {
    for (int64_t i = 0; i < o; i += 64) {
      const int64_t count = o - i < 64 ? o - i : 64;
      float y[64];
      normed(sink, skip, i, count, sums, on, y);
      grid_codes(*sink.grid, y, count, (uint8_t*)sink.out + pixel * o + i);
    }
    return;
  }
  float* y = (float*)sink.out + pixel * o;
  normed(sink, skip, 0, o, sums, on, y);
  if (sink.residual)
    for (int64_t i = 0; i < o; i++) y[i] += sink.residual[pixel * o + i];
  if (sink.relu)
    for (int64_t i = 0; i < o; i++) y[i] = y[i] < 0.0f ? 0.0f : y[i];  // NaN stays
  emit_beside(sink, o, pixel, y, codes);
}

inline int select_sums(const bw_conv& conv, const bw_skip& skip, const int32_t* sums, const bw_sink& sink, int threads) {
  const int64_t o = conv.o, pixels = conv.n * conv.oh * conv.ow, share = items_per_task(threads, pixels, 1, pixels);
  const int32_t *full = sums + pixels * o, *threshold = (const int32_t*)skip.threshold;
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(pixels, share), [&](int64_t task) {
    int32_t* row = (int32_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)o * 6);
    if (!row) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    uint8_t *on = (uint8_t*)(row + o), *codes = on + o;
    const int64_t end = (task + 1) * share < pixels ? (task + 1) * share : pixels;
    for (int64_t p = task * share; p < end; p++) {
      const int32_t *low = sums + p * o, *high = full + p * o;
      for (int64_t i = 0; i < o; i++) {
        const int32_t base = (int32_t)((uint32_t)low[i] << skip.low_bits);
        row[i] = base > threshold[i] ? high[i] : base;
      }
      if (skip.off_scale)
        for (int64_t i = 0; i < o; i++) on[i] = (int32_t)((uint32_t)low[i] << skip.low_bits) > threshold[i];
      emit_gated(sink, skip, o, p, row, on, codes);
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a row of sums") : BW_OK;
}

}  // namespace
