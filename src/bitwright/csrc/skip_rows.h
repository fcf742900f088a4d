// Byte codes for every instruction set: base and rest are dot products of int16, which compilers turn into pmaddwd or smlal.
#pragma once
#include "skip_codes.h"

namespace {

struct SkipRows : SkipCodes {
  typedef int16_t Cell;
  const int16_t* packed;
  SkipRows(const SkipShape& shape_, const bw_skip& skip_, const bw_sink& sink_, int32_t, const void* body)
      : SkipCodes{shape_, skip_, sink_}, packed((const int16_t*)body) {}

  // [o][chunks: those of the base, then those of the rest][runs][run]
  static int64_t chunk_size(const SkipShape& s) { return s.runs * s.run; }
  static int64_t row_size(const SkipShape& s) { return (s.parts + s.rest_chunks()) * chunk_size(s); }
  static int64_t size(const SkipShape& s) { return s.conv.o * row_size(s) * 2; }
  static bool takes(int32_t layout) { return layout == BW_LAYOUT_SKIP_ROWS; }
  static int32_t layout(const SkipShape&, const int16_t*) { return BW_LAYOUT_SKIP_ROWS; }
  static void pack(const SkipShape& s, const int16_t* values, int32_t, void* body) {
    memset(body, 0, (size_t)size(s));
    s.for_outputs([&](const SkipOutputs& group, int64_t o, int64_t, int64_t) {
      int16_t* to = (int16_t*)body + o * row_size(s);
      for (int64_t i = 0; i < s.parts + s.rest_chunks(); i++, to += chunk_size(s))
        s.weights(values, o, i < s.parts ? s.base_chunk(group, i) : s.rest_chunk(group, i - s.parts),
                  [&](int64_t r, int64_t at, int w) { to[r * s.run + at] = (int16_t)w; });
    });
  }

  static void copy(const SkipShape& s, int64_t share, const uint8_t* from, int64_t pixels, int64_t count, int16_t* to) {
    const int kept = kept_bits(s, share);
    for (; pixels > 0; pixels--, from += s.conv.c, to += s.width) {
      for (int64_t i = 0; i < count; i++) to[i] = (int16_t)(from[i] & kept);
      for (int64_t i = count; i < s.width; i++) to[i] = 0;
    }
  }

  int64_t piece() const { return shape.run; }
  const void* rest_weights(int64_t o, int64_t chunk) const {
    return packed + o * row_size(shape) + (shape.parts + chunk) * chunk_size(shape);
  }

  template <int P>
  void dots(const int16_t* const (&x)[P], const int64_t* runs, int64_t run_count, const void* row, int32_t* const (&to)[P]) const {
    const int16_t* w = (const int16_t*)row;
    int32_t sums[P] = {};
    for (int64_t r = 0; r < run_count; r++, w += shape.run)
      for (int p = 0; p < P; p++) {
        const int16_t* from = x[p] + runs[r];
        int32_t sum = 0;
        for (int64_t i = 0; i < shape.run; i++) sum += (int32_t)from[i] * w[i];
        sums[p] += sum;
      }
    for (int p = 0; p < P; p++) *to[p] += sums[p];
  }

  void base(Strip<SkipRows>& strip) const {
    for (int64_t i = 0; i < shape.output_groups(); i++) {
      const SkipOutputs o = shape.outputs(i);
      const int64_t count = strip.set_base_runs(o);
      for (int64_t pixel = 0; pixel < strip.pixels; pixel++) {
        const int16_t* const x[1] = {strip.cells + strip.place[pixel]};
        const int32_t* corr = shape.conv.corr + strip.corr[pixel];
        for (int64_t j = 0; j < o.count; j++) {
          int32_t* const to[1] = {strip.sums + pixel * strip.wide() + o.panel * 16 + j};
          *to[0] = corr[o.first + j];
          dots<1>(x, strip.runs, count, packed + (o.first + j) * row_size(shape), to);
          if (*to[0] > ((const int32_t*)skip.threshold)[o.first + j])
            strip.on[(o.panel + j / 16) * strip.lined() + pixel] |= (uint16_t)(1 << j % 16);
        }
      }
    }
  }
};

}  // namespace
