// Float convolutions whose channels are last. Inputs and attributes are listed in ort_ops.cpp.
#pragma once
#include "ort_tensors.h"

namespace {

struct ConvFloats : Kernel {
  static constexpr double PER_PRODUCT = 32;  // work of a product of floats, in multiplications of bits
  bw_floats layer = {};
  bool has_residual = false;
  Array<float> add;
  Array<uint8_t> weights;  // none: the weight is no constant, each run packs it

  BW_COLD ort::Status* create(const Node& node) override {
    int64_t pair[2], channels_last;
    BW_TRY(node.attribute("channels_last", &channels_last));
    BW_TRY(node.attributes("strides", pair, 2));
    layer.stride_h = pair[0], layer.stride_w = pair[1];
    BW_TRY(node.attributes("dilations", pair, 2));
    layer.dil_h = pair[0], layer.dil_w = pair[1];
    BW_TRY(node.pads(&layer.pad_h, &layer.pad_w));
    for (int64_t size : {layer.stride_h, layer.stride_w, layer.dil_h, layer.dil_w})
      if (size < 1) return node.fail("strides and dilations must be positive");
    if (layer.pad_h < 0 || layer.pad_w < 0) return node.fail("pads must not be negative");
    layer.nchw = !channels_last;
    Array<float> floor;
    BW_TRY(node.constant(2, "add", &add));
    BW_TRY(node.constant_of(3, "floor", 1, &floor));
    layer.relu = floor.data[0] == 0.0f;
    if (!layer.relu && !(floor.data[0] < -3e38f)) return node.fail("floor must be 0 or -inf");
    BW_TRY(node.residual(4, &has_residual));
    const ort::Value* given;
    BW_TRY(node.maybe_constant(1, &given));
    if (!given) return nullptr;
    View weight;
    BW_TRY(node.view(given, &weight));
    return prepare(node, weight, &layer, &weights);
  }

  // The sizes that follow from the weight, and its layout for the kernels.
  ort::Status* prepare(const Place& place, const View& weight, bw_floats* to, Array<uint8_t>* packed) const {
    if (weight.rank != 4 || !weight.count) return place.fail("weight must be [O, C, kh, kw]");
    to->o = weight.dims[0], to->c = weight.dims[1], to->kh = weight.dims[2], to->kw = weight.dims[3];
    if (add.count != to->o) return place.fail("add has %lld elements, weight %lld outputs", (long long)add.count, (long long)to->o);
    const int64_t size = bw_floats_size(to);
    if (size < 0) return place.core(BW_BAD_ARGUMENT);
    if (!packed->make(size)) return place.no_memory();
    return place.core(bw_floats_pack(to, (const float*)weight.data, add.data, packed->data));
  }

  ort::Status* run(const Call& call) const override {
    View x, residual;
    bw_floats now = layer;
    Array<uint8_t> made;
    if (!weights.count) {
      View weight;
      BW_TRY(call.input(1, "weight", sizeof(float), &weight));
      BW_TRY(prepare(call, weight, &now, &made));
    }
    BW_TRY(call.image(0, "x", sizeof(float), &x));
    now.n = x.dims[0], now.h = x.dims[now.nchw ? 2 : 1], now.w = x.dims[now.nchw ? 3 : 2];
    const int64_t channels = x.dims[now.nchw ? 1 : 3];
    if (channels != now.c) return call.fail("x has %lld channels, weight %lld", (long long)channels, (long long)now.c);
    now.oh = bw_windows(now.h, now.kh, now.stride_h, now.pad_h, now.dil_h);
    now.ow = bw_windows(now.w, now.kw, now.stride_w, now.pad_w, now.dil_w);
    if (now.oh < 1 || now.ow < 1) return call.fail("x of %lldx%lld is smaller than the window", (long long)now.h, (long long)now.w);
    if (has_residual) BW_TRY(call.like_result(4, now.n, now.oh, now.ow, now.o, &residual));
    void* out;
    BW_TRY(call.image_out(0, now.n, now.oh, now.ow, now.o, &out));
    const double products = (double)(now.n * now.oh * now.ow) * (double)(now.o * now.c * now.kh * now.kw);
    const Threads threads(call, PER_PRODUCT * products);
    const void* ready = weights.count ? weights.data : made.data;
    return call.core(bw_conv_floats(&now, (const float*)x.data, ready, (float*)out, (const float*)residual.data, threads.count()));
  }
};

}  // namespace
