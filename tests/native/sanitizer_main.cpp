// Runs every entry point on random awkward shapes, every instruction set against `portable`, in buffers of the
// exact size, so that AddressSanitizer sees a read or write one element too far. Prints one line, exits 0 or 1.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <string>
#include <vector>

#include "bitwright.h"

namespace {

std::mt19937 random_bits(1);
int pick(int low, int high) { return low + (int)(random_bits() % (unsigned)(high - low + 1)); }
int64_t words(int64_t c, int64_t groups) { return groups * ((c / groups + 31) / 32); }

void check(int code, const char* what) {
  if (!code) return;
  fprintf(stderr, "%s: %s\n", what, bw_last_error());
  exit(1);
}

// Exactly `bytes` long and 64-byte aligned.
struct Memory {
  size_t bytes;
  uint8_t* data = nullptr;
  explicit Memory(size_t n) : bytes(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, n)) exit(1);
    data = (uint8_t*)memory;
    memset(data, 0xa5, n);
  }
  Memory(const Memory&) = delete;
  ~Memory() { free(data); }
};

std::vector<uint8_t> copy_of(const Memory& memory) { return {memory.data, memory.data + memory.bytes}; }

bw_output random_output(int64_t o, std::vector<float>& floats, std::vector<int32_t>& thresholds,
                        std::vector<uint8_t>& flips) {
  bw_output output = {};
  output.mode = pick(0, 3);
  output.out_planes = pick(1, 8);
  output.levels = pick(1, (1 << output.out_planes) - 1);
  if (pick(0, 1)) output.levels = output.out_planes = 1;
  output.out_groups = pick(0, 2) == 0 ? o : o % 2 == 0 ? pick(1, 2) : 1;
  floats.resize((size_t)o * 2);
  for (float& f : floats) f = (float)pick(-100, 100) / 7.0f;
  thresholds.resize((size_t)(output.levels * o));
  for (int64_t i = 0; i < o; i++) {
    int32_t level = pick(-200, 0);
    for (int64_t l = 0; l < output.levels; l++) thresholds[(size_t)(l * o + i)] = level += pick(0, 5);
  }
  flips.resize((size_t)o);
  for (uint8_t& f : flips) f = (uint8_t)pick(0, 1);
  output.scale = floats.data(), output.add = floats.data() + o;
  output.thresholds = thresholds.data();
  output.flip = pick(0, 1) ? flips.data() : nullptr;
  return output;
}

size_t output_bytes(const bw_output& output, int64_t pixels, int64_t o) {
  if (output.mode == BW_WORDS) return (size_t)(pixels * output.out_planes * words(o, output.out_groups)) * 4;
  return (size_t)(pixels * o) * (output.mode == BW_BYTES ? 1 : 4);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  std::string all = bw_available_isas();
  for (size_t at = 0; at < all.size();) {
    const size_t space = all.find(' ', at) == std::string::npos ? all.size() : all.find(' ', at);
    names.push_back(all.substr(at, space - at));
    at = space + 1;
  }
  return names;
}

// Runs `once` under every instruction set and compares what it returns.
template <class Once>
void same_everywhere(const char* what, const Once& once) {
  std::vector<uint8_t> want;
  for (const std::string& isa : isas()) {
    check(bw_force_isa(isa.c_str()), "force");
    for (int threads = 1; threads <= 2; threads++) {
      const std::vector<uint8_t> got = once(threads);
      if (want.empty()) want = got;
      if (got == want) continue;
      fprintf(stderr, "%s: %s with %d threads differs from portable\n", what, isa.c_str(), threads);
      exit(1);
    }
  }
}

void convolution(bool bits) {
  bw_conv conv = {};
  conv.groups = pick(0, 3) ? 1 : pick(2, 3);
  conv.n = pick(1, 3), conv.c = conv.groups * pick(1, 70), conv.o = conv.groups * pick(1, 70);
  conv.kh = pick(1, 4), conv.kw = pick(1, 4), conv.stride_h = pick(1, 3), conv.stride_w = pick(1, 3);
  conv.pad_h = pick(0, 2), conv.pad_w = pick(0, 2), conv.dil_h = pick(1, 2), conv.dil_w = pick(1, 2);
  conv.h = pick(1, 8) + conv.dil_h * (conv.kh - 1), conv.w = pick(1, 8) + conv.dil_w * (conv.kw - 1);
  if (!pick(0, 5)) conv.h += pick(0, 30), conv.w += pick(0, 30);  // more tiles than one task takes
  if (!pick(0, 3)) conv.pad_h = conv.pad_w = 0, conv.dil_h = conv.dil_w = 1, conv.h = conv.kh, conv.w = conv.kw;
  const bool small = !bits && !pick(0, 2);  // what Winograd's kernel takes
  if (small) {
    conv.groups = 1, conv.c = pick(30, 140), conv.o = pick(15, 100), conv.kh = conv.kw = 3, conv.stride_h = conv.stride_w = 1;
    conv.dil_h = conv.dil_w = 1, conv.h = pick(3, 20), conv.w = pick(3, 20);
  }
  conv.oh = (conv.h + 2 * conv.pad_h - conv.dil_h * (conv.kh - 1) - 1) / conv.stride_h + 1;
  conv.ow = (conv.w + 2 * conv.pad_w - conv.dil_w * (conv.kw - 1) - 1) / conv.stride_w + 1;
  conv.x_planes = small ? pick(1, 6) : pick(1, 3), conv.w_planes = pick(1, 3), conv.w_zero = pick(-3, 3);
  if (!bits && pick(0, 1)) conv.x_planes = 0;
  int32_t x_mult[3], w_mult[3];
  for (int i = 0; i < 3; i++) x_mult[i] = pick(-5, 5), w_mult[i] = pick(-5, 5);
  if (pick(0, 1)) conv.w_planes = 1, w_mult[0] = 2, conv.w_zero = -1;
  if (pick(0, 1)) x_mult[0] = pick(1, 2), x_mult[1] = 2 * x_mult[0], x_mult[2] = 4 * x_mult[0];
  conv.x_mult = x_mult, conv.w_mult = w_mult;
  conv.row_classes = 2, conv.col_classes = 3;
  std::vector<int32_t> rows((size_t)conv.oh), cols((size_t)conv.ow), corr((size_t)(6 * conv.o));
  for (int32_t& v : rows) v = pick(0, 1);
  for (int32_t& v : cols) v = pick(0, 2);
  for (int32_t& v : corr) v = pick(-50, 50);
  conv.row_class = rows.data(), conv.col_class = cols.data(), conv.corr = corr.data();

  const int64_t pixels = conv.n * conv.oh * conv.ow, cg = conv.c / conv.groups;
  const int64_t in_pixels = conv.n * conv.h * conv.w, weights = conv.o * cg * conv.kh * conv.kw;
  std::vector<float> floats;
  std::vector<int32_t> thresholds;
  std::vector<uint8_t> flips, codes((size_t)(in_pixels * conv.c));
  bw_output output = random_output(conv.o, floats, thresholds, flips);
  bw_grid grid = {(float)pick(1, 9) / 4, pick(0, 2), pick(-9, 9), 0, pick(1, 255), 0, 0, 0, 0};
  if (pick(0, 1)) check(bw_grid_prepare(&grid), "grid");
  std::vector<float> cuts((size_t)conv.o);
  for (float& v : cuts) v = (float)pick(-9, 9);
  output.relu = pick(0, 1), output.extra_bytes = pick(0, 1);
  if (pick(0, 1)) output.cuts = cuts.data();
  if (pick(0, 1) && output.mode != BW_WORDS) output.grid = &grid;
  for (uint8_t& v : codes) v = (uint8_t)pick(0, conv.x_planes ? (1 << conv.x_planes) - 1 : 255);
  Memory x(bits ? (size_t)(in_pixels * conv.x_planes * words(conv.c, conv.groups)) * 4 : codes.size());
  if (bits) check(bw_bytes_to_bits(codes.data(), in_pixels, conv.x_planes, conv.c, conv.groups, (uint32_t*)x.data), "to bits");
  else memcpy(x.data, codes.data(), codes.size());
  std::vector<uint8_t> weight_bits((size_t)(weights * conv.w_planes));
  std::vector<int16_t> weight_values((size_t)weights);
  const int limit = small ? 14 : pick(0, 1) ? 127 : 255;
  for (uint8_t& v : weight_bits) v = (uint8_t)pick(0, 1);
  const bool listed = !pick(0, 3);  // so few are not zero that the kernel keeps lists of them
  for (int16_t& v : weight_values) v = (int16_t)(listed && pick(0, 300) ? 0 : listed && pick(0, 1) ? pick(-1, 1) : pick(-limit, limit));
  std::vector<float> residual((size_t)(pixels * conv.o));
  for (float& v : residual) v = (float)pick(-9, 9);
  int64_t results = pixels;
  if (output.mode == BW_FLOAT32 && pick(0, 1)) {
    const int64_t kernel = pick(1, 4), stride = pick(1, 3), pad = pick(0, (int)kernel - 1);
    const int64_t high = conv.oh + 2 * pad - kernel, wide = conv.ow + 2 * pad - kernel;
    if (high >= 0 && wide >= 0) {
      output.pool_kernel = kernel, output.pool_stride = stride, output.pool_pad = pad;
      results = conv.n * (high / stride + 1) * (wide / stride + 1);
    }
  }
  const bool with_residual = !output.pool_kernel && pick(0, 1), with_extra = pick(0, 1);

  same_everywhere(bits ? "conv_bits" : "conv_bytes", [&](int threads) {
    const int64_t size = bits ? bw_weights_size(&conv) : bw_byte_weights_size(&conv);
    Memory packed((size_t)size), out(output_bytes(output, results, conv.o));
    const bool bytes = output.grid || output.extra_bytes;
    Memory extra((size_t)(bytes ? results * conv.o : results * words(conv.o, 1) * 4));
    check(bits ? bw_weights_pack(&conv, weight_bits.data(), packed.data)
               : bw_byte_weights_pack(&conv, weight_values.data(), packed.data), "weights");
    const float* add = with_residual ? residual.data() : nullptr;
    void* beside = with_extra ? extra.data : nullptr;
    check(bits ? bw_conv_bits(&conv, (const uint32_t*)x.data, packed.data, &output, out.data, add, beside, threads)
               : bw_conv_bytes(&conv, x.data, packed.data, &output, out.data, add, beside, threads), "conv");
    std::vector<uint8_t> result = copy_of(out);
    if (output.mode == BW_FLOAT32) result.insert(result.end(), extra.data, extra.data + extra.bytes);
    return result;
  });
}

void packing() {
  bw_pack pack = {};
  pack.n = pick(1, 2), pack.h = pick(1, 9), pack.w = pick(1, 9), pack.groups = pick(1, 3), pack.c = pack.groups * pick(1, 70);
  pack.nchw = pick(0, 1), pack.planes = pick(1, 8), pack.per_channel = pick(0, 1);
  pack.levels = pick(1, (1 << pack.planes) - 1);
  if (pick(0, 1)) pack.levels = 1;
  std::vector<float> ladder((size_t)(pack.levels * (pack.per_channel ? pack.c : 1)));
  for (size_t i = 0; i < ladder.size(); i++)
    ladder[i] = i % (size_t)pack.levels ? ladder[i - 1] + (float)pick(0, 3) : (float)pick(-9, 2);
  std::vector<uint8_t> flips((size_t)pack.c);
  for (uint8_t& v : flips) v = (uint8_t)pick(0, 1);
  pack.thresholds = ladder.data(), pack.flip = pick(0, 1) ? flips.data() : nullptr;
  const int64_t pixels = pack.n * pack.h * pack.w;
  std::vector<float> x((size_t)(pixels * pack.c));
  for (float& v : x) v = pick(0, 20) ? (float)pick(-90, 90) / 8.0f : pick(0, 1) ? __builtin_nanf("") : __builtin_inff();
  same_everywhere("pack_bits", [&](int threads) {
    Memory out((size_t)(pixels * pack.planes * words(pack.c, pack.groups)) * 4);
    check(bw_pack_bits(&pack, x.data(), (uint32_t*)out.data, threads), "pack_bits");
    return copy_of(out);
  });
  same_everywhere("pack_bytes", [&](int threads) {
    Memory out((size_t)(pixels * pack.c));
    check(bw_pack_bytes(&pack, x.data(), out.data, threads), "pack_bytes");
    return copy_of(out);
  });
}

void pooling() {
  bw_pool pool = {};
  pool.n = pick(1, 2), pool.channels = pick(1, 40), pool.planes = pick(1, 4), pool.kh = pick(1, 3), pool.kw = pick(1, 3);
  pool.stride_h = pick(1, 3), pool.stride_w = pick(1, 3), pool.pad_h = pool.kh / 2, pool.pad_w = pool.kw / 2;
  pool.dil_h = pool.dil_w = 1, pool.h = pick(pool.kh, 8), pool.w = pick(pool.kw, 8);
  pool.oh = (pool.h + 2 * pool.pad_h - pool.kh) / pool.stride_h + 1;
  pool.ow = (pool.w + 2 * pool.pad_w - pool.kw) / pool.stride_w + 1;
  Memory x((size_t)(pool.n * pool.h * pool.w * pool.planes * pool.channels) * 4);
  for (size_t i = 0; i < x.bytes; i++) x.data[i] = (uint8_t)pick(0, 255);
  same_everywhere("maxpool_bits", [&](int threads) {
    Memory out((size_t)(pool.n * pool.oh * pool.ow * pool.planes * pool.channels) * 4);
    check(bw_maxpool_bits(&pool, (const uint32_t*)x.data, (uint32_t*)out.data, threads), "maxpool_bits");
    return copy_of(out);
  });
  same_everywhere("maxpool_bytes", [&](int threads) {
    Memory out((size_t)(pool.n * pool.oh * pool.ow * pool.channels));
    check(bw_maxpool_bytes(&pool, x.data, out.data, threads), "maxpool_bytes");
    return copy_of(out);
  });
}

// A quantizer, the convolutions of two terms and their sum in one run: the same as one by one.
void run() {
  const int64_t pixels = pick(1, 40), c = pick(1, 70), o = pick(1, 70), line = 64;
  const float threshold = 0.5f;
  bw_pack pack = {};
  pack.n = pack.h = pack.levels = 1, pack.w = pixels, pack.c = c, pack.thresholds = &threshold, pack.planes = 1, pack.groups = 1;
  std::vector<int32_t> classes((size_t)pixels), corr((size_t)o);
  for (int32_t& v : corr) v = pick(-50, 50);
  bw_conv conv = {};
  conv.n = conv.h = conv.kh = conv.kw = conv.stride_h = conv.stride_w = conv.dil_h = conv.dil_w = conv.groups = conv.oh = 1;
  conv.w = conv.ow = pixels, conv.c = c, conv.o = o, conv.row_classes = conv.col_classes = 1;
  conv.row_class = conv.col_class = classes.data(), conv.corr = corr.data();
  std::vector<int16_t> weights((size_t)(c * o));
  for (int16_t& v : weights) v = (int16_t)pick(-127, 127);
  std::vector<float> x((size_t)(pixels * c)), scale((size_t)(2 * o)), add((size_t)o);
  for (std::vector<float>* values : {&x, &scale, &add})
    for (float& v : *values) v = (float)pick(-90, 90) / 32.0f;
  bw_output output = {};
  bw_terms terms = {pixels, o, 2, scale.data(), add.data()};
  same_everywhere("run", [&](int threads) {
    Memory packed((size_t)bw_byte_weights_size(&conv)), codes((size_t)(pixels * c)), sums((size_t)(pixels * o) * 4);
    Memory out((size_t)(pixels * o) * 4);
    check(bw_byte_weights_pack(&conv, weights.data(), packed.data), "weights");
    const int64_t behind = (pixels * c + line - 1) / line * line;
    bw_step steps[4] = {};
    for (bw_step& step : steps) step.residual = step.extra = BW_NOWHERE, step.alone = pick(0, 1);
    steps[0].operation = BW_PACK_BYTES, steps[0].shape = &pack, steps[0].x = -1, steps[0].out = 0;
    for (int64_t term = 0; term < 2; term++) {
      bw_step& step = steps[1 + term];
      step.operation = BW_CONV_BYTES, step.shape = &conv, step.weights = packed.data, step.output = &output;
      step.x = 0, step.out = behind + term * pixels * o * 4;
    }
    steps[3].operation = BW_TERMS, steps[3].shape = &terms, steps[3].x = behind, steps[3].out = -2;
    void* outside[2] = {x.data(), out.data};
    check(bw_run(steps, 4, outside, behind + 2 * pixels * o * 4, threads), "run");
    check(bw_pack_bytes(&pack, x.data(), codes.data, threads), "pack_bytes");
    check(bw_conv_bytes(&conv, codes.data, packed.data, &output, sums.data, nullptr, nullptr, threads), "conv_bytes");
    const int32_t* sum = (const int32_t*)sums.data;
    for (int64_t i = 0; i < pixels * o; i++) {
      float want = (float)sum[i] * scale[(size_t)(i % o)];
      want += (float)sum[i] * scale[(size_t)(o + i % o)];
      want += add[(size_t)(i % o)];
      if (((const float*)out.data)[i] == want) continue;
      fprintf(stderr, "run: value %lld differs\n", (long long)i);
      exit(1);
    }
    return copy_of(out);
  });
  if (bw_check_range(x.data(), (int64_t)x.size(), 3.0f)) exit(1);
  x.back() = __builtin_nanf("");
  if (bw_check_range(x.data(), (int64_t)x.size(), 3.0f) != BW_OUT_OF_RANGE) exit(1);
}

std::vector<float> random_floats(int64_t n) {
  std::vector<float> values((size_t)n);
  for (float& v : values) v = pick(0, 20) ? (float)pick(-90, 90) / 32.0f : pick(0, 1) ? -0.0f : __builtin_inff();
  return values;
}

// n elements of a training tensor, of the exact size
struct Elements : Memory {
  Elements(const std::vector<float>& values, int dtype) : Memory(values.size() * (dtype ? 2 : 4)) {
    for (size_t i = 0; i < values.size(); i++) {
      const size_t width = dtype ? 2 : 4;  // the upper half of a float is its bfloat16
      memcpy(data + i * width, (const uint8_t*)&values[i] + (4 - width), width);
    }
  }
};

template <class... Parts>
std::vector<uint8_t> joined(const Parts&... parts) {
  std::vector<uint8_t> all;
  (all.insert(all.end(), parts.data, parts.data + parts.bytes), ...);
  return all;
}

void training() {
  const int dtype = pick(0, 1), option = pick(0, 1), sometimes = pick(0, 30) ? 1 : 40;
  const int64_t outer = pick(1, 5), channels = pick(1, 70), inner = pick(0, 2) ? pick(1, 150) * sometimes : 1;
  const int64_t n = outer * channels * inner, words = (n + 63) / 64, size = n * (dtype ? 2 : 4);
  const Elements x(random_floats(n), dtype), g(random_floats(n), dtype);
  const float high = (float)pick(1, 40) / 16.0f;
  std::vector<float> steps((size_t)channels);
  for (float& s : steps) s = (float)pick(1, 64) / 32.0f;
  same_everywhere("sign and masks", [&](int threads) {
    Memory y((size_t)size), mask((size_t)words * 8), dx((size_t)size), approx((size_t)size), odd((size_t)size);
    check(bw_odd_forward(x.data, odd.data, (uint64_t*)mask.data, n, 3, dtype, threads), "odd_forward");
    check(bw_step_forward(x.data, y.data, n, 0.5f, 1.0f, 0.0f, dtype, threads), "step_forward");
    check(bw_sign_forward(x.data, y.data, (uint64_t*)mask.data, n, dtype, option, threads), "sign_forward");
    check(bw_mask_backward(g.data, (uint64_t*)mask.data, dx.data, n, dtype, threads), "mask_backward");
    check(bw_approx_backward(g.data, x.data, approx.data, n, dtype, threads), "approx_backward");
    return joined(y, mask, dx, approx, odd);
  });
  same_everywhere("clip", [&](int threads) {
    Memory y((size_t)size), inside((size_t)words * 8), above((size_t)words * 8), dx((size_t)size), dhigh(4);
    check(bw_clip_forward(x.data, y.data, (uint64_t*)inside.data, (uint64_t*)above.data, n, &high, 15, dtype, threads), "clip_forward");
    check(bw_clip_backward(g.data, (uint64_t*)inside.data, (uint64_t*)above.data, dx.data, (float*)dhigh.data, n, dtype, threads), "clip_backward");
    return joined(y, inside, above, dx, dhigh);
  });
  same_everywhere("lsq", [&](int threads) {
    Memory y((size_t)size), dx((size_t)size), dsteps((size_t)channels * 4);
    check(bw_lsq_forward(x.data, steps.data(), y.data, outer, channels, inner, -4, 3, dtype, threads), "lsq_forward");
    check(bw_lsq_backward(g.data, x.data, steps.data(), dx.data, (float*)dsteps.data, outer, channels, inner, -4, 3, 0.5f, dtype, threads), "lsq_backward");
    return joined(y, dx, dsteps);
  });
  const int64_t count = channels * inner;
  const int exact = pick(0, 1);
  same_everywhere("binary weights", [&](int threads) {
    Memory y((size_t)size), scales((size_t)outer * 4), bits((size_t)(outer * 2 * ((count + 63) / 64)) * 8), dw((size_t)size);
    check(bw_binary_forward(x.data, y.data, (float*)scales.data, (uint64_t*)bits.data, outer, count, option, dtype, threads), "binary_forward");
    check(bw_binary_backward(g.data, (float*)scales.data, (uint64_t*)bits.data, dw.data, outer, count, exact, option, dtype, threads), "binary_backward");
    return joined(y, scales, bits, dw);
  });
  std::vector<float> t = random_floats(n);
  for (float& v : t) v = v > 1 ? 1 : v < -1 ? -1 : v;
  const Elements tanhs(t, 0);
  same_everywhere("dorefa weights", [&](int threads) {
    Memory y((size_t)size), peak(4), dw((size_t)size);
    check(bw_dorefa_forward((const float*)tanhs.data, y.data, (float*)peak.data, n, 7, dtype, threads), "dorefa_forward");
    check(bw_dorefa_backward(g.data, (const float*)tanhs.data, (const float*)peak.data, dw.data, n, dtype, threads), "dorefa_backward");
    return joined(y, peak, dw);
  });
}

}  // namespace

int main(int count, char** arguments) {
  setenv("BITWRIGHT_AMX", "always", 1);  // tiles for small maps too
  const int rounds = count > 1 ? atoi(arguments[1]) : 300;
  for (int i = 0; i < rounds; i++) {
    convolution(true);
    convolution(false);
    packing();
    pooling();
    run();
    training();
  }
  if (bw_force_isa("nonsense") != BW_BAD_ISA) return 1;
  printf("ok: %d rounds, %s\n", rounds, bw_available_isas());
  return 0;
}
