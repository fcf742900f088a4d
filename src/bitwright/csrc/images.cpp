// What nets do to images of floats between their layers, channels last: pooling, the mean of an image, and shortcuts that take every so
// many pixels. Memory sets the pace, so there is one way for all CPUs.
#include <math.h>
#include <string.h>

#include "checks.h"
#include "kernels.h"
#include "parallel.h"

namespace {

constexpr int64_t MEANS = 64;  // channels whose sums are made together

// Taps outside the image never win and never count. Tap by tap: all taps of some channels at a time are slower.
template <bool AVERAGE>
void pooled_pixel(const bw_pool& p, const float* image, int64_t oy, int64_t ox, float* __restrict y) {
  int64_t taps = 0;
  for (int64_t ky = 0; ky < p.kh; ky++) {
    const int64_t iy = oy * p.stride_h - p.pad_h + ky * p.dil_h;
    if (iy < 0 || iy >= p.h) continue;
    for (int64_t kx = 0; kx < p.kw; kx++) {
      const int64_t ix = ox * p.stride_w - p.pad_w + kx * p.dil_w;
      if (ix < 0 || ix >= p.w) continue;
      const float* x = image + (iy * p.w + ix) * p.channels;
      if (!taps++) memcpy(y, x, (size_t)p.channels * sizeof(float));
      else if (AVERAGE) for (int64_t c = 0; c < p.channels; c++) y[c] += x[c];
      else for (int64_t c = 0; c < p.channels; c++) y[c] = y[c] > x[c] ? y[c] : x[c];
    }
  }
  if (!taps) for (int64_t c = 0; c < p.channels; c++) y[c] = AVERAGE ? 0 : -INFINITY;
  else if (AVERAGE) for (int64_t c = 0; c < p.channels; c++) y[c] /= (float)taps;
}

template <bool AVERAGE>
int pool_floats(const bw_pool* pool, const float* x, float* out, int threads) {
  if (int error = check_pool(pool, x, out)) return error;
  for_tasks(threads, pool->n * pool->oh, [&](int64_t row) {
    const float* image = x + row / pool->oh * pool->h * pool->w * pool->channels;
    float* y = out + row * pool->ow * pool->channels;
    for (int64_t ox = 0; ox < pool->ow; ox++, y += pool->channels) pooled_pixel<AVERAGE>(*pool, image, row % pool->oh, ox, y);
  });
  return BW_OK;
}

}  // namespace

extern "C" {

int bw_maxpool_floats(const bw_pool* pool, const float* x, float* out, int threads) { return pool_floats<false>(pool, x, out, threads); }

int bw_avgpool_floats(const bw_pool* pool, const float* x, float* out, int threads) { return pool_floats<true>(pool, x, out, threads); }

int bw_mean_floats(const bw_pool* pool, const float* x, float* out, int threads) {
  BW_REQUIRE(pool && pool->n >= 0 && size_ok(pool->h) && size_ok(pool->w) && size_ok(pool->channels), "mean: n, h, w and channels must be positive");
  BW_REQUIRE((x && out) || pool->n == 0, "mean: x or out is null");
  const int64_t pixels = pool->h * pool->w, channels = pool->channels, blocks = bw_ceil_div(channels, MEANS);
  for_tasks(threads, pool->n * blocks, [&](int64_t task) {
    const int64_t first = task % blocks * MEANS, count = channels - first < MEANS ? channels - first : MEANS;
    const float* from = x + task / blocks * pixels * channels + first;
    float* to = out + task / blocks * channels + first;
    double sum[MEANS] = {};
    for (int64_t i = 0; i < pixels; i++, from += channels)
      for (int64_t c = 0; c < count; c++) sum[c] += (double)from[c];
    for (int64_t c = 0; c < count; c++) to[c] = (float)(sum[c] / (double)pixels);
  });
  return BW_OK;
}

int bw_subsample_floats(const bw_subsample* s, const float* x, float* out, int threads) {
  BW_REQUIRE(s && s->n >= 0 && size_ok(s->h) && size_ok(s->w) && size_ok(s->c) && size_ok(s->stride_h) && size_ok(s->stride_w),
             "subsample: n, sides, channels and strides must be positive");
  BW_REQUIRE(s->before >= 0 && s->before < LIMIT && s->behind >= 0 && s->behind < LIMIT, "subsample: channels of zeros must not be negative");
  BW_REQUIRE((x && out) || s->n == 0, "subsample: x or out is null");
  const int64_t oh = bw_ceil_div(s->h, s->stride_h), ow = bw_ceil_div(s->w, s->stride_w), channels = s->before + s->c + s->behind;
  for_tasks(threads, s->n * oh, [&](int64_t row) {
    const float* from = x + (row / oh * s->h + row % oh * s->stride_h) * s->w * s->c;
    float* to = out + row * ow * channels;
    for (int64_t i = 0; i < ow; i++, from += s->stride_w * s->c, to += channels) {
      memset(to, 0, (size_t)s->before * sizeof(float));
      memcpy(to + s->before, from, (size_t)s->c * sizeof(float));
      memset(to + s->before + s->c, 0, (size_t)s->behind * sizeof(float));
    }
  });
  return BW_OK;
}

}  // extern "C"
