// Pooling of floats whose channels are last: the order that layers with bits write and read. Attributes are listed in
// ort_ops.cpp.
#pragma once
#include "ort_codes.h"

namespace {

// The largest, or the average, of each window, or the mean of an image. Taps outside the image never win and never count.
struct PoolFloats : Kernel {
  static const int64_t MEANS = 64;  // channels of a task
  const enum Of { LARGEST, AVERAGE, MEAN } of;
  const bool average;
  bw_pool pool = {};
  int64_t ceil_mode = 0;
  explicit PoolFloats(Of of) : of(of), average(of != LARGEST) {}

  BW_COLD ort::Status* create(const Node& node) override {
    pool.stride_h = pool.stride_w = pool.dil_h = pool.dil_w = 1;
    if (of == MEAN) return nullptr;
    BW_TRY(window_of(node, &pool));
    return node.attribute("ceil_mode", &ceil_mode);
  }

  ort::Status* run(const Call& call) const override {
    View x;
    BW_TRY(call.image(0, "x", sizeof(float), &x));
    bw_pool now = pool;
    now.n = x.dims[0], now.h = x.dims[1], now.w = x.dims[2], now.channels = x.dims[3];
    if (of == MEAN) return mean(call, now, (const float*)x.data);
    now.oh = pool_windows(now.h, now.kh, now.stride_h, now.pad_h, now.dil_h, ceil_mode);
    now.ow = pool_windows(now.w, now.kw, now.stride_w, now.pad_w, now.dil_w, ceil_mode);
    if (now.oh < 1 || now.ow < 1 || !now.kh || !now.kw) return call.fail("x of %lldx%lld is smaller than the window", (long long)now.h, (long long)now.w);
    void* out;
    BW_TRY(call.image_out(0, now.n, now.oh, now.ow, now.channels, &out));
    const Threads threads(call, PER_ELEMENT * (double)(now.n * now.oh * now.ow * now.channels * now.kh * now.kw) / 4);
    for_tasks(threads.count(), now.n * now.oh, [&](int64_t row) {
      for (int64_t ox = 0; ox < now.ow; ox++)
        pixel(now, (const float*)x.data + row / now.oh * now.h * now.w * now.channels, row % now.oh, ox,
              (float*)out + (row * now.ow + ox) * now.channels);
    });
    return nullptr;
  }

  // Of each image, in double, where the sum of an image's floats is exact.
  ort::Status* mean(const Call& call, const bw_pool& p, const float* x) const {
    if (p.h < 1 || p.w < 1) return call.fail("x has no pixels");
    void* out;
    BW_TRY(call.image_out(0, p.n, 1, 1, p.channels, &out));
    const int64_t pixels = p.h * p.w, blocks = bw_ceil_div(p.channels, MEANS);
    const Threads threads(call, PER_ELEMENT * (double)(p.n * pixels * p.channels) / 4);
    for_tasks(threads.count(), p.n * blocks, [&](int64_t task) {
      const int64_t first = task % blocks * MEANS, count = p.channels - first < MEANS ? p.channels - first : MEANS;
      const float* from = x + task / blocks * pixels * p.channels + first;
      float* to = (float*)out + task / blocks * p.channels + first;
      double sum[MEANS] = {};
      for (int64_t i = 0; i < pixels; i++, from += p.channels)
        for (int64_t c = 0; c < count; c++) sum[c] += (double)from[c];
      for (int64_t c = 0; c < count; c++) to[c] = (float)(sum[c] / (double)pixels);
    });
    return nullptr;
  }

  void pixel(const bw_pool& p, const float* image, int64_t oy, int64_t ox, float* __restrict y) const {
    int64_t taps = 0;
    for (int64_t ky = 0; ky < p.kh; ky++) {
      const int64_t iy = oy * p.stride_h - p.pad_h + ky * p.dil_h;
      if (iy < 0 || iy >= p.h) continue;
      for (int64_t kx = 0; kx < p.kw; kx++) {
        const int64_t ix = ox * p.stride_w - p.pad_w + kx * p.dil_w;
        if (ix < 0 || ix >= p.w) continue;
        const float* x = image + (iy * p.w + ix) * p.channels;
        if (!taps++) memcpy(y, x, (size_t)p.channels * sizeof(float));
        else if (average) for (int64_t c = 0; c < p.channels; c++) y[c] += x[c];
        else for (int64_t c = 0; c < p.channels; c++) y[c] = y[c] > x[c] ? y[c] : x[c];
      }
    }
    if (average) for (int64_t c = 0; c < p.channels; c++) y[c] /= (float)taps;
  }
};

// Every so many rows and columns, with channels of zeros in front of and behind the others.
struct SubsampleFloats : Kernel {
  int64_t strides[2], pads[2];

  BW_COLD ort::Status* create(const Node& node) override {
    BW_TRY(node.attributes("strides", strides, 2));
    BW_TRY(node.attributes("channel_pads", pads, 2));
    for (int i = 0; i < 2; i++)
      if (strides[i] < 1 || strides[i] > INT32_MAX || pads[i] < 0 || pads[i] > INT32_MAX)
        return node.fail("strides must be positive, channel_pads not negative");
    return nullptr;
  }

  ort::Status* run(const Call& call) const override {
    View x;
    BW_TRY(call.image(0, "x", sizeof(float), &x));
    const int64_t n = x.dims[0], h = x.dims[1], w = x.dims[2], c = x.dims[3], last = pads[0] + c + pads[1];
    const int64_t oh = bw_ceil_div(h, strides[0]), ow = bw_ceil_div(w, strides[1]);
    void* out;
    BW_TRY(call.image_out(0, n, oh, ow, last, &out));
    const Threads threads(call, PER_ELEMENT * (double)(n * oh * ow) * (double)last / 8);
    for_tasks(threads.count(), n * oh, [&](int64_t row) {
      const float* from = (const float*)x.data + (row / oh * h + row % oh * strides[0]) * w * c;
      float* to = (float*)out + row * ow * last;
      for (int64_t i = 0; i < ow; i++, from += strides[1] * c, to += last) {
        memset(to, 0, (size_t)pads[0] * sizeof(float));
        memcpy(to + pads[0], from, (size_t)c * sizeof(float));
        memset(to + pads[0] + c, 0, (size_t)pads[1] * sizeof(float));
      }
    });
    return nullptr;
  }
};

}  // namespace
