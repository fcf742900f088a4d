// Pooling of floats whose channels are last: the order that layers with bits write and read. Attributes are listed in
// ort_ops.cpp.
#pragma once
#include "ort_codes.h"

namespace {

// The largest, or the average, of each window, or the mean of an image. Taps outside the image never win and never count.
struct PoolFloats : Kernel {
  const enum Of { LARGEST, AVERAGE, MEAN } of;
  bw_pool pool = {};
  int64_t ceil_mode = 0;
  explicit PoolFloats(Of of) : of(of) {}

  BW_COLD ort::Status* create(const Node& node) override {
    pool.planes = pool.stride_h = pool.stride_w = pool.dil_h = pool.dil_w = 1;
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
    return call.core((of == AVERAGE ? bw_avgpool_floats : bw_maxpool_floats)(&now, (const float*)x.data, (float*)out, threads.count()));
  }

  ort::Status* mean(const Call& call, const bw_pool& p, const float* x) const {
    void* out;
    BW_TRY(call.image_out(0, p.n, 1, 1, p.channels, &out));
    const Threads threads(call, PER_ELEMENT * (double)(p.n * p.h * p.w * p.channels) / 4);
    return call.core(bw_mean_floats(&p, x, (float*)out, threads.count()));
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
    const bw_subsample now = {x.dims[0], x.dims[1], x.dims[2], x.dims[3], strides[0], strides[1], pads[0], pads[1]};
    const int64_t oh = bw_ceil_div(now.h, now.stride_h), ow = bw_ceil_div(now.w, now.stride_w), last = now.before + now.c + now.behind;
    void* out;
    BW_TRY(call.image_out(0, now.n, oh, ow, last, &out));
    const Threads threads(call, PER_ELEMENT * (double)(now.n * oh * ow) * (double)last / 8);
    return call.core(bw_subsample_floats(&now, (const float*)x.data, (float*)out, threads.count()));
  }
};

}  // namespace
