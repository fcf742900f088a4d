// Byte codes with whole-number weights: what both kernels for them (skip_rows.h, skip_quads.h) share. All sums are exact.
#pragma once
#include "skip_emit.h"
#include "skip_tiles.h"

namespace {

struct SkipCodes {
  typedef uint8_t Input;
  typedef int32_t Sum;
  const SkipShape& shape;
  const bw_skip& skip;
  const bw_sink& sink;

  static int64_t most() { return 2560; }  // elements of a chunk in a window

  bool prepare(const uint8_t*, int32_t, int) { return true; }
  bool reads(int64_t) const { return true; }  // of a share

  // Which bits of a code belong to a share: for a precision gate to share 0 the high ones, to share 1 the low ones.
  static int kept_bits(const SkipShape& s, int64_t share) {
    const int low = (1 << s.low_bits) - 1;
    return !s.low_bits ? 255 : share ? low : 255 - low;
  }

  // The sums of a strip to what the caller asked for.
  template <class Kernel>
  void finish(Strip<Kernel>& strip) const {
    const int64_t o = shape.conv.o;
    if (skip.rest_corr)
      for (int64_t pixel = 0; pixel < strip.pixels; pixel++) {
        const int32_t* corr = skip.rest_corr + strip.corr[pixel];
        shape.for_panels([&](int64_t panel, int64_t first, int64_t count) {
          int32_t* sums = strip.sums + pixel * strip.wide() + panel * 16;
          const unsigned on = strip.on[panel * strip.lined() + pixel];
          for (int64_t i = 0; i < count; i++) sums[i] += on >> i & 1 ? corr[first + i] : 0;
        });
      }
    int32_t* row = (int32_t*)strip.row;
    uint8_t *on = (uint8_t*)(row + o), *codes = on + o;
    for (int64_t pixel = 0; pixel < strip.pixels; pixel++) {
      const int32_t* sums = strip.sums + pixel * strip.wide();
      if (!shape.plain()) {  // a panel in the middle is not full
        shape.for_panels([&](int64_t panel, int64_t first, int64_t count) {
          memcpy(row + first, sums + panel * 16, (size_t)count * 4);
        });
        sums = row;
      }
      if (skip.off_scale)
        shape.for_panels([&](int64_t panel, int64_t first, int64_t count) {
          const unsigned bits = strip.on[panel * strip.lined() + pixel];
          for (int64_t i = 0; i < count; i++) on[first + i] = bits >> i & 1;
        });
      emit_gated(sink, skip, o, strip.pixel(pixel), sums, on, codes);
    }
  }
};

}  // namespace
