// Tiles of a gated convolution in AVX-512 registers: 14 pixels times two panels, fused multiply-add; see gated.h.
#pragma once
#include <immintrin.h>

#include "generic_gated.h"

namespace {

struct LanesGated {
  static const int PIXELS = 14;

  template <int HIGH, int WIDE, int PANELS>
  static void run(const GatedTile& t, const float* x, const float* w, float* sums, int64_t down) {
    __m512 a[HIGH][WIDE][PANELS];
    for (int r = 0; r < HIGH; r++)
      for (int i = 0; i < WIDE; i++)
        for (int p = 0; p < PANELS; p++) a[r][i][p] = _mm512_setzero_ps();
    for (int64_t j = 0; j < t.inputs; j++) {
      const float *weights = w + t.rows[j] * t.kh * t.kw * t.across, *row = x + j * t.length;
      for (int64_t ky = 0; ky < t.kh; ky++, row += t.down)
        for (int64_t kx = 0; kx < t.kw; kx++, weights += t.across) {
          __m512 v[PANELS];
          for (int p = 0; p < PANELS; p++) v[p] = _mm512_loadu_ps(weights + p * t.next);
          const float* at = row + t.right[kx];
          _Pragma("GCC unroll 2") for (int r = 0; r < HIGH; r++)
            _Pragma("GCC unroll 14") for (int i = 0; i < WIDE; i++) {
              const __m512 value = _mm512_set1_ps(at[r * t.step + i]);
              _Pragma("GCC unroll 2") for (int p = 0; p < PANELS; p++) a[r][i][p] = _mm512_fmadd_ps(value, v[p], a[r][i][p]);
            }
        }
    }
    for (int r = 0; r < HIGH; r++)
      for (int i = 0; i < WIDE; i++)
        for (int p = 0; p < PANELS; p++) _mm512_storeu_ps(sums + r * down + i * t.outputs + p * 16, a[r][i][p]);
  }

  static GatedTileCall tile(int64_t high, int64_t wide, int64_t panels) {
#define BW_TILES(P)                                                                                                          \
  {{run<1, 1, P>, run<1, 2, P>, run<1, 3, P>, run<1, 4, P>, run<1, 5, P>, run<1, 6, P>, run<1, 7, P>, run<1, 8, P>,          \
    run<1, 9, P>, run<1, 10, P>, run<1, 11, P>, run<1, 12, P>, run<1, 13, P>, run<1, 14, P>},                                \
   {run<2, 1, P>, run<2, 2, P>, run<2, 3, P>, run<2, 4, P>, run<2, 5, P>, run<2, 6, P>, run<2, 7, P>}}
    static const GatedTileCall calls[2][2][PIXELS] = {BW_TILES(1), BW_TILES(2)};
#undef BW_TILES
    return calls[panels - 1][high - 1][wide - 1];
  }

  static void together(const float* w, const uint16_t* on, int64_t panels, float* out) {
    for (int64_t p = 0; p < panels; p++) {
      _mm512_storeu_ps(out, _mm512_maskz_compress_ps(on[p], _mm512_loadu_ps(w + p * 16)));
      out += __builtin_popcount(on[p]);
    }
  }

  static void finish(const bw_gated& g, const GatedImage& image, const float* add, const float* sums, float* out,
                     const float* residual) {
    const __m512 zero = _mm512_setzero_ps();
    for (int64_t p = 0; p * 16 < g.o; p++, add += 16) {
      const __mmask16 on = image.on[p], here = g.o - p * 16 < 16 ? (__mmask16)((1 << (g.o - p * 16)) - 1) : (__mmask16)0xffff;
      __m512 y = zero;
      if (on) {
        const __m512 v = _mm512_loadu_ps(sums);
        y = image.apart ? _mm512_maskz_expand_ps(on, v) : v;
        y = _mm512_maskz_mul_ps(on, _mm512_add_ps(y, _mm512_loadu_ps(add)), _mm512_loadu_ps(image.gain + p * 16));
        sums += image.apart ? __builtin_popcount(on) : 16;
      }
      if (residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(here, residual + p * 16));
      if (g.relu) y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(y, zero, _CMP_LT_OQ), zero);  // NaN stays
      _mm512_mask_storeu_ps(out + p * 16, here, y);
    }
  }
};

int lanes_conv_gated(const bw_gated& g, const float* x, const void* body, float* out, const float* residual, float* on, int threads) {
  return gated_conv<LanesGated>(g, x, body, out, residual, on, threads);
}

}  // namespace
