// Operators that make codes of floats, pool codes, or look at floats. Inputs and attributes are listed in ort_ops.cpp.
#pragma once
#include <math.h>

#include "ort_tensors.h"

namespace {

const double PER_ELEMENT = 60;  // work of packing or comparing one element, in multiplications of bits

// Per sample 0, or NaN where an element is NaN or so large that the sums of a net could leave the range of its proof.
struct Guard : Kernel {
  BW_COLD ort::Status* create(const Node&) override { return nullptr; }

  ort::Status* run(const Call& call) const override {
    View x;
    BW_TRY(call.input(0, "x", sizeof(float), &x));
    if (x.rank < 1) return call.fail("x must have at least one axis");
    void* out;
    BW_TRY(call.output(0, x.dims, 1, &out));
    if (!x.dims[0]) return nullptr;
    const int64_t size = x.count / x.dims[0];
    const Threads threads(call, PER_ELEMENT * (double)x.count);
    for_tasks(threads.count(), x.dims[0], [&](int64_t n) {
      ((float*)out)[n] = wrong((const float*)x.data + n * size, size) ? NAN : 0.0f;
    });
    return nullptr;
  }

  static bool wrong(const float* x, int64_t count) {
    int found = 0;
    for (int64_t i = 0; i < count; i++) found |= !(fabsf(x[i]) <= 1048576.0f);
    return found;
  }
};

// float -> codes: by thresholds, as words or bytes, or by a grid, as bytes.
struct Pack : Kernel {
  enum Form { BITS, BYTES, ROUND } form;
  int64_t channels_last, channels = 0;  // 0: any number
  bw_pack pack = {};
  bw_grid grid;
  Array<float> thresholds;
  Array<uint8_t> flip;
  explicit Pack(Form form) : form(form) {}

  BW_COLD ort::Status* create(const Node& node) override {
    BW_TRY(node.attribute("channels_last", &channels_last));
    pack.nchw = !channels_last;
    if (form == ROUND) {
      BW_TRY(node.grid(1, &grid));
      pack.grid = &grid;
      return nullptr;
    }
    View ladder;
    BW_TRY(node.constant(1, "thresholds", &thresholds, &ladder));
    BW_TRY(node.constant(2, "flip", &flip));
    if (ladder.rank < 1 || ladder.rank > 2) return node.fail("thresholds must be [L] or [C, L], got %zu axes", ladder.rank);
    pack.per_channel = ladder.rank == 2;
    pack.levels = ladder.dims[ladder.rank - 1];
    if (pack.levels < 1 || pack.levels > 255) return node.fail("%lld levels, 1 to 255 are possible", (long long)pack.levels);
    if (pack.per_channel) channels = ladder.dims[0];
    if (flip.count && pack.per_channel && flip.count != channels)
      return node.fail("flip is for %lld channels, thresholds for %lld", (long long)flip.count, (long long)channels);
    if (flip.count) channels = flip.count;
    bool flips = false;  // a file may state zeros; without flips the kernels have faster ways
    for (int64_t i = 0; i < flip.count; i++) flips |= flip.data[i] != 0;
    pack.thresholds = thresholds.data, pack.flip = flips ? flip.data : nullptr;
    if (form == BYTES) return nullptr;
    BW_TRY(node.attribute("planes", &pack.planes));
    BW_TRY(node.attribute("groups", &pack.groups));
    if (pack.planes < 1 || pack.planes > BW_MAX_PLANES) return node.fail("planes must be 1 to %d", BW_MAX_PLANES);
    if (pack.levels >= 1 << pack.planes)
      return node.fail("%lld levels do not fit %lld planes", (long long)pack.levels, (long long)pack.planes);
    return pack.groups > 0 ? nullptr : node.fail("groups must be positive");
  }

  ort::Status* run(const Call& call) const override {
    View x;
    BW_TRY(call.image(0, "x", sizeof(float), &x));
    bw_pack now = pack;
    now.n = x.dims[0], now.h = x.dims[channels_last ? 1 : 2];
    now.w = x.dims[channels_last ? 2 : 3], now.c = x.dims[channels_last ? 3 : 1];
    if (now.h < 1 || now.w < 1 || now.c < 1) return call.fail("x has an axis of no elements");
    if (channels && channels != now.c)
      return call.fail("thresholds or flip are for %lld channels, x has %lld", (long long)channels, (long long)now.c);
    if (form == BITS && now.c % now.groups)
      return call.fail("x has %lld channels, no multiple of groups = %lld", (long long)now.c, (long long)now.groups);
    void* out;
    const int64_t last = form == BITS ? 4 * now.planes * bw_words(now.c, now.groups) : now.c;
    BW_TRY(call.image_out(0, now.n, now.h, now.w, last, &out));
    const Threads threads(call, PER_ELEMENT * (double)x.count);
    const float* from = (const float*)x.data;
    return call.core(form == BITS ? bw_pack_bits(&now, from, (uint32_t*)out, threads.count())
                                  : bw_pack_bytes(&now, from, (uint8_t*)out, threads.count()));
  }
};

// kernel_shape, strides, dilations and pads of a pooling.
inline ort::Status* window_of(const Node& node, bw_pool* pool) {
  int64_t pair[2];
  BW_TRY(node.attributes("kernel_shape", pair, 2));
  pool->kh = pair[0], pool->kw = pair[1];
  BW_TRY(node.attributes("strides", pair, 2));
  pool->stride_h = pair[0], pool->stride_w = pair[1];
  BW_TRY(node.attributes("dilations", pair, 2));
  pool->dil_h = pair[0], pool->dil_w = pair[1];
  BW_TRY(node.pads(&pool->pad_h, &pool->pad_w));
  const int64_t limit = (int64_t)1 << 31;
  for (int64_t size : {pool->kh, pool->kw, pool->stride_h, pool->stride_w, pool->dil_h, pool->dil_w})
    if (size < 1 || size >= limit) return node.fail("kernel_shape, strides and dilations must be positive");
  // every window then meets the image
  if (pool->pad_h < 0 || pool->pad_h > pool->dil_h * (pool->kh - 1) || pool->pad_w < 0 ||
      pool->pad_w > pool->dil_w * (pool->kw - 1))
    return node.fail("pads must be smaller than the window");
  return nullptr;
}

// Windows start inside the image or the padding before it, as in torch.
inline int64_t pool_windows(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t ceil_mode) {
  const int64_t whole = bw_windows(in, kernel, stride, pad, dilation);
  const int64_t rest = in + 2 * pad - dilation * (kernel - 1) - 1;
  return whole && ceil_mode && rest % stride && whole * stride < in + pad ? whole + 1 : whole;
}

// The largest code of each window.
struct MaxPool : Kernel {
  int64_t planes, ceil_mode;
  bw_pool pool = {};

  BW_COLD ort::Status* create(const Node& node) override {
    BW_TRY(node.attribute("planes", &planes));
    BW_TRY(node.attribute("ceil_mode", &ceil_mode));
    if (planes < 0 || planes > BW_MAX_PLANES) return node.fail("planes must be 0 (bytes) to %d", BW_MAX_PLANES);
    pool.planes = planes ? planes : 1;
    return window_of(node, &pool);
  }

  ort::Status* run(const Call& call) const override {
    View x;
    BW_TRY(call.image(0, "codes", planes ? sizeof(uint32_t) : 1, &x));
    bw_pool now = pool;
    now.n = x.dims[0], now.h = x.dims[1], now.w = x.dims[2];
    const int64_t last = x.dims[3], unit = planes ? 4 * planes : 1;
    if (last < 1 || last % unit) return call.fail("codes of %lld bytes per pixel do not have %lld planes", (long long)last, (long long)planes);
    now.channels = last / unit;
    now.oh = pool_windows(now.h, now.kh, now.stride_h, now.pad_h, now.dil_h, ceil_mode);
    now.ow = pool_windows(now.w, now.kw, now.stride_w, now.pad_w, now.dil_w, ceil_mode);
    if (now.oh < 1 || now.ow < 1)
      return call.fail("codes of %lldx%lld are smaller than the window", (long long)now.h, (long long)now.w);
    void* out;
    BW_TRY(call.image_out(0, now.n, now.oh, now.ow, last, &out));
    const double pixels = (double)now.n * (double)now.oh * (double)now.ow;
    const Threads threads(call, pixels * (double)last * (double)(now.kh * now.kw) * 4);
    return call.core(planes ? bw_maxpool_bits(&now, (const uint32_t*)x.data, (uint32_t*)out, threads.count())
                            : bw_maxpool_bytes(&now, (const uint8_t*)x.data, (uint8_t*)out, threads.count()));
  }
};

}  // namespace
