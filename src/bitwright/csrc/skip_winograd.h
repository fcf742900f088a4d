// Floats of a channel gate by Winograd's F(2x2, 3x3), the kernel of floats.h: the base of all outputs; for the dense way the rest, too,
// from the same transformed inputs, so that both take as many products as the layer without a gate.
//
// Panels of outputs whose bases are the same shares make a group. Its base runs over the channels of these shares, with zeros where an
// output has another base, and its rest over the others; over all channels where it has several shares.
//
// Weights: groups one after the other, each [sum][product][channel][panels * 16].
#pragma once
#include "float_weights.h"
#include "floats.h"
#include "skip.h"

namespace {

// What becomes of the sums of up to sixteen outputs.
struct SkipNorms {
  bool scaled, apart, relu;
  Floats scale, add, off_scale, off_add;
  SkipNorms(const bw_skip& skip, int64_t first, uint16_t lanes) : scaled(skip.scale), apart(skip.off_scale), relu(skip.relu) {
    scale = scaled ? load_some(skip.scale + first, lanes) : zeros(), add = scaled ? load_some(skip.add + first, lanes) : zeros();
    off_scale = apart ? load_some(skip.off_scale + first, lanes) : scale, off_add = apart ? load_some(skip.off_add + first, lanes) : add;
  }
  // residual: of these outputs, or null
  BW_INLINE void write(Floats y, uint16_t on, const float* residual, uint16_t lanes, float* to) const {
    if (scaled) {
      const Floats full = times_plus(y, scale, add);
      y = apart ? choose(on, full, times_plus(y, off_scale, off_add)) : full;
    }
    if (residual) y = y + load_some(residual, lanes);
    if (relu) y = not_below_zero(y);
    store_some(to, y, lanes);
  }
};

// Sixteen sums each become bases.
struct SkipBases {
  const float* bias;
  float* out;
  int64_t step, outputs;
  BW_INLINE void write(const Floats (&y)[1], int64_t pixel, int64_t panel) const {
    const uint16_t lanes = first_lanes(outputs - panel * 16);
    store_some(out + pixel * step + panel * 16, y[0] + load_some(bias + panel * 16, lanes), lanes);
  }
};

// Base and rest become outputs.
struct SkipChoice {
  const bw_skip& skip;
  float* out;
  const float* residual;
  int64_t step, first, outputs;
  BW_INLINE void write(const Floats (&y)[2], int64_t pixel, int64_t panel) const {
    const uint16_t lanes = first_lanes(outputs - panel * 16);
    const int64_t o = first + panel * 16, at = pixel * step + o;
    const Floats base = y[0] + load_some(skip.bias + o, lanes);
    const uint16_t on = above(base, load_some((const float*)skip.threshold + o, lanes));
    SkipNorms(skip, o, lanes).write(choose(on, base + y[1], base), on, residual ? residual + at : nullptr, lanes, out + at);
  }
};

struct SkipGroup {
  int64_t first, panels, share, shares, at;  // first output; bases; its first weight
};

struct SkipWinograd {
  const bw_skip& skip;
  bw_floats f;
  int64_t width;  // of a share

  SkipWinograd(const bw_conv& c, const bw_skip& skip_) : skip(skip_), width(c.c / skip_.splits) {
    f = {c.n, c.h, c.w, c.c, c.o, 3, 3, 1, 1, c.pad_h, c.pad_w, 1, 1, c.oh, c.ow, 0, 0};
  }
  int64_t base_of(int64_t o) const { return skip.shared ? 0 : (o < f.o ? o : f.o - 1) / (f.o / skip.splits); }
  int64_t channels(const SkipGroup& g, int sum) const { return sum == 0 ? g.shares * width : g.shares == 1 ? f.c - width : f.c; }
  // channel number i of a sum
  int64_t channel(const SkipGroup& g, int sum, int64_t i) const {
    const int64_t before = g.share * width;
    return sum == 0 ? before + i : g.shares == 1 && i >= before ? i + width : i;
  }

  // each(group); returns the number of weights
  template <class Each>
  int64_t for_groups(const Each& each) const {
    const int64_t all = bw_panels(f.o);
    SkipGroup g = {0, 0, 0, 0, 0};
    for (int64_t p = 0; p < all; p += g.panels) {
      g.first = p * 16, g.share = base_of(p * 16), g.shares = base_of(p * 16 + 15) - g.share + 1, g.panels = 1;
      const auto alike = [&](int64_t i) { return base_of(i * 16) == g.share && base_of(i * 16 + 15) == g.share + g.shares - 1; };
      while (g.panels < FLOAT_GROUP && p + g.panels < all && alike(p + g.panels)) g.panels++;
      each(g);
      g.at += 256 * g.panels * (channels(g, 0) + (skip.dense ? channels(g, 1) : 0));
    }
    return g.at;
  }
  int64_t size() const {
    return for_groups([](const SkipGroup&) {});
  }

  void pack(const float* values, float* body) const {
    memset(body, 0, (size_t)size() * sizeof(float));
    for_groups([&](const SkipGroup& g) {
      float* to = body + g.at;
      for (int sum = 0; sum <= (skip.dense != 0); sum++) {
        const int64_t count = channels(g, sum), wide = g.panels * 16;
        for (int64_t o = g.first; o < f.o && o < g.first + wide; o++)
          for (int64_t i = 0; i < count; i++) {
            const int64_t c = channel(g, sum, i);
            if ((c / width == base_of(o)) != (sum == 0)) continue;
            float changed[16];
            float_winograd_weights(values + o * 9 * f.c + c, f.c, changed);
            for (int64_t k = 0; k < 16; k++) to[(k * count + i) * wide + o - g.first] = changed[k];
          }
        to += 16 * count * wide;
      }
    });
  }
};

// As float_winograd takes it; N: 1 of the base alone, 2 of both sums.
template <int N>
struct SkipLayer {
  static const int SUMS = N;
  const SkipWinograd& layer;
  const float* body;
  float* out;
  const float* residual;
  int64_t count;
  SkipGroup* table;  // [count]
  int64_t* starts;   // [count][1 + splits] of the runs of both sums

  SkipLayer(const SkipWinograd& layer_, const float* body_, float* out_, const float* residual_)
      : layer(layer_), body(body_), out(out_), residual(residual_), count(0) {
    const int64_t all = bw_panels(layer.f.o), splits = layer.skip.splits;
    table = (SkipGroup*)bw_scratch(BW_SCRATCH_CUTS, (size_t)all * (sizeof(SkipGroup) + (size_t)(splits + 1) * sizeof(int64_t)));
    if (!table) return;
    starts = (int64_t*)(table + all);
    layer.for_groups([&](const SkipGroup& g) {
      int64_t* to = starts + count * (splits + 1);
      *to++ = g.share * layer.width;
      if (g.shares > 1) *to++ = 0;
      for (int64_t i = 0; i < splits && g.shares == 1; i++)
        if (i != g.share) *to++ = i * layer.width;
      table[count++] = g;
    });
  }

  int64_t groups() const { return count; }
  int64_t panels(int64_t g) const { return table[g].panels; }
  bool memory() const { return true; }
  FloatRuns runs(int64_t g, int sum) const {
    const int64_t* mine = starts + g * (layer.skip.splits + 1);
    if (sum == 0) return {mine, 1, table[g].shares * layer.width, nullptr};
    return table[g].shares > 1 ? FloatRuns{mine + 1, 1, layer.f.c, nullptr} : FloatRuns{mine + 1, layer.skip.splits - 1, layer.width, nullptr};
  }
  const float* weights(int64_t g, int sum, int64_t k) const {
    const int64_t wide = table[g].panels * 16, base = layer.channels(table[g], 0);
    return body + table[g].at + (sum == 0 ? k * base : 16 * base + k * layer.channels(table[g], 1)) * wide;
  }
  auto finish(int64_t g, int64_t n) const {
    const int64_t first = table[g].first, image = n * layer.f.oh * layer.f.ow * layer.f.o, outputs = layer.f.o - first;
    if constexpr (N == 1)
      return SkipBases{layer.skip.bias + first, out + image + first, layer.f.o, outputs};
    else
      return SkipChoice{layer.skip, out + image, residual ? residual + image : nullptr, layer.f.o, first, outputs};
  }
};

template <int N>
bool skip_winograd(const SkipWinograd& layer, const float* x, const float* body, float* out, const float* residual, int threads) {
  const SkipLayer<N> mine(layer, body, out, residual);
  return mine.table && float_winograd(layer.f, x, mine, threads);
}

}  // namespace
