// Runs every entry point on random awkward shapes, every instruction set against `portable`, in buffers of the
// exact size, so that AddressSanitizer sees a read or write one element too far. Prints what ran, exits 0 or 1.
// Arguments: rounds (300), seed (1).
#include <cmath>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels.h"

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

template <class... Parts>
std::vector<uint8_t> joined(const Parts&... parts) {
  std::vector<uint8_t> all;
  (all.insert(all.end(), parts.data, parts.data + parts.bytes), ...);
  return all;
}

// What becomes of sums, with tables of the exact size.
struct RandomOutput {
  std::vector<float> floats, cuts;
  std::vector<int32_t> thresholds;
  std::vector<uint8_t> flips;
  bw_grid grid = {(float)pick(1, 9) / 4, pick(0, 2), pick(-9, 9), 0, pick(1, 255), 0, 0, 0, 0};
  bw_output output = {};

  explicit RandomOutput(int64_t o) : floats((size_t)o * 2), cuts((size_t)o), flips((size_t)o) {
    output.mode = pick(0, 3);
    output.out_planes = pick(1, 8);
    output.levels = pick(1, (1 << output.out_planes) - 1);
    if (pick(0, 1) || output.mode == BW_FLOAT32) output.levels = output.out_planes = 1;
    else if (!pick(0, 2)) output.levels = 3, output.out_planes = 2;
    output.out_groups = pick(0, 2) == 0 ? o : o % 2 == 0 ? pick(1, 2) : 1;
    for (float& f : floats) f = (float)pick(-100, 100) / 7.0f;
    thresholds.resize((size_t)(output.levels * o));
    for (int64_t i = 0; i < o; i++) {
      int32_t level = pick(-200, 0);
      for (int64_t l = 0; l < output.levels; l++) thresholds[(size_t)(l * o + i)] = level += pick(0, 5);
    }
    for (uint8_t& f : flips) f = (uint8_t)pick(0, 1);
    for (float& v : cuts) v = (float)pick(-9, 9);
    if (pick(0, 1)) check(bw_grid_prepare(&grid), "grid");
    output.scale = floats.data(), output.add = floats.data() + o;
    output.thresholds = thresholds.data();
    output.flip = pick(0, 1) ? flips.data() : nullptr;
    output.relu = pick(0, 1), output.extra_bytes = pick(0, 1);
    if (pick(0, 1) && output.mode != BW_WORDS) output.grid = &grid;
    if (output.mode == BW_FLOAT32 && !output.grid && pick(0, 1)) {  // codes of some levels beside the floats
      output.out_planes = pick(2, 4), output.levels = pick(0, 1) ? 3 : pick(2, (1 << output.out_planes) - 1);
      for (int64_t i = o; i < output.levels * o; i++) cuts.push_back(cuts[(size_t)(i - o)] + (float)pick(0, 3));
      output.flip = nullptr, output.extra_bytes = 0, output.cuts = cuts.data();
    }
    if (pick(0, 1)) output.cuts = cuts.data();
  }
  RandomOutput(const RandomOutput&) = delete;
};

// Codes beside floats.
size_t extra_bytes(const bw_output& output, int64_t pixels, int64_t o) {
  return (size_t)(output.grid || output.extra_bytes ? pixels * o : pixels * output.out_planes * words(o, 1) * 4);
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

uint64_t results = 14695981039346656037u;  // a hash of inference, to compare machines by

std::map<std::string, std::set<int32_t>> layouts;  // of weights, by instruction set: which of its kernels a run has reached
void note_layout(const Memory& weights) { layouts[bw_isa()].insert(((const bw_weights_header*)weights.data)->layout); }

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
  for (const uint8_t byte : want) results = (results ^ byte) * 1099511628211u;
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
  const bool stem = !bits && !small && !pick(0, 3);
  if (stem) {  // what Winograd's form of a first layer takes
    conv.groups = conv.dil_h = conv.dil_w = 1, conv.stride_h = conv.stride_w = 2, conv.c = pick(1, 4), conv.o = pick(15, 70);
    conv.kh = pick(5, 8), conv.kw = pick(5, 8), conv.pad_h = pick(0, 9), conv.pad_w = pick(0, 9);
    conv.h = pick(1, 30), conv.w = pick(1, 60);
    while (conv.h + 2 * conv.pad_h < conv.kh) conv.h++;
    while (conv.w + 2 * conv.pad_w < conv.kw) conv.w++;
  }
  const bool sliced = bits && !pick(0, 2);  // what rows of bits of many pixels take
  if (sliced) {
    conv.groups = conv.kh = conv.kw = conv.stride_h = conv.stride_w = conv.dil_h = conv.dil_w = 1;
    conv.n = pick(1, 600), conv.c = pick(1, 300), conv.o = pick(1, 130), conv.pad_h = conv.pad_w = 0;
    conv.h = pick(0, 3) ? 1 : pick(2, 3), conv.w = pick(0, 3) ? 1 : pick(2, 3);
    if (pick(0, 1)) conv.kh = conv.h, conv.kw = conv.w;
  }
  conv.oh = (conv.h + 2 * conv.pad_h - conv.dil_h * (conv.kh - 1) - 1) / conv.stride_h + 1;
  conv.ow = (conv.w + 2 * conv.pad_w - conv.dil_w * (conv.kw - 1) - 1) / conv.stride_w + 1;
  conv.x_planes = small ? pick(1, 6) : pick(1, bits && pick(0, 1) ? 8 : 3), conv.w_planes = pick(1, 3), conv.w_zero = pick(-3, 3);
  if (!bits && pick(0, 1)) conv.x_planes = 0;
  int32_t x_mult[8], w_mult[3];
  for (int32_t& mult : x_mult) mult = pick(-5, 5);
  for (int32_t& mult : w_mult) mult = pick(-5, 5);
  if (pick(0, 1)) w_mult[1] = pick(0, 2) ? -w_mult[0] : w_mult[0];
  if (pick(0, 1)) conv.w_planes = 1, w_mult[0] = 2, conv.w_zero = -1;
  if (pick(0, 1)) {
    x_mult[0] = pick(1, 2);
    for (int p = 1; p < 8; p++) x_mult[p] = 2 * x_mult[p - 1];
  }
  conv.x_mult = x_mult, conv.w_mult = w_mult;
  conv.row_classes = 2, conv.col_classes = 3;
  if (sliced) conv.x_planes = conv.w_planes = conv.row_classes = conv.col_classes = 1, conv.w_zero = 0;
  if (sliced && !x_mult[0]) x_mult[0] = 1;
  std::vector<int32_t> rows((size_t)conv.oh), cols((size_t)conv.ow), corr((size_t)(6 * conv.o));
  for (int32_t& v : rows) v = pick(0, (int)conv.row_classes - 1);
  for (int32_t& v : cols) v = pick(0, (int)conv.col_classes - 1);
  for (int32_t& v : corr) v = sliced ? pick(-9, 9) : pick(-50, 50);
  conv.row_class = rows.data(), conv.col_class = cols.data(), conv.corr = corr.data();

  const int64_t pixels = conv.n * conv.oh * conv.ow, cg = conv.c / conv.groups;
  const int64_t in_pixels = conv.n * conv.h * conv.w, weights = conv.o * cg * conv.kh * conv.kw;
  std::vector<uint8_t> codes((size_t)(in_pixels * conv.c));
  RandomOutput random(conv.o);
  bw_output& output = random.output;
  const bool stem_pools = stem && pick(0, 1);
  if (stem_pools) output.mode = BW_FLOAT32, output.levels = output.out_planes = 1, output.grid = pick(0, 2) ? nullptr : output.grid;
  if (sliced && pick(0, 1)) {
    output.mode = BW_WORDS, output.levels = output.out_planes = output.out_groups = 1, output.grid = nullptr;
    for (int32_t& v : random.thresholds) v = pick(-20, 20);
  }
  for (uint8_t& v : codes) v = (uint8_t)pick(0, conv.x_planes ? (1 << conv.x_planes) - 1 : 255);
  Memory x(bits ? (size_t)(in_pixels * conv.x_planes * words(conv.c, conv.groups)) * 4 : codes.size());
  if (bits) check(bw_bytes_to_bits(codes.data(), in_pixels, conv.x_planes, conv.c, conv.groups, (uint32_t*)x.data), "to bits");
  else memcpy(x.data, codes.data(), codes.size());
  std::vector<uint8_t> weight_bits((size_t)(weights * conv.w_planes));
  std::vector<int16_t> weight_values((size_t)weights);
  const int limit = small && (conv.x_planes || pick(0, 1)) ? 14 : pick(0, 1) ? 127 : 255;
  for (uint8_t& v : weight_bits) v = (uint8_t)(sliced && pick(0, 9) ? 0 : pick(0, 1));
  const bool listed = !pick(0, 3);  // so few are not zero that the kernel keeps lists of them
  for (int16_t& v : weight_values) v = (int16_t)(listed && pick(0, 300) ? 0 : listed && pick(0, 1) ? pick(-1, 1) : pick(-limit, limit));
  std::vector<float> residual((size_t)(pixels * conv.o));
  for (float& v : residual) v = (float)pick(-9, 9);
  int64_t results = pixels;
  if (output.mode == BW_FLOAT32 && output.levels == 1 && (stem_pools || pick(0, 1))) {
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
    Memory extra(extra_bytes(output, results, conv.o));
    check(bits ? bw_weights_pack(&conv, weight_bits.data(), packed.data)
               : bw_byte_weights_pack(&conv, weight_values.data(), packed.data), "weights");
    note_layout(packed);
    const float* add = with_residual ? residual.data() : nullptr;
    void* beside = with_extra ? extra.data : nullptr;
    check(bits ? bw_conv_bits(&conv, (const uint32_t*)x.data, packed.data, &output, out.data, add, beside, threads)
               : bw_conv_bytes(&conv, x.data, packed.data, &output, out.data, add, beside, threads), "conv");
    std::vector<uint8_t> result = copy_of(out);
    if (output.mode == BW_FLOAT32) result.insert(result.end(), extra.data, extra.data + extra.bytes);
    return result;
  });
}

// A gate that chooses channels. The numbers of the convolution are small and whole, so that every order of a sum gives the same.
void gated() {
  bw_gated g = {};
  g.n = pick(1, 3), g.c = pick(1, 40), g.block = pick(0, 2) ? 1 : pick(2, 17), g.o = g.block * pick(1, 5);
  if (g.block == 1) g.o = pick(1, 70);
  g.count = pick(1, (int)(g.o / g.block)), g.relu = pick(0, 1);
  g.kh = pick(1, 4), g.kw = pick(1, 4), g.stride_h = pick(1, 3), g.stride_w = pick(1, 3), g.dil_h = pick(1, 2), g.dil_w = pick(1, 2);
  g.pad_h = pick(0, 2), g.pad_w = pick(0, 2);
  if (pick(0, 1)) {  // what Winograd's kernel takes
    g.kh = g.kw = 3, g.stride_h = g.stride_w = g.dil_h = g.dil_w = 1, g.c = pick(16, 70);
    if (g.block == 1) g.o = pick(1, 150), g.count = pick(1, (int)g.o);
  }
  const int64_t reach_h = g.dil_h * (g.kh - 1) + 1, reach_w = g.dil_w * (g.kw - 1) + 1;
  g.h = reach_h + pick(0, 9), g.w = reach_w + pick(0, 20);
  g.oh = (g.h + 2 * g.pad_h - reach_h) / g.stride_h + 1, g.ow = (g.w + 2 * g.pad_w - reach_w) / g.stride_w + 1;
  const auto numbers = [](int64_t count) {
    std::vector<float> made;
    for (int64_t i = 0; i < count; i++) made.push_back((float)pick(-9, 9));
    return made;
  };
  const std::vector<float> weight = numbers(g.o * g.c * g.kh * g.kw), add = numbers(g.o), predictor = numbers(g.o * g.c), bias = numbers(g.o);
  const std::vector<float> residual = numbers(g.n * g.oh * g.ow * g.o);
  std::vector<float> x = numbers(g.n * g.h * g.w * g.c);
  const int64_t zero = pick(1, 4);
  for (size_t i = 0; i < x.size(); i++)
    if ((int64_t)i % g.c % zero) x[i] = 0;
  const bool with = pick(0, 1);
  same_everywhere("gated", [&](int threads) {
    Memory packed((size_t)bw_gated_size(&g)), out(residual.size() * 4 + (size_t)(g.n * g.o) * 4);
    float* on = (float*)out.data + residual.size();
    check(bw_gated_pack(&g, weight.data(), add.data(), predictor.data(), bias.data(), packed.data), "gated weights");
    check(bw_conv_gated(&g, x.data(), packed.data, (float*)out.data, with ? residual.data() : nullptr, on, threads), "gated");
    for (size_t i = 0; i < out.bytes / 4; i++) ((float*)out.data)[i] += 0.0f;  // -0 and 0 are the same number
    return copy_of(out);
  });
}

// Float convolutions, of small whole numbers, so that every order of a sum gives the same.
void floats() {
  bw_floats f = {};
  f.n = pick(1, 3), f.c = pick(1, 40), f.o = pick(1, 150), f.nchw = pick(0, 3) == 0, f.relu = pick(0, 1);
  f.kh = pick(1, 4), f.kw = pick(1, 4), f.stride_h = pick(1, 3), f.stride_w = pick(1, 3), f.dil_h = pick(1, 2), f.dil_w = pick(1, 2);
  f.pad_h = pick(0, 4), f.pad_w = pick(0, 4);
  if (pick(0, 1)) f.kh = f.kw = 3, f.stride_h = f.stride_w = f.dil_h = f.dil_w = 1;  // what Winograd's kernel takes
  const bool strided = !pick(0, 3);
  if (strided) {  // what its form for a first layer takes
    f.kh = pick(5, 8), f.kw = pick(5, 8), f.stride_h = f.stride_w = 2, f.dil_h = f.dil_w = 1, f.c = pick(1, 4);
    f.pad_h = pick(0, 9), f.pad_w = pick(0, 9);
  }
  const int64_t reach_h = f.dil_h * (f.kh - 1) + 1, reach_w = f.dil_w * (f.kw - 1) + 1;
  f.h = reach_h + pick(0, 20), f.w = reach_w + pick(0, 20);
  if (!pick(0, 3) && f.pad_h * 2 >= reach_h - 1 && f.pad_w * 2 >= reach_w - 1) f.h = f.w = 1;
  f.oh = (f.h + 2 * f.pad_h - reach_h) / f.stride_h + 1, f.ow = (f.w + 2 * f.pad_w - reach_w) / f.stride_w + 1;
  const auto numbers = [](int64_t count) {
    Memory made((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) ((float*)made.data)[i] = (float)pick(-9, 9);
    return copy_of(made);
  };
  const std::vector<uint8_t> weight = numbers(f.o * f.c * f.kh * f.kw), add = numbers(f.o);
  const std::vector<uint8_t> x = numbers(f.n * f.h * f.w * f.c), residual = numbers(f.n * f.oh * f.ow * f.o);
  const bool with = pick(0, 1);
  same_everywhere("floats", [&](int threads) {
    Memory packed((size_t)bw_floats_size(&f)), out(residual.size());
    check(bw_floats_pack(&f, (const float*)weight.data(), with ? (const float*)add.data() : nullptr, packed.data), "float weights");
    check(bw_conv_floats(&f, (const float*)x.data(), packed.data, (float*)out.data, with ? (const float*)residual.data() : nullptr, threads),
          "floats");
    for (size_t i = 0; i < out.bytes / 4; i++) {
      float& y = ((float*)out.data)[i];
      y = (strided ? nearbyintf(y) : y) + 0.0f;  // its sums have thirds; -0 and 0 are the same number
    }
    return copy_of(out);
  });
}

// Linear layers by tables, of small whole numbers.
void tables() {
  const int64_t group = pick(1, 4);
  bw_tables t = {pick(1, 3), pick(1, 300), pick(1, 200), group, pick(0, 1), nullptr, nullptr, nullptr};
  const auto numbers = [](int64_t count) {
    Memory made((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) ((float*)made.data)[i] = (float)pick(-9, 9);
    return copy_of(made);
  };
  const std::vector<uint8_t> levels = numbers(group * 16), scale = numbers(t.o), add = numbers(t.o), x = numbers(t.n * t.k);
  const std::vector<uint8_t> onto = numbers(t.n * t.o);
  Memory index((size_t)((t.o + 63) / 64 * ((t.k + 8 * group - 1) / (8 * group)) * 256));
  for (size_t i = 0; i < index.bytes; i++) ((uint8_t*)index.data)[i] = (uint8_t)pick(0, 255);
  t.levels = (const float*)levels.data(), t.scale = (const float*)scale.data(), t.add = (const float*)add.data();
  same_everywhere("tables", [&](int threads) {
    Memory out(onto.size());
    memcpy(out.data, onto.data(), onto.size());
    check(bw_linear_tables(&t, (const float*)x.data(), (const uint32_t*)index.data, (float*)out.data, threads), "tables");
    for (size_t i = 0; i < out.bytes / 4; i++) ((float*)out.data)[i] += 0.0f;  // -0 and 0 are the same number
    return copy_of(out);
  });
}

// Lists of the weights that are left, of floats and of codes. All are small whole numbers, so that every order of a sum gives the same.
void connections() {
  bw_connections l = {pick(1, 3) * pick(1, 30), pick(1, 200), pick(1, 100), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0};
  std::vector<int32_t> begin = {0}, index;
  std::vector<float> value, tables[3];
  for (int64_t o = 0; o < l.o; o++) {
    for (int32_t k = 0; k < l.k; k++)
      if (!pick(0, 9)) index.push_back(k), value.push_back((float)pick(-9, 9));
    begin.push_back((int32_t)index.size());
  }
  index.push_back(0), value.push_back(0);  // no list is empty
  for (std::vector<float>& table : tables)
    for (int64_t o = 0; o < l.o; o++) table.push_back((float)pick(-9, 9));
  l.begin = begin.data(), l.index = index.data(), l.value = value.data();
  if (pick(0, 1)) l.bias = tables[0].data();
  if (pick(0, 1)) l.scale = tables[1].data(), l.add = tables[2].data();
  std::vector<float> x((size_t)(l.n * l.k));
  for (float& v : x) v = (float)pick(-9, 9);
  same_everywhere("connections", [&](int threads) {
    Memory out((size_t)(l.n * l.o) * 4);
    check(bw_linear_connections(&l, x.data(), (float*)out.data, threads), "connections");
    for (size_t i = 0; i < out.bytes / 4; i++) ((float*)out.data)[i] += 0.0f;  // -0 and 0 are the same number
    return copy_of(out);
  });
  for (l.tanh = 1; l.tanh < 4; l.tanh++) {  // memory alone: the last digits differ
    Memory out((size_t)(l.n * l.o) * 4);
    check(bw_linear_connections(&l, x.data(), (float*)out.data, 2), "tanh");
  }
  bw_conv conv = {};
  conv.n = l.n, conv.c = l.k, conv.o = l.o, conv.x_planes = 4;
  conv.h = conv.w = conv.kh = conv.kw = conv.oh = conv.ow = conv.stride_h = conv.stride_w = conv.dil_h = conv.dil_w = conv.groups = 1;
  conv.row_classes = conv.col_classes = 1;
  const int32_t zero = 0;
  std::vector<int32_t> corr((size_t)l.o);
  for (int32_t& v : corr) v = pick(-50, 50);
  conv.row_class = conv.col_class = &zero, conv.corr = corr.data();
  std::vector<uint8_t> codes((size_t)(l.n * l.k));
  for (uint8_t& v : codes) v = (uint8_t)pick(0, 15);
  bw_output output = {};
  output.mode = BW_INT32;
  const bw_coded_connections layer = {&l, &conv};
  same_everywhere("coded connections", [&](int threads) {
    Memory out((size_t)(l.n * l.o) * 4);
    check(bw_coded_linear_connections(&layer, codes.data(), &output, out.data, nullptr, nullptr, threads), "coded connections");
    for (int64_t n = 0; n < l.n; n++)
      for (int64_t o = 0; o < l.o; o++) {
        int32_t sum = corr[(size_t)o];
        for (int32_t i = begin[(size_t)o]; i < begin[(size_t)o + 1]; i++) sum += (int32_t)value[(size_t)i] * codes[(size_t)(n * l.k + index[(size_t)i])];
        check(sum == ((int32_t*)out.data)[n * l.o + o] ? BW_OK : -1, "a sum of coded connections");
      }
    return copy_of(out);
  });
}

// Layers that skip. Floats are small whole numbers, so that every order of a sum gives the same.
void skipping(bool floats) {
  bw_conv conv = {};
  conv.groups = pick(0, 3) ? 1 : pick(2, 3);
  conv.n = pick(1, 3), conv.c = conv.groups * pick(2, 70), conv.o = conv.groups * pick(2, 70);
  conv.kh = pick(1, 4), conv.kw = pick(1, 4), conv.stride_h = pick(1, 3), conv.stride_w = pick(1, 3);
  conv.pad_h = pick(0, 5), conv.pad_w = pick(0, 5), conv.dil_h = pick(1, 2), conv.dil_w = pick(1, 2);
  conv.h = pick(1, 8) + conv.dil_h * (conv.kh - 1), conv.w = pick(1, 8) + conv.dil_w * (conv.kw - 1);
  if (!pick(0, 5)) conv.h += pick(0, 30), conv.w += pick(0, 200), conv.c = conv.groups * pick(2, 9);  // several strips
  if (!pick(0, 5)) conv.c = conv.groups * pick(200, 400), conv.kh = conv.kw = 3, conv.h += 2, conv.w += 2;  // several chunks
  const bool small = !floats && !pick(0, 3);  // what Winograd's kernel takes
  if (small) {
    conv.groups = 1, conv.c = pick(30, 140), conv.o = pick(15, 100), conv.kh = conv.kw = 3, conv.stride_h = conv.stride_w = 1;
    conv.dil_h = conv.dil_w = 1, conv.h = pick(3, 20), conv.w = pick(3, 20);
  }
  const bool whole_shares = floats && pick(0, 1);  // what Winograd's kernel takes
  const int splits = pick(2, 4);
  if (whole_shares) {
    conv.groups = 1, conv.c = splits * pick(8, 24), conv.o = splits * pick(1, 40), conv.kh = conv.kw = 3, conv.stride_h = conv.stride_w = 1;
    conv.dil_h = conv.dil_w = 1, conv.h = pick(3, 20), conv.w = pick(3, 20);
  }
  const int64_t room_h = conv.h + 2 * conv.pad_h - conv.dil_h * (conv.kh - 1), room_w = conv.w + 2 * conv.pad_w - conv.dil_w * (conv.kw - 1);
  if (room_h < 1 || room_w < 1) return;
  conv.oh = (room_h - 1) / conv.stride_h + 1, conv.ow = (room_w - 1) / conv.stride_w + 1;
  conv.row_classes = 2, conv.col_classes = 3;
  const int64_t o = conv.o, pixels = conv.n * conv.oh * conv.ow, cg = conv.c / conv.groups, og = o / conv.groups;
  std::vector<int32_t> rows((size_t)conv.oh), cols((size_t)conv.ow), corr((size_t)(6 * o)), rest_corr((size_t)(6 * o)), cuts((size_t)o);
  for (int32_t& v : rows) v = pick(0, 1);
  for (int32_t& v : cols) v = pick(0, 2);
  for (std::vector<int32_t>* values : {&corr, &rest_corr, &cuts})
    for (int32_t& v : *values) v = pick(-50, 50);
  conv.row_class = rows.data(), conv.col_class = cols.data(), conv.corr = corr.data();
  bw_skip skip = {};
  skip.shared = pick(0, 1), skip.relu = pick(0, 1), skip.splits = pick(2, (int)(skip.shared || cg < og ? cg : og));
  if (pick(0, 1) && skip.splits > 5) skip.splits = pick(2, 5);
  if (whole_shares) skip.splits = splits, skip.dense = pick(0, 1);
  if (!floats && (small || pick(0, 1))) skip.low_bits = pick(1, 7), skip.splits = 1;
  if (pick(0, 1)) skip.rest_corr = rest_corr.data();
  std::vector<float> tables[6];
  for (std::vector<float>& table : tables)
    for (int64_t i = 0; i < o; i++) table.push_back((float)pick(-30, 30));
  skip.threshold = floats ? (void*)tables[0].data() : cuts.data(), skip.bias = tables[1].data();
  if (pick(0, 1)) skip.scale = tables[2].data(), skip.add = tables[3].data();
  if (skip.scale && pick(0, 1)) skip.off_scale = tables[4].data(), skip.off_add = tables[5].data();
  Memory x((size_t)(conv.n * conv.h * conv.w * conv.c) * (floats ? 4 : 1));
  for (size_t i = 0; i < x.bytes; i++) x.data[i] = (uint8_t)pick(0, 255);
  if (floats)
    for (size_t i = 0; i < x.bytes / 4; i++) ((float*)x.data)[i] = (float)pick(-9, 9);
  const int limit = floats ? 9 : small ? 7 : pick(0, 1) ? 127 : 255;
  std::vector<int16_t> whole((size_t)(o * cg * conv.kh * conv.kw));
  for (int16_t& v : whole) v = (int16_t)pick(-limit, limit);
  const std::vector<float> real(whole.begin(), whole.end());
  const RandomOutput random(o);
  const bw_output& output = random.output;
  std::vector<float> residual((size_t)(pixels * o));
  for (float& v : residual) v = (float)pick(-9, 9);
  const bool with_residual = pick(0, 1), with_extra = pick(0, 1);
  const float* add = with_residual ? residual.data() : nullptr;
  std::vector<int32_t> sums((size_t)(2 * pixels * o));
  for (int32_t& v : sums) v = pick(-900, 900);
  const auto beside = [&](const Memory& out, const Memory& extra) {
    std::vector<uint8_t> result = copy_of(out);
    if (output.mode == BW_FLOAT32) result.insert(result.end(), extra.data, extra.data + extra.bytes);
    return result;
  };
  same_everywhere(floats ? "skip_floats" : "skip_bytes", [&](int threads) {
    Memory packed((size_t)(floats ? bw_skip_floats_size(&conv, &skip) : bw_skip_bytes_size(&conv, &skip)));
    Memory out(floats ? (size_t)(pixels * o) * 4 : output_bytes(output, pixels, o)), extra(extra_bytes(output, pixels, o));
    check(floats ? bw_skip_floats_pack(&conv, &skip, real.data(), packed.data)
                 : bw_skip_bytes_pack(&conv, &skip, whole.data(), packed.data), "skip weights");
    note_layout(packed);
    check(floats ? bw_skip_floats(&conv, &skip, (const float*)x.data, packed.data, (float*)out.data, add, threads)
                 : bw_skip_bytes(&conv, &skip, x.data, packed.data, &output, out.data, add, with_extra ? extra.data : nullptr, threads),
          "skip");
    for (size_t i = 0; floats && i < out.bytes / 4; i++) ((float*)out.data)[i] += 0.0f;
    return floats ? copy_of(out) : beside(out, extra);
  });
  same_everywhere("select", [&](int threads) {
    Memory out(output_bytes(output, pixels, o)), extra(extra_bytes(output, pixels, o));
    check(bw_select(&conv, &skip, sums.data(), &output, out.data, add, with_extra ? extra.data : nullptr, threads), "select");
    return beside(out, extra);
  });
}

void packing() {
  bw_pack pack = {};
  pack.n = pick(1, 2), pack.h = pick(1, 9), pack.w = pick(1, 9), pack.groups = pick(1, 3), pack.c = pack.groups * pick(1, 70);
  pack.nchw = pick(0, 1), pack.planes = pick(1, 8), pack.per_channel = pick(0, 1);
  pack.levels = pick(1, (1 << pack.planes) - 1);
  if (pick(0, 1)) pack.levels = 1;
  if (pick(0, 1)) pack.levels = pack.planes = 1, pack.c = pick(0, 1) ? pack.groups * 32 * pick(1, 3) : pack.c;  // whole words
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
  pool.planes = 1;
  const int64_t values = pool.n * pool.h * pool.w * pool.channels;
  Memory floats((size_t)values * 4);
  for (int64_t i = 0; i < values; i++) ((float*)floats.data)[i] = (float)pick(-90, 90) / 32.0f;
  const float* images = (const float*)floats.data;
  bw_subsample sub = {pool.n, pool.h, pool.w, pool.channels, pool.stride_h, pool.stride_w, pick(0, 3), pick(0, 3)};
  same_everywhere("images of floats", [&](int threads) {
    const size_t pooled = (size_t)(pool.n * pool.oh * pool.ow * pool.channels) * 4;
    Memory largest(pooled), average(pooled), mean((size_t)(pool.n * pool.channels) * 4);
    const int64_t rows = (sub.h - 1) / sub.stride_h + 1, columns = (sub.w - 1) / sub.stride_w + 1;
    Memory fewer((size_t)(sub.n * rows * columns * (sub.before + sub.c + sub.behind)) * 4);
    check(bw_maxpool_floats(&pool, images, (float*)largest.data, threads), "maxpool_floats");
    check(bw_avgpool_floats(&pool, images, (float*)average.data, threads), "avgpool_floats");
    check(bw_mean_floats(&pool, images, (float*)mean.data, threads), "mean_floats");
    check(bw_subsample_floats(&sub, images, (float*)fewer.data, threads), "subsample_floats");
    return joined(largest, average, mean, fewer);
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
  const int alone = pick(0, 15);
  same_everywhere("run", [&](int threads) {
    Memory packed((size_t)bw_byte_weights_size(&conv)), codes((size_t)(pixels * c)), sums((size_t)(pixels * o) * 4);
    Memory out((size_t)(pixels * o) * 4);
    check(bw_byte_weights_pack(&conv, weights.data(), packed.data), "weights");
    const int64_t behind = (pixels * c + line - 1) / line * line;
    bw_step steps[4] = {};
    for (int i = 0; i < 4; i++) steps[i].residual = steps[i].extra = BW_NOWHERE, steps[i].alone = alone >> i & 1;
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

// Which sign a NaN has depends on the operand that a compiler puts first (a NaN plus a NaN): every NaN of `memory` becomes the
// same. `bytes` an element: 2 bfloat16, 4 float, 8 double.
const Memory& one_nan(Memory& memory, size_t bytes) {
  for (size_t i = 0; i + bytes <= memory.bytes; i += bytes) {
    uint64_t value = 0;  // its upper half decides: little endian
    memcpy((uint8_t*)&value + (8 - bytes), memory.data + i, bytes);
    const uint64_t infinite = bytes == 8 ? 0x7ff0000000000000u : 0x7f80000000000000u;
    if ((value & ~(1ull << 63)) > infinite) memset(memory.data + i, 0x7f, bytes);
  }
  return memory;
}

void training() {
  const int dtype = pick(0, 1), option = pick(0, 1), sometimes = pick(0, 30) ? 1 : 40;
  const int64_t outer = pick(1, 5), channels = pick(1, 70), inner = pick(0, 2) ? pick(1, 150) * sometimes : 1;
  const int64_t each = dtype ? 2 : 4, n = outer * channels * inner, words = (n + 63) / 64, size = n * each;
  const Elements x(random_floats(n), dtype), g(random_floats(n), dtype);
  const float high = (float)pick(1, 40) / 16.0f;
  const int sparse = pick(0, 1);
  std::vector<float> steps((size_t)channels);
  for (float& s : steps) s = (float)pick(1, 64) / 32.0f;
  same_everywhere("sign and masks", [&](int threads) {
    Memory y((size_t)size), mask((size_t)words * 8), dx((size_t)size), approx((size_t)size), odd((size_t)size);
    check(bw_odd_forward(x.data, odd.data, (uint64_t*)mask.data, n, 3, dtype, threads), "odd_forward");
    check(bw_step_forward(x.data, y.data, n, 0.5f, 1.0f, 0.0f, dtype, threads), "step_forward");
    check(bw_sign_forward(x.data, y.data, (uint64_t*)mask.data, n, dtype, option, threads), "sign_forward");
    check(bw_mask_backward(g.data, (uint64_t*)mask.data, dx.data, n, dtype, threads), "mask_backward");
    check(bw_approx_backward(g.data, x.data, approx.data, n, dtype, threads), "approx_backward");
    return joined(one_nan(y, each), mask, one_nan(dx, each), one_nan(approx, each), one_nan(odd, each));
  });
  same_everywhere("clip", [&](int threads) {
    Memory y((size_t)size), inside((size_t)words * 8), above((size_t)words * 8), dx((size_t)size), dhigh(4);
    check(bw_clip_forward(x.data, y.data, (uint64_t*)inside.data, (uint64_t*)above.data, n, &high, 15, dtype, threads), "clip_forward");
    check(bw_clip_backward(g.data, (uint64_t*)inside.data, (uint64_t*)above.data, dx.data, (float*)dhigh.data, n, dtype, threads), "clip_backward");
    return joined(one_nan(y, each), inside, above, one_nan(dx, each), one_nan(dhigh, 4));
  });
  same_everywhere("lsq", [&](int threads) {
    Memory y((size_t)size), dx((size_t)size), dsteps((size_t)channels * 4);
    check(bw_lsq_forward(x.data, steps.data(), y.data, outer, channels, inner, -4, 3, dtype, threads), "lsq_forward");
    check(bw_lsq_backward(g.data, x.data, steps.data(), dx.data, (float*)dsteps.data, outer, channels, inner, -4, 3, 0.5f, dtype, threads), "lsq_backward");
    return joined(one_nan(y, each), one_nan(dx, each), one_nan(dsteps, 4));
  });
  const int64_t pairs = channels / 2 * 2;  // of channels, where base and rest share a tensor
  const int halves = pairs ? pick(0, 1) : 0, norm = pick(0, 1);
  const int64_t gated = halves ? pairs : channels, made = outer * gated * inner, wide = made * (halves + 1);
  const Elements base(random_floats(wide), dtype), rest(random_floats(wide), dtype), grad(random_floats(made), dtype);
  const std::vector<float> to_on = random_floats(made), mean = random_floats(channels);
  same_everywhere("gates", [&](int threads) {
    const void* other = halves ? base.data : rest.data;
    const float *means = norm ? mean.data() : nullptr, *rates = norm ? steps.data() : nullptr;
    Memory sums((size_t)gated * 16), y((size_t)(made * each)), on((size_t)made * 4), dbase((size_t)(wide * each));
    Memory drest((size_t)(halves ? 1 : wide * each)), dthreshold((size_t)gated * 4), high((size_t)size), low((size_t)size);
    drest.data[0] = 0;
    void* second = halves ? (void*)dbase.data : (void*)drest.data;
    check(bw_gate_moments(base.data, (double*)sums.data, outer, gated, inner, halves, dtype, threads), "gate_moments");
    check(bw_gate_forward(base.data, other, means, rates, steps.data(), y.data, (float*)on.data, outer, gated, inner, halves, dtype, threads), "gate_forward");
    check(bw_gate_backward(grad.data, option ? to_on.data() : nullptr, base.data, other, means, rates, steps.data(), dbase.data, second, (float*)dthreshold.data, outer, gated, inner, halves, 2.0f, sparse, dtype, threads), "gate_backward");
    check(bw_split_forward(x.data, high.data, low.data, n, &steps[0], 4.0f, dtype, threads), "split_forward");
    return joined(one_nan(sums, 8), one_nan(y, each), one_nan(on, 4), one_nan(dbase, each), one_nan(drest, each), one_nan(dthreshold, 4),
                  one_nan(high, each), one_nan(low, each));
  });
  const int64_t count = channels * inner;
  const int exact = pick(0, 1);
  same_everywhere("binary weights", [&](int threads) {
    Memory y((size_t)size), scales((size_t)outer * 4), bits((size_t)(outer * 2 * ((count + 63) / 64)) * 8), dw((size_t)size);
    check(bw_binary_forward(x.data, y.data, (float*)scales.data, (uint64_t*)bits.data, outer, count, option, dtype, threads), "binary_forward");
    check(bw_binary_backward(g.data, (float*)scales.data, (uint64_t*)bits.data, dw.data, outer, count, exact, option, dtype, threads), "binary_backward");
    return joined(one_nan(y, each), one_nan(scales, 4), bits, one_nan(dw, each));
  });
  std::vector<float> t = random_floats(n);
  for (float& v : t) v = v > 1 ? 1 : v < -1 ? -1 : v;
  const Elements tanhs(t, 0);
  same_everywhere("dorefa weights", [&](int threads) {
    Memory y((size_t)size), peak(4), dw((size_t)size);
    check(bw_dorefa_forward((const float*)tanhs.data, y.data, (float*)peak.data, n, 7, dtype, threads), "dorefa_forward");
    check(bw_dorefa_backward(g.data, (const float*)tanhs.data, (const float*)peak.data, dw.data, n, dtype, threads), "dorefa_backward");
    return joined(one_nan(y, each), one_nan(peak, 4), one_nan(dw, each));
  });
}

}  // namespace

int main(int count, char** arguments) {
  setenv("BITWRIGHT_AMX", "always", 1);  // tiles for small maps too
  const int rounds = count > 1 ? atoi(arguments[1]) : 300;
  if (count > 2) random_bits.seed((unsigned)atoi(arguments[2]));
  for (int i = 0; i < rounds; i++) {
    convolution(true);
    convolution(false);
    gated();
    floats();
    tables();
    connections();
    skipping(true);
    skipping(false);
    packing();
    pooling();
    run();
    const uint64_t inference = results;
    training();
    results = inference;  // a NaN that arises in training has another sign on another machine
  }
  if (bw_force_isa("nonsense") != BW_BAD_ISA) return 1;
  printf("ok: %d rounds, %s; results %016llx\n", rounds, bw_available_isas(), (unsigned long long)results);
  for (const std::string& isa : isas()) {
    printf("layouts of %s:", isa.c_str());
    for (const int32_t layout : layouts[isa]) printf(" %d", layout);
    printf("\n");
  }
  return 0;
}
