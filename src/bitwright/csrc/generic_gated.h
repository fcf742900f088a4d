// Tiles of a gated convolution in vectors that the compiler lays on whatever registers there are; see gated.h.
#pragma once
#include "gated.h"

namespace {

typedef void (*GatedTileCall)(const GatedTile&, const float* x, const float* w, float* sums, int64_t down);

struct GenericGated {
  static const int PIXELS = 6;

  template <int HIGH, int WIDE>
  static void one(const GatedTile& t, const float* x, const float* w, float* sums, int64_t down) {
    Floats a[HIGH * WIDE];
    BW_UNROLL for (int i = 0; i < HIGH * WIDE; i++) a[i] = zeros();
    for (int64_t j = 0; j < t.inputs; j++) {
      const float *weights = w + t.rows[j] * t.kh * t.kw * t.across, *row = x + j * t.length;
      for (int64_t ky = 0; ky < t.kh; ky++, row += t.down)
        for (int64_t kx = 0; kx < t.kw; kx++, weights += t.across) {
          const Floats v = load(weights);
          const float* const at = row + t.right[kx];
          BW_UNROLL for (int r = 0; r < HIGH; r++)
            BW_UNROLL for (int i = 0; i < WIDE; i++)
              a[r * WIDE + i] = plus_product(a[r * WIDE + i], all_of(at[r * t.step + i]), v);
        }
    }
    BW_UNROLL for (int r = 0; r < HIGH; r++)
      BW_UNROLL for (int i = 0; i < WIDE; i++) store(sums + r * down + i * t.outputs, a[r * WIDE + i]);
  }

  template <int HIGH, int WIDE>
  static void two(const GatedTile& t, const float* x, const float* w, float* sums, int64_t down) {
    one<HIGH, WIDE>(t, x, w, sums, down);
    one<HIGH, WIDE>(t, x, w + t.next, sums + 16, down);
  }

  static GatedTileCall tile(int64_t high, int64_t wide, int64_t panels) {
    static const GatedTileCall calls[2][2][PIXELS] = {
        {{one<1, 1>, one<1, 2>, one<1, 3>, one<1, 4>, one<1, 5>, one<1, 6>}, {one<2, 1>, one<2, 2>, one<2, 3>}},
        {{two<1, 1>, two<1, 2>, two<1, 3>, two<1, 4>, two<1, 5>, two<1, 6>}, {two<2, 1>, two<2, 2>, two<2, 3>}}};
    return calls[panels - 1][high - 1][wide - 1];
  }

  static void together(const float* w, const uint16_t* on, int64_t panels, float* out) {
    for (int64_t p = 0; p < panels; p++)
      for (uint32_t left = on[p]; left; left &= left - 1) *out++ = w[p * 16 + __builtin_ctz(left)];
  }

  static void finish(const bw_gated& g, const GatedImage& image, const float* add, const float* sums, float* out,
                     const float* residual) {
    for (int64_t p = 0; p < bw_panels(g.o); p++) {
      const uint16_t on = image.on[p], here = first_lanes(g.o - p * 16);
      Floats y = zeros();
      if (on) {
        y = image.apart ? load_apart(sums, on) : load(sums);
        y = choose(on, (y + load(add + p * 16)) * load(image.gain + p * 16), zeros());
        sums += image.apart ? __builtin_popcount(on) : 16;
      }
      if (residual) y = y + load_some(residual + p * 16, here);
      if (g.relu) y = not_below_zero(y);
      store_some(out + p * 16, y, here);
    }
  }
};

inline int generic_conv_gated(const bw_gated& g, const float* x, const void* body, float* out, const float* residual, float* on, int threads) {
  return gated_conv<GenericGated>(g, x, body, out, residual, on, threads);
}

}  // namespace
