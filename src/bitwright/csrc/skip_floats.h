// Floats: base by Winograd's form where it takes it (skip_winograd.h), else by register tiles of P pixels x 16 C outputs (skip_tiles.h);
// rest by dot products of P pixels with one output.
//
// The order of a sum. Base by tiles: tap by tap and channel by channel, one after the other; then bias. A dot product of the rest: 32 partial
// sums, of every other vector of sixteen in a run (with AVX2 16, of each vector), which meet as a tree; passes are added to the base one
// after the other. So a sum depends on the shape of the layer alone, not on what else is on, nor on the batch or the number of threads.
#pragma once
#include "skip_tiles.h"
#include "skip_winograd.h"

namespace {

struct SkipFloats {
  typedef float Input;
  typedef float Cell;
  typedef float Sum;
  const SkipShape& shape;
  const bw_skip& skip;
  const float* weights;  // base by tiles
  const float* rest;
  const float* given;    // base of every pixel [n][oh][ow][o], or null
  float* out;
  const float* residual;

  static int64_t most() { return 640; }  // elements of a chunk in a window
  static int64_t vectors(const SkipShape& s) { return bw_ceil_div(s.run, 16); }
  static int64_t panel_size(const SkipShape& s) { return s.parts * s.runs * s.run * 16; }
  static int64_t rest_size(const SkipShape& s) { return s.runs * vectors(s) * 16; }  // of a chunk
  static int64_t base_size(const SkipShape& s) { return s.panels * panel_size(s); }
  static int64_t rest_sizes(const SkipShape& s) { return s.conv.o * s.rest_chunks() * rest_size(s); }

  static void pack_base(const SkipShape& s, const float* values, float* body) {
    memset(body, 0, (size_t)base_size(s) * sizeof(float));
    s.for_outputs([&](const SkipOutputs& group, int64_t o, int64_t panel, int64_t lane) {
      float* base = body + panel * panel_size(s) + lane;
      for (int64_t i = 0; i < s.parts; i++, base += s.runs * s.run * 16)
        s.weights(values, o, s.base_chunk(group, i),
                  [&](int64_t r, int64_t at, float w) { base[(r * s.run + at) * 16] = w; });
    });
  }
  static void pack_rest(const SkipShape& s, const float* values, float* body) {
    memset(body, 0, (size_t)rest_sizes(s) * sizeof(float));
    s.for_outputs([&](const SkipOutputs& group, int64_t o, int64_t, int64_t) {
      float* rest = body + o * s.rest_chunks() * rest_size(s);
      for (int64_t i = 0; i < s.rest_chunks(); i++, rest += rest_size(s))
        s.weights(values, o, s.rest_chunk(group, i),
                  [&](int64_t r, int64_t at, float w) { rest[r * vectors(s) * 16 + at] = w; });
    });
  }

  static void copy(const SkipShape& s, int64_t, const float* from, int64_t pixels, int64_t count, float* to) {
    for (; pixels > 0; pixels--, from += s.conv.c, to += s.width) {
      int64_t i = 0;
      for (; i + 16 <= count; i += 16) store(to + i, load(from + i));
      for (; i < count; i++) to[i] = from[i];
      for (; i < s.width; i++) to[i] = 0;
    }
  }

  typedef Floats Vector;
  static const int STEP = 1, WIDE = 6;  // WIDE: pixels of a tile with four vectors of outputs
  const float* panels() const { return weights; }
  int64_t panel_size() const { return panel_size(shape); }
  int64_t weight_parts() const { return 1; }
  Floats zero() const { return zeros(); }
  Floats doubled(Floats x) const { return x; }
  Floats weights_at(const float* w) const { return load(w); }
  Floats spread(const float* x) const { return all_of(*x); }
  Floats product(Floats sum, Floats x, Floats w) const { return plus_product(sum, x, w); }
  Floats threshold(int64_t o, uint16_t lanes) const { return load_first((const float*)skip.threshold + o, lanes); }
  Floats begun(const Strip<SkipFloats>&, Floats sum, int64_t, int64_t o, uint16_t lanes) const {
    return sum + load_first(skip.bias + o, lanes);
  }
  void keep(float* to, Floats sum) const { store(to, sum); }
  uint16_t exceeds(Floats base, Floats threshold) const { return above(base, threshold); }
  void base(Strip<SkipFloats>& strip) const {
    if (!given) return base_by_tiles(*this, strip);
    shape.for_panels([&](int64_t panel, int64_t first, int64_t count) {
      const uint16_t lanes = first_lanes(count);
      const Floats cut = threshold(first, lanes);
      for (int64_t i = 0; i < strip.pixels; i++) {
        const Floats base = load_some(given + strip.pixel(i) * shape.conv.o + first, lanes);
        keep(strip.sums + i * strip.wide() + panel * 16, base);
        strip.on[panel * strip.lined() + i] = exceeds(base, cut) & lanes;
      }
    });
  }

  bool reads(int64_t) const { return true; }
  int64_t piece() const { return shape.run; }
  const float* rest_weights(int64_t o, int64_t chunk) const {
    return rest + (o * shape.rest_chunks() + chunk) * rest_size(shape);
  }

  template <int P>
  BW_INLINE void dots(const float* const (&x)[P], const int64_t* runs, int64_t run_count, const void* packed, float* const (&to)[P]) const {
    const float* w = (const float*)packed;
    const int64_t whole = shape.run / 16;
    const uint16_t some = first_lanes(shape.run % 16);
    Floats even[P], apart[P];
    Floats(&odd)[P] = SKIP_APART ? apart : even;
    BW_UNROLL for (int p = 0; p < P; p++) even[p] = apart[p] = zeros();
    for (int64_t r = 0; r < run_count; r++) {
      int64_t j = runs[r], i = 0;
      for (; i + 2 <= whole; i += 2, j += 32, w += 32) {
        const Floats a = load(w), b = load(w + 16);
        BW_UNROLL for (int p = 0; p < P; p++) even[p] = plus_product(even[p], load(x[p] + j), a);
        BW_UNROLL for (int p = 0; p < P; p++) odd[p] = plus_product(odd[p], load(x[p] + j + 16), b);
      }
      if (i < whole) {
        const Floats a = load(w);
        BW_UNROLL for (int p = 0; p < P; p++) even[p] = plus_product(even[p], load(x[p] + j), a);
        j += 16, w += 16;
      }
      if (some) {  // beyond the run may lie a NaN
        const Floats a = load(w);
        BW_UNROLL for (int p = 0; p < P; p++) odd[p] = plus_product(odd[p], load_first(x[p] + j, some), a);
        w += 16;
      }
    }
    BW_UNROLL for (int p = 0; p < P; p++) even[p] = SKIP_APART ? even[p] + apart[p] : even[p];
    float sums[(P + 3) / 4 * 4];
    sums_of<P>(even, sums);
    BW_UNROLL for (int p = 0; p < P; p++) *to[p] += sums[p];
  }

  void finish(Strip<SkipFloats>& strip) const {
    shape.for_panels([&](int64_t panel, int64_t first, int64_t count) {
      const uint16_t lanes = first_lanes(count);
      const SkipNorms norms(skip, first, lanes);
      const float* sums = strip.sums + panel * 16;
      const uint16_t* on = strip.on + panel * strip.lined();
      for (int64_t r = 0; r < strip.rows; r++) {
        int64_t at = strip.pixel(r * strip.cols) * shape.conv.o + first;
        for (int64_t i = 0; i < strip.cols; i++, at += shape.conv.o, sums += strip.wide())
          norms.write(load(sums), *on++, residual ? residual + at : nullptr, lanes, out + at);
      }
    });
  }
};

}  // namespace
