// Float convolutions: direct, and Winograd's F(2x2, 3x3), which takes 16 products where 36 are counted.
//
// Both come down to tiles of P pixels times up to four panels of 16 outputs, held in registers: an input of a pixel is broadcast
// and multiplied with a panel of weights. Weights lie as [group of four panels][row of products][64 outputs], so that a tile reads
// them from front to end. Per product row the largest tile of AVX-512 loads 4 vectors and 6 numbers for 24 multiply-adds.
//
// Direct: a row of products is a tap and a channel; the image is copied with its padding written out, so the taps of a row of the
// window are one run of numbers. Winograd: V = B'dB of the 4x4 inputs of each 2x2 outputs, U = GwG' of the weights, computed in
// double when they are packed, then 16 products of matrices V U, and Y = A'MA. B and A hold 0, 1 and -1 only, so the error
// is that of a few more float additions.
//
// A sum depends on the shape of the layer alone: not on the batch, the place in the image or the number of threads. A direct sum adds
// rows, columns and channels of the window in order, with AVX-512 each by one fused multiply and add: so does a C file.
#pragma once
#include "parallel.h"
#include "skip_lanes.h"

namespace {

const int FLOAT_GROUP = 4;            // panels
const int64_t FLOAT_AHEAD = 8;        // rows of a list
const int64_t WINOGRAD_ROOM = 640 << 10;  // bytes of V and M of a block of tiles: they stay in the second cache

#if defined(__AVX512F__)
constexpr int float_pixels(int panels) { return panels == 4 ? 6 : panels == 3 ? 8 : 12; }
BW_INLINE Floats load_some(const float* from, uint16_t lanes) { return load_first(from, lanes); }
BW_INLINE void store_some(float* to, Floats x, uint16_t lanes) { store_first(to, x, lanes); }
#else
#if defined(BW_LANES_AVX2)
constexpr int float_pixels(int) { return 6; }  // twelve sums, two registers of weights, one input
#else
constexpr int float_pixels(int) { return 4; }
#endif
BW_INLINE Floats load_some(const float* from, uint16_t lanes) {
  return lanes == 0xffff ? load(from) : lanes ? load_first(from, lanes) : zeros();
}
BW_INLINE void store_some(float* to, Floats x, uint16_t lanes) { lanes == 0xffff ? store(to, x) : store_first(to, x, lanes); }
#endif

// What all tiles of a convolution share.
struct FloatRuns {
  const int64_t* starts;  // [count] from a pixel's place to each run of its inputs
  int64_t count, length;
  const int64_t* rows;    // [count] the row of weights where each run begins; null: one after the other
};

// A result: what is added, and where it goes.
struct FloatFinish {
  const float* add;        // of the group
  float* out;              // of the first output of the group
  const float* residual;   // like out, or null
  int64_t step, outputs;   // floats from pixel to pixel; outputs of the group
  bool relu;

  FloatFinish from(int64_t panel) const {
    const int64_t at = panel * 16;
    return {add + at, out + at, residual ? residual + at : nullptr, step, outputs - at, relu};
  }
  BW_INLINE void write(Floats y, int64_t pixel, int64_t panel) const {
    const uint16_t lanes = first_lanes(outputs - panel * 16);
    const int64_t at = pixel * step + panel * 16;
    y = y + load(add + panel * 16);
    if (residual) y = y + load_some(residual + at, lanes);
    if (relu) y = not_below_zero(y);
    store_some(out + at, y, lanes);
  }
  BW_INLINE void write(const Floats (&y)[1], int64_t pixel, int64_t panel) const { write(y[0], pixel, panel); }
};

// Sums as they are, in rows of `step`.
struct FloatSums {
  float* out;
  int64_t step;
  FloatSums from(int64_t panel) const { return {out + panel * 16, step}; }
  BW_INLINE void write(Floats y, int64_t pixel, int64_t panel) const { store(out + pixel * step + panel * 16, y); }
  BW_INLINE void write(const Floats (&y)[1], int64_t pixel, int64_t panel) const { write(y[0], pixel, panel); }
};

template <int P, int C, class To>
__attribute__((noinline)) void float_tile(const FloatRuns& runs, const float* x, const int64_t* places, const float* w, int64_t width,
                                          const To& to, int64_t pixel) {
  Floats sum[P][C];
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = zeros();
  const float* at[P];
  BW_UNROLL for (int p = 0; p < P; p++) at[p] = x + places[pixel + p];
  const float* const first = w;
  for (int64_t r = 0; r < runs.count; r++) {
    if (runs.rows) {
      w = first + runs.rows[r] * width;
      if (r + FLOAT_AHEAD < runs.count)  // the CPU does not foresee where a list goes on
        BW_UNROLL for (int c = 0; c < C; c++) __builtin_prefetch(first + runs.rows[r + FLOAT_AHEAD] * width + c * 16);
    }
    for (int64_t j = runs.starts[r], end = j + runs.length; j < end; j++, w += width) {
      Floats weights[C];
      BW_UNROLL for (int c = 0; c < C; c++) weights[c] = load(w + c * 16);
      BW_UNROLL for (int p = 0; p < P; p++) {
        const Floats value = all_of(at[p][j]);
        BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = plus_product(sum[p][c], value, weights[c]);
      }
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) to.write(sum[p][c], pixel + p, c);
}

// Tiles of the pixels begin..end: of equal size, as far as that goes.
template <int P, int C, class To>
void float_rest(const FloatRuns& runs, const float* x, const int64_t* places, const float* w, int64_t width, const To& to,
                int64_t pixel, int64_t count) {
  if (count == P) return float_tile<P, C>(runs, x, places, w, width, to, pixel);
  if constexpr (P > 1) float_rest<P - 1, C>(runs, x, places, w, width, to, pixel, count);
}
template <int C, class To>
void float_tiles(const FloatRuns& runs, const float* x, const int64_t* places, const float* w, int64_t width, const To& to, int64_t count) {
  constexpr int P = float_pixels(C);
  const int64_t tiles = bw_ceil_div(count, P);
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t begin = count * i / tiles, end = count * (i + 1) / tiles;
    float_rest<P, C>(runs, x, places, w, width, to, begin, end - begin);
  }
}
// A group of 1 to 4 panels.
template <class To>
void float_group(const FloatRuns& runs, const float* x, const int64_t* places, const float* w, int64_t panels, const To& to, int64_t count) {
  const int64_t width = panels * 16;
#if defined(__AVX512F__)
  if (panels == 4) return float_tiles<4>(runs, x, places, w, width, to, count);
  if (panels == 3) return float_tiles<3>(runs, x, places, w, width, to, count);
  if (panels == 2) return float_tiles<2>(runs, x, places, w, width, to, count);
  float_tiles<1>(runs, x, places, w, width, to, count);
#else
  for (int64_t p = 0; p < panels; p++) float_tiles<1>(runs, x, places, w + p * 16, width, to.from(p), count);
#endif
}

// The groups of a layer's outputs.
struct FloatGroup {
  int64_t first, panels, outputs;
  FloatGroup(const bw_floats& f, int64_t group) {
    first = group * FLOAT_GROUP * 16, outputs = f.o - first < FLOAT_GROUP * 16 ? f.o - first : FLOAT_GROUP * 16;
    panels = bw_panels(outputs);
  }
  const float* weights(const float* body, int64_t rows) const { return body + first * rows; }
};

inline FloatFinish float_finish(const bw_floats& f, const FloatGroup& group, const float* add, float* out, const float* residual) {
  return {add + group.first, out + group.first, residual ? residual + group.first : nullptr, f.o, group.outputs, f.relu != 0};
}

// [high][wide][c]: an image with its padding, and zeros where it has no more, or less where it has more.
inline void float_padded(const bw_floats& f, const float* x, int64_t high, int64_t wide, float* out) {
  const int64_t row = wide * f.c, before = f.pad_w * f.c, inside = f.w < wide - f.pad_w ? f.w : wide - f.pad_w;
  for (int64_t i = 0; i < high; i++, out += row) {
    const int64_t y = i - f.pad_h;
    if (y < 0 || y >= f.h) {
      memset(out, 0, (size_t)row * sizeof(float));
      continue;
    }
    memset(out, 0, (size_t)before * sizeof(float));
    float* to = out + before;
    if (!f.nchw) {
      memcpy(to, x + y * f.w * f.c, (size_t)(inside * f.c) * sizeof(float));
    } else {
      for (int64_t c = 0; c < f.c; c++)
        for (int64_t j = 0; j < inside; j++) to[j * f.c + c] = x[(c * f.h + y) * f.w + j];
    }
    memset(to + inside * f.c, 0, (size_t)(row - before - inside * f.c) * sizeof(float));
  }
}

inline bool float_direct(const bw_floats& f, const float* x, const float* add, const float* body, float* out, const float* residual,
                         int threads) {
  const bool copied = f.nchw || f.pad_h || f.pad_w;
  const int64_t high = f.h + 2 * f.pad_h, wide = f.w + 2 * f.pad_w, taps = f.kh * f.kw, pixels = f.oh * f.ow;
  const bool whole = f.dil_w == 1;  // the taps of a row side by side
  const int64_t run_count = whole ? f.kh : taps;
  int64_t* places = (int64_t*)bw_scratch(BW_SCRATCH_PLACES, (size_t)(pixels + run_count) * sizeof(int64_t));
  float* padded = copied ? (float*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)(high * wide * f.c) * sizeof(float)) : nullptr;
  if (!places || (copied && !padded)) return false;
  for (int64_t y = 0, i = 0; y < f.oh; y++)
    for (int64_t at = y * f.stride_h * wide * f.c, end = i + f.ow; i < end; i++, at += f.stride_w * f.c) places[i] = at;
  int64_t* starts = places + pixels;
  for (int64_t i = 0; i < run_count; i++)
    starts[i] = whole ? i * f.dil_h * wide * f.c : (i / f.kw * f.dil_h * wide + i % f.kw * f.dil_w) * f.c;
  const FloatRuns runs = {starts, run_count, whole ? f.kw * f.c : f.c, nullptr};
  const int64_t groups = bw_ceil_div(f.o, FLOAT_GROUP * 16), share = items_per_task(threads, pixels, 12, 384);
  const int64_t shares = bw_ceil_div(pixels, share);
  for (int64_t n = 0; n < f.n; n++, x += f.h * f.w * f.c, out += pixels * f.o) {
    if (copied) float_padded(f, x, high, wide, padded);
    const float *image = copied ? padded : x, *other = residual ? residual + n * pixels * f.o : nullptr;
    for_tasks(threads, shares * groups, [&](int64_t task) {
      const int64_t begin = task % shares * share, end = begin + share < pixels ? begin + share : pixels;
      const FloatGroup group(f, task / shares);
      const FloatFinish to = float_finish(f, group, add, out + begin * f.o, other ? other + begin * f.o : nullptr);
      float_group(runs, image, places + begin, group.weights(body, taps * f.c), group.panels, to, end - begin);
    });
  }
  return true;
}

// Which tiles of 2x2 outputs a task computes.
struct WinogradBlock {
  int64_t wide, begin, end;    // tiles of a row; those of this block
  int64_t row, slab;           // floats of V from tile to tile, from one of the 16 matrices to the next
};

// V of the block: down the columns first; two of the four columns of a tile are those of its left neighbor.
inline void winograd_inputs(const bw_floats& f, const WinogradBlock& b, const float* x, float* v) {
  for (int64_t t = b.begin; t < b.end;) {
    const int64_t ty = t / b.wide, tx = t % b.wide, count = b.wide - tx < b.end - t ? b.wide - tx : b.end - t;
    const int64_t top = 2 * ty - f.pad_h, left = 2 * tx - f.pad_w;
    for (int64_t c = 0; c < f.c; c += 16) {
      const uint16_t lanes = first_lanes(f.c - c);
      const auto column = [&](int64_t i, Floats (&to)[4]) {
        Floats d[4];
        BW_UNROLL_MANY for (int k = 0; k < 4; k++) {
          const bool inside = top + k >= 0 && top + k < f.h && i >= 0 && i < f.w;
          d[k] = inside ? load_some(x + ((top + k) * f.w + i) * f.c + c, lanes) : zeros();
        }
        to[0] = d[0] - d[2], to[1] = d[1] + d[2], to[2] = d[2] - d[1], to[3] = d[1] - d[3];
      };
      float* to = v + (t - b.begin) * b.row + c;
      Floats p[4], q[4], r[4], s[4];
      column(left, p), column(left + 1, q);
      for (int64_t i = 0; i < count; i++, to += b.row) {
        column(left + 2 * i + 2, r), column(left + 2 * i + 3, s);
        BW_UNROLL_MANY for (int k = 0; k < 4; k++) {
          float* at = to + k * 4 * b.slab;
          store(at, p[k] - r[k]), store(at + b.slab, q[k] + r[k]), store(at + 2 * b.slab, r[k] - q[k]), store(at + 3 * b.slab, q[k] - s[k]);
          p[k] = r[k], q[k] = s[k];
        }
      }
    }
    t += count;
  }
}

// The 2x2 outputs of each tile of the block: SUMS numbers each, of sixteen sums.
template <int SUMS, class To>
void winograd_outputs(const bw_floats& f, const WinogradBlock& b, const float* m, int64_t panels, const To& to) {
  const int64_t row = panels * 16, slab = (b.end - b.begin) * row;
  for (int64_t t = b.begin; t < b.end; t++, m += row) {
    const int64_t y = t / b.wide * 2, x = t % b.wide * 2;
    const bool below = y + 1 < f.oh, beside = x + 1 < f.ow;
    for (int64_t p = 0; p < panels; p++) {
      Floats made[4][SUMS];
      BW_UNROLL_MANY for (int i = 0; i < SUMS; i++) {
        Floats up[4], down[4];
        BW_UNROLL_MANY for (int k = 0; k < 4; k++) {  // k: column
          const float* at = m + (16 * i + k) * slab + p * 16;
          const Floats a = load(at), s = load(at + 4 * slab), u = load(at + 8 * slab), d = load(at + 12 * slab);
          up[k] = a + s + u, down[k] = s - u - d;
        }
        made[0][i] = up[0] + up[1] + up[2], made[1][i] = up[1] - up[2] - up[3];
        made[2][i] = down[0] + down[1] + down[2], made[3][i] = down[1] - down[2] - down[3];
      }
      const int64_t pixel = y * f.ow + x;
      to.write(made[0], pixel, p);
      if (beside) to.write(made[1], pixel + 1, p);
      if (below) to.write(made[2], pixel + f.ow, p);
      if (below && beside) to.write(made[3], pixel + f.ow + 1, p);
    }
  }
}

// A layer gives the groups of up to four panels of outputs, and of each SUMS sums: the runs of channels in a row of V, the weights of
// product k of the sixteen [channel][panels * 16] (not longer valid at the next call of the same thread), and what becomes of the outputs.
template <class Layer>
bool float_winograd(const bw_floats& f, const float* x, const Layer& layer, int threads) {
  constexpr int SUMS = Layer::SUMS;
  const int64_t wide = bw_ceil_div(f.ow, 2), tiles = wide * bw_ceil_div(f.oh, 2), groups = layer.groups();
  const int64_t row = bw_ceil_div(f.c, 16) * 16 + 16, columns = f.o < FLOAT_GROUP * 16 ? bw_panels(f.o) * 16 : FLOAT_GROUP * 16;
  const int64_t room = WINOGRAD_ROOM / (16 * (row + SUMS * columns) * (int64_t)sizeof(float)), wanted = bw_ceil_div(2 * threads, f.n);
  int64_t blocks = bw_ceil_div(tiles, room < 6 ? 6 : room);
  if (threads > 1 && blocks < wanted) blocks = wanted < tiles / 6 ? wanted : tiles / 6 > blocks ? tiles / 6 : blocks;
  // outputs in parts, where the tiles alone do not keep all threads at work; each part computes V again
  int64_t parts = threads > 1 && blocks < wanted ? bw_ceil_div(wanted, blocks) : 1;
  parts = parts < groups ? parts : groups;
  const int64_t share = bw_ceil_div(tiles, blocks);
  int no_memory = 0;
  for_tasks(threads, f.n * blocks * parts, [&](int64_t task) {
    const int64_t part = task % parts, block = task / parts % blocks, n = task / parts / blocks;
    WinogradBlock b = {wide, tiles * block / blocks, tiles * (block + 1) / blocks, row, 0};
    const int64_t count = b.end - b.begin;
    b.slab = count * row;
    float* v = (float*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(16 * share * row) * sizeof(float));
    float* m = (float*)bw_scratch(BW_SCRATCH_SUMS, (size_t)(SUMS * 16 * share * columns) * sizeof(float));
    int64_t* places = (int64_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)share * sizeof(int64_t));
    if (!v || !m || !places || !layer.memory()) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    winograd_inputs(f, b, x + n * f.h * f.w * f.c, v);
    for (int64_t t = 0; t < count; t++) places[t] = t * row;
    for (int64_t g = groups * part / parts; g < groups * (part + 1) / parts; g++) {
      const int64_t panels = layer.panels(g), width = panels * 16;
      for (int i = 0; i < SUMS; i++) {
        const FloatRuns runs = layer.runs(g, i);
        for (int64_t k = 0; k < 16; k++) {
          const FloatSums to = {m + (16 * i + k) * count * width, width};
          float_group(runs, v + k * b.slab, places, layer.weights(g, i, k), panels, to, count);
        }
      }
      winograd_outputs<SUMS>(f, b, m, panels, layer.finish(g, n));
    }
  });
  return !no_memory;
}

// A convolution alone: one sum over all channels.
struct FloatWhole {
  static const int SUMS = 1;
  const bw_floats& f;
  const float *add, *body;
  float* out;
  const float* residual;
  int64_t zero;  // where the run begins

  int64_t groups() const { return bw_ceil_div(f.o, FLOAT_GROUP * 16); }
  int64_t panels(int64_t g) const { return FloatGroup(f, g).panels; }
  bool memory() const { return true; }
  FloatRuns runs(int64_t, int) const { return {&zero, 1, f.c, nullptr}; }
  const float* weights(int64_t g, int, int64_t k) const {
    const FloatGroup group(f, g);
    return group.weights(body, 16 * f.c) + k * f.c * group.panels * 16;
  }
  FloatFinish finish(int64_t g, int64_t n) const {
    const int64_t image = n * f.oh * f.ow * f.o;
    return float_finish(f, FloatGroup(f, g), add, out + image, residual ? residual + image : nullptr);
  }
};

}  // namespace
