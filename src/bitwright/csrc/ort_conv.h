// Convolution operators: one base with what is common, one class per kind of result. Inputs and attributes are listed in
// ort_ops.cpp.
#pragma once
#include <math.h>

#include "ort_borders.h"

namespace {

const int COMMON = 7;  // inputs before those of the result

struct Convolution : Kernel {
  bw_conv conv = {};
  bw_output output = {};
  bool bytes = false;
  double work = 0;  // per pixel of the result
  Array<int32_t> x_mult, w_mult, taps;
  bool taps_alike = false;  // one row of taps for all outputs
  Array<uint8_t> weights;
  KnownBorders known;

  // The constants of the result, into `output`.
  virtual ort::Status* create_output(const Node& node) = 0;
  virtual ort::Status* compute(const Call& call, const bw_conv& now, const void* x) const = 0;

  BW_COLD ort::Status* create(const Node& node) override {
    BW_TRY(geometry(node));
    BW_TRY(border_taps(node));
    BW_TRY(pack(node));
    return create_output(node);
  }

  BW_COLD ort::Status* geometry(const Node& node) {
    int64_t pair[2];
    BW_TRY(node.attribute("x_planes", &conv.x_planes));
    BW_TRY(node.attribute("group", &conv.groups));
    BW_TRY(node.attributes("strides", pair, 2));
    conv.stride_h = pair[0], conv.stride_w = pair[1];
    BW_TRY(node.attributes("dilations", pair, 2));
    conv.dil_h = pair[0], conv.dil_w = pair[1];
    BW_TRY(node.pads(&conv.pad_h, &conv.pad_w));
    Array<int64_t> shape;
    BW_TRY(node.constant_of(2, "shape", 5, &shape));
    conv.w_planes = shape.data[0], conv.o = shape.data[1], conv.kh = shape.data[3], conv.kw = shape.data[4];
    for (int64_t size : {conv.w_planes, conv.o, shape.data[2], conv.kh, conv.kw, conv.stride_h, conv.stride_w, conv.dil_h,
                         conv.dil_w, conv.groups})
      if (size < 1 || size >= (int64_t)1 << 31) return node.fail("shape, strides, dilations and group must be positive");
    for (int64_t pad : {conv.pad_h, conv.pad_w})
      if (pad < 0 || pad >= (int64_t)1 << 31) return node.fail("pads must not be negative");
    if (conv.x_planes < -BW_MAX_PLANES || conv.x_planes > BW_MAX_PLANES)
      return node.fail("x_planes must be -%d (bytes of so many bits) to %d", BW_MAX_PLANES, BW_MAX_PLANES);
    bytes = conv.x_planes <= 0;
    if (bytes) conv.x_planes = -conv.x_planes;
    conv.c = shape.data[2] * conv.groups;
    return nullptr;
  }

  BW_COLD ort::Status* border_taps(const Node& node) {
    View seen;
    BW_TRY(node.constant(6, "taps", &taps, &seen));
    taps_alike = seen.rank == 3 && seen.dims[0] == 1;
    if (seen.rank == 3 && (taps_alike || seen.dims[0] == conv.o) && seen.dims[1] == conv.kh && seen.dims[2] == conv.kw) return nullptr;
    return node.fail("taps must be [%lld, %lld, %lld], or one row for all", (long long)conv.o, (long long)conv.kh, (long long)conv.kw);
  }

  // Weights into the layout of the kernels. The multipliers belong to the bits; bytes take W * x_mult as one number.
  BW_COLD ort::Status* pack(const Node& node) {
    const int64_t positions = conv.kh * conv.kw, channels = conv.c / conv.groups;
    Array<uint8_t> stored, bits;
    Array<int32_t> zero, factor;
    BW_TRY(node.constant_of(3, "mult", conv.w_planes, &w_mult));
    BW_TRY(node.constant_of(4, "zero", 1, &zero));
    BW_TRY(node.constant_of(5, "x_mult", 1, &factor));
    int64_t row, plane, total;
    if (__builtin_mul_overflow(positions, channels, &row) || __builtin_mul_overflow(row, conv.o, &plane) ||
        __builtin_mul_overflow(plane, conv.w_planes, &total) || total > (int64_t)1 << 50)
      return node.fail("shape is too large");
    BW_TRY(node.constant_of(1, "bits", (total + 7) / 8, &stored));
    const int64_t parts = bytes ? channels : bw_ceil_div(channels, 32) * 32 * conv.x_planes * conv.w_planes;
    work = (double)(conv.o * positions) * (double)parts * (bytes ? PER_BYTE : 1);
    if (bytes) return pack_bytes(node, stored.data, zero.data[0], factor.data[0]);

    double weight = fabs((double)zero.data[0]);
    for (int64_t q = 0; q < conv.w_planes; q++) weight += fabs((double)w_mult.data[q]);
    const double product = weight * fabs((double)factor.data[0]) * (double)(1 << conv.x_planes);
    if (!(product < 0x1p30 && product * (double)row < 0x1p34)) return node.fail("its sums of products may exceed 32 bits");
    if (!x_mult.make(conv.x_planes) || !bits.make(total)) return node.no_memory();
    for (int64_t p = 0; p < conv.x_planes; p++) x_mult.data[p] = factor.data[0] * (1 << p);
    for (int64_t i = 0; i < total; i++) bits.data[i] = stored.data[i / 8] >> i % 8 & 1;
    conv.w_zero = zero.data[0], conv.w_mult = w_mult.data, conv.x_mult = x_mult.data;
    const int64_t size = bw_weights_size(&conv);
    if (size < 0) return node.core(BW_BAD_ARGUMENT);
    if (!weights.make(size)) return node.no_memory();
    return node.core(bw_weights_pack(&conv, bits.data, weights.data));
  }

  BW_COLD ort::Status* pack_bytes(const Node& node, const uint8_t* stored, int64_t zero, int64_t factor) {
    const int64_t positions = conv.kh * conv.kw, channels = conv.c / conv.groups, plane = conv.o * channels * positions;
    Array<int16_t> values;  // [o][position][channel]
    if (!values.make(plane)) return node.no_memory();
    for (int64_t i = 0; i < plane; i++) {
      int64_t value = zero;
      for (int64_t q = 0, bit = i; q < conv.w_planes; q++, bit += plane)
        if (stored[bit / 8] >> bit % 8 & 1) value += w_mult.data[q];
      if (__builtin_mul_overflow(value, factor, &value) || value < -255 || value > 255)
        return node.fail("a weight times x_mult lies outside -255..255");
      const int64_t o = i / (channels * positions), c = i / positions % channels, at = i % positions;
      values.data[(o * positions + at) * channels + c] = (int16_t)value;
    }
    const int64_t size = bw_byte_weights_size(&conv);
    if (size < 0) return node.core(BW_BAD_ARGUMENT);
    if (!weights.make(size)) return node.no_memory();
    return node.core(bw_byte_weights_pack(&conv, values.data, weights.data));
  }

  ort::Status* run(const Call& call) const override {
    View x;
    BW_TRY(call.image(0, "codes", bytes ? 1 : sizeof(uint32_t), &x));
    const int64_t width = bytes ? conv.c : 4 * conv.x_planes * bw_words(conv.c, conv.groups);
    if (x.dims[3] != width)
      return call.fail("codes have %lld bytes per pixel, %lld channels need %lld", (long long)x.dims[3], (long long)conv.c,
                       (long long)width);
    bw_conv now = conv;
    now.n = x.dims[0], now.h = x.dims[1], now.w = x.dims[2];
    now.oh = bw_windows(now.h, now.kh, now.stride_h, now.pad_h, now.dil_h);
    now.ow = bw_windows(now.w, now.kw, now.stride_w, now.pad_w, now.dil_w);
    if (now.oh < 1 || now.ow < 1)
      return call.fail("codes of %lldx%lld are smaller than the kernel", (long long)now.h, (long long)now.w);
    const Borders* borders = known.find(now.h, now.w);
    Borders* made = nullptr;
    bool kept = true;
    if (!borders) {
      made = new (std::nothrow) Borders;
      if (!made || !made->make(now, taps.data, taps_alike)) {
        delete made;
        return call.no_memory();
      }
      kept = known.keep(made), borders = made;
    }
    borders->into(&now);
    ort::Status* status = compute(call, now, x.data);
    if (!kept) delete made;
    return status;
  }

  ort::Status* execute(const Call& call, const bw_conv& now, const void* x, void* out, const float* residual = nullptr,
                       void* extra = nullptr) const {
    const Threads threads(call, work * (double)(now.n * now.oh) * (double)now.ow);
    const int count = threads.count();
    return call.core(bytes ? bw_conv_bytes(&now, (const uint8_t*)x, weights.data, &output, out, residual, extra, count)
                           : bw_conv_bits(&now, (const uint32_t*)x, weights.data, &output, out, residual, extra, count));
  }

 private:
  static constexpr double PER_BYTE = 6;  // what a product of bytes costs, in products of bits
};

struct ConvInt : Convolution {
  BW_COLD ort::Status* create_output(const Node&) override {
    output.mode = BW_INT32;
    return nullptr;
  }
  ort::Status* compute(const Call& call, const bw_conv& now, const void* x) const override {
    void* out;
    BW_TRY(call.image_out(0, now.n, now.oh, now.ow, now.o, &out));
    return execute(call, now, x, out);
  }
};

// Floats, and beside them codes for the next layer: none, one bit by a cut, or bytes by a grid. They may be pooled first.
struct ConvFloat : Convolution {
  enum Beside { NOTHING, CUT, LADDER, ROUND } beside;
  const bool pools;
  bool has_residual = false;
  int64_t out_bytes = 1;
  bw_grid grid;
  Array<float> scale, add, cuts;
  Array<uint8_t> flip;
  explicit ConvFloat(Beside beside, bool pools = false) : beside(beside), pools(pools) {}

  BW_COLD ort::Status* create_output(const Node& node) override {
    output.mode = BW_FLOAT32;
    BW_TRY(node.constant_of(COMMON, "scale", conv.o, &scale));
    BW_TRY(node.constant_of(COMMON + 1, "add", conv.o, &add));
    output.scale = scale.data, output.add = add.data;
    Array<float> floor;
    BW_TRY(node.constant_of(COMMON + 2, "floor", 1, &floor));
    output.relu = floor.data[0] == 0.0f;
    if (!output.relu && floor.data[0] != -INFINITY) return node.fail("floor must be 0 (relu) or -inf (none)");
    BW_TRY(node.residual(COMMON + 3, &has_residual));
    if (pools) BW_TRY(pooling(node));
    if (beside == CUT) {
      BW_TRY(node.constant_of(COMMON + 4, "cuts", conv.o, &cuts));
      BW_TRY(node.constant_or_none(COMMON + 5, "flip", conv.o, &flip));
      BW_TRY(node.attribute("out_bytes", &out_bytes));
      output.cuts = cuts.data, output.flip = flip.or_null(), output.extra_bytes = out_bytes != 0;
    } else if (beside == LADDER) {
      View ladder;
      BW_TRY(node.constant(COMMON + 4, "cuts", &cuts, &ladder));
      if (ladder.rank != 2 || ladder.dims[1] != conv.o || ladder.dims[0] < 2 || ladder.dims[0] > 255)
        return node.fail("cuts must be [L, %lld], with 2 to 255 levels", (long long)conv.o);
      output.cuts = cuts.data, output.levels = ladder.dims[0], out_bytes = 0, output.out_planes = 1;
      while (output.levels >> output.out_planes) output.out_planes++;
    } else if (beside == ROUND) {
      BW_TRY(node.grid(COMMON + 4, &grid));
      output.grid = &grid;
    }
    return nullptr;
  }

  BW_COLD ort::Status* pooling(const Node& node) {
    int64_t kernel[2], stride[2], pads[4];
    BW_TRY(node.attributes("pool_kernel", kernel, 2));
    BW_TRY(node.attributes("pool_strides", stride, 2));
    BW_TRY(node.attributes("pool_pads", pads, 4));
    if (kernel[0] != kernel[1] || stride[0] != stride[1] || pads[0] != pads[1] || pads[0] != pads[2] || pads[0] != pads[3])
      return node.fail("pooling windows must be square");
    if (has_residual) return node.fail("floats that are pooled take no residual");
    output.pool_kernel = kernel[0], output.pool_stride = stride[0], output.pool_pad = pads[0];
    if (kernel[0] < 1 || kernel[0] > BW_MAX_POOL || stride[0] < 1 || stride[0] > BW_MAX_POOL || pads[0] < 0 ||
        pads[0] >= kernel[0])
      return node.fail("pool_kernel and pool_strides must be 1 to %d, pool_pads smaller than the window", BW_MAX_POOL);
    return nullptr;
  }

  int64_t pooled(int64_t size) const {
    return pools ? bw_windows(size, output.pool_kernel, output.pool_stride, output.pool_pad, 1) : size;
  }

  ort::Status* compute(const Call& call, const bw_conv& now, const void* x) const override {
    View residual;
    if (has_residual) BW_TRY(call.like_result(COMMON + 3, now.n, now.oh, now.ow, now.o, &residual));
    void *out, *extra = nullptr;
    const int64_t oh = pooled(now.oh), ow = pooled(now.ow);
    if (oh < 1 || ow < 1) return call.fail("the result of %lldx%lld is smaller than a pooling window", (long long)now.oh, (long long)now.ow);
    BW_TRY(call.image_out(0, now.n, oh, ow, now.o, &out));
    const int64_t width = out_bytes ? now.o : 4 * bw_words(now.o, 1) * (beside == LADDER ? output.out_planes : 1);
    if (beside != NOTHING) BW_TRY(call.image_out(1, now.n, oh, ow, width, &extra));
    return execute(call, now, x, out, (const float*)residual.data, extra);
  }
};

// Codes only: by thresholds of the sums, or by a grid of the floats.
struct ConvCodes : Convolution {
  enum By { THRESHOLDS, ROUND } by;
  int64_t width;
  bw_grid grid;
  Array<float> scale, add;
  Array<int32_t> thresholds;
  Array<uint8_t> flip;
  explicit ConvCodes(By by) : by(by) {}

  BW_COLD ort::Status* create_output(const Node& node) override {
    output.mode = BW_BYTES;
    width = conv.o;
    if (by == ROUND) {
      BW_TRY(node.constant_of(COMMON, "scale", conv.o, &scale));
      BW_TRY(node.constant_of(COMMON + 1, "add", conv.o, &add));
      BW_TRY(node.grid(COMMON + 2, &grid));
      output.scale = scale.data, output.add = add.data, output.grid = &grid;
      return nullptr;
    }
    View ladder;
    int64_t out_bytes;
    BW_TRY(node.constant(COMMON, "thresholds", &thresholds, &ladder));
    BW_TRY(node.constant_or_none(COMMON + 1, "flip", conv.o, &flip));
    BW_TRY(node.attribute("out_bytes", &out_bytes));
    if (ladder.rank != 2 || ladder.dims[1] != conv.o) return node.fail("thresholds must be [L, %lld]", (long long)conv.o);
    output.levels = ladder.dims[0], output.thresholds = thresholds.data, output.flip = flip.or_null();
    if (output.levels < 1 || output.levels > 255) return node.fail("%lld levels, 1 to 255 are possible", (long long)output.levels);
    if (out_bytes) return nullptr;
    output.mode = BW_WORDS;
    BW_TRY(node.attribute("out_planes", &output.out_planes));
    BW_TRY(node.attribute("out_groups", &output.out_groups));
    if (output.out_planes < 1 || output.out_planes > BW_MAX_PLANES) return node.fail("out_planes must be 1 to %d", BW_MAX_PLANES);
    if (output.levels >= 1 << output.out_planes)
      return node.fail("%lld levels do not fit %lld planes", (long long)output.levels, (long long)output.out_planes);
    if (output.out_groups < 1 || conv.o % output.out_groups)
      return node.fail("%lld channels are no multiple of out_groups = %lld", (long long)conv.o, (long long)output.out_groups);
    width = 4 * output.out_planes * bw_words(conv.o, output.out_groups);
    return nullptr;
  }

  ort::Status* compute(const Call& call, const bw_conv& now, const void* x) const override {
    void* out;
    BW_TRY(call.image_out(0, now.n, now.oh, now.ow, width, &out));
    return execute(call, now, x, out);
  }
};

}  // namespace
