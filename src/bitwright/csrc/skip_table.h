// Convolutions with a base and a rest as table entries.
#pragma once
#include "skip_floats.h"
#if defined(__AVX512VNNI__)
#include "skip_quads.h"
#elif defined(BW_LANES_AVX2)
#include "avx2_skip.h"
#else
#include "skip_rows.h"
#endif

namespace {

#if defined(__AVX512VNNI__)
typedef SkipQuads SkipBytes;
#elif defined(BW_LANES_AVX2)
typedef SkipParts SkipBytes;
#else
typedef SkipRows SkipBytes;
#endif

inline SkipShape floats_shape(const bw_conv& conv, const bw_skip& skip) { return SkipShape(conv, skip, SkipFloats::most()); }
inline SkipShape bytes_shape(const bw_conv& conv, const bw_skip& skip) { return SkipShape(conv, skip, SkipBytes::most()); }

inline int64_t skip_floats_base(const SkipShape& shape, const bw_skip& skip) {  // floats
  return bw_skip_winograd(shape.conv, skip) ? SkipWinograd(shape.conv, skip).size() : SkipFloats::base_size(shape);
}
inline int64_t skip_floats_size(const bw_conv& conv, const bw_skip& skip) {
  const SkipShape shape = floats_shape(conv, skip);
  return (skip_floats_base(shape, skip) + (skip.dense ? 0 : SkipFloats::rest_sizes(shape))) * (int64_t)sizeof(float);
}
inline void skip_floats_weights(const bw_conv& conv, const bw_skip& skip, const float* values, void* body) {
  const SkipShape shape = floats_shape(conv, skip);
  bw_skip_winograd(conv, skip) ? SkipWinograd(conv, skip).pack(values, (float*)body) : SkipFloats::pack_base(shape, values, (float*)body);
  if (!skip.dense) SkipFloats::pack_rest(shape, values, (float*)body + skip_floats_base(shape, skip));
}
inline int skip_floats(const bw_conv& conv, const bw_skip& skip, const float* x, const void* body, float* out, const float* residual,
                       int threads) {
  const SkipShape shape = floats_shape(conv, skip);
  const float *weights = (const float*)body, *rest = weights + skip_floats_base(shape, skip);
  float* bases = nullptr;
  if (bw_skip_winograd(conv, skip)) {
    const SkipWinograd winograd(conv, skip);
    if (!skip.dense) bases = (float*)bw_scratch(BW_SCRATCH_POOL, (size_t)(conv.n * conv.oh * conv.ow * conv.o) * sizeof(float));
    const bool done = skip.dense ? skip_winograd<2>(winograd, x, weights, out, residual, threads)
                                 : bases && skip_winograd<1>(winograd, x, weights, bases, nullptr, threads);
    if (!done) return bw_fail(BW_NO_MEMORY, "out of memory for the sums of a gate");
    if (skip.dense) return BW_OK;
  }
  return skip_run(SkipFloats{shape, skip, weights, rest, bases, out, residual}, x, threads);
}

inline int64_t skip_bytes_size(const bw_conv& conv, const bw_skip& skip) { return SkipBytes::size(bytes_shape(conv, skip)); }
inline int32_t skip_bytes_layout(const bw_conv& conv, const bw_skip& skip, const int16_t* values) {
  return SkipBytes::layout(bytes_shape(conv, skip), values);
}
inline void skip_bytes_weights(const bw_conv& conv, const bw_skip& skip, const int16_t* values, int32_t layout, void* body) {
  SkipBytes::pack(bytes_shape(conv, skip), values, layout, body);
}
template <class Kernel>
int skip_bytes_by(const bw_conv& conv, const bw_skip& skip, const uint8_t* x, int32_t layout, const void* body, const bw_sink& sink,
                  int threads) {
  const SkipShape shape = bytes_shape(conv, skip);
  Kernel kernel(shape, skip, sink, layout, body);
  if (!kernel.prepare(x, layout, threads)) return bw_fail(BW_NO_MEMORY, "out of memory for the sums of a gate");
  return skip_run(kernel, x, threads);
}
inline int skip_bytes(const bw_conv& conv, const bw_skip& skip, const uint8_t* x, int32_t layout, const void* body, const bw_sink& sink,
                      int threads) {
#if defined(BW_LANES_AVX2)
  const bool quads = layout == BW_LAYOUT_SKIP_PART_QUADS, takes = quads || layout == BW_LAYOUT_SKIP_PART_PAIRS;
  const bool fits = !takes || SkipParts::fits(bytes_shape(conv, skip), body);
#else
  const bool plain = conv.stride_h == 1 && conv.stride_w == 1 && conv.dil_h == 1 && conv.dil_w == 1;
  const bool takes = SkipBytes::takes(layout), fits = layout != BW_LAYOUT_SKIP_WINOGRAD || plain;
#endif
  if (!takes)
    return bw_fail(BW_BAD_LAYOUT, "weights were packed for another instruction set (layout %d); pack them again", layout);
  if (!fits) return bw_fail(BW_BAD_LAYOUT, "weights were packed for a stride and dilation of 1; pack them again");
#if defined(BW_LANES_AVX2)
  return quads ? skip_bytes_by<SkipLanes<uint8_t>>(conv, skip, x, layout, body, sink, threads)
               : skip_bytes_by<SkipLanes<int16_t>>(conv, skip, x, layout, body, sink, threads);
#else
  return skip_bytes_by<SkipBytes>(conv, skip, x, layout, body, sink, threads);
#endif
}

// A function, not a pointer: the table of one unit may stand in for another before it is initialized.
const bw_skip_table* skip_table() {
  static const bw_skip_table table = {skip_floats_size, skip_floats_weights, skip_floats,
                                      skip_bytes_size,  skip_bytes_layout,   skip_bytes_weights, skip_bytes,
                                      select_sums};
  return &table;
}

}  // namespace
