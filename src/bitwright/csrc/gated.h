// A float convolution whose gate chooses, image by image, which output channels are worth computing (fbs).
//
// The gate reads the mean size of each input channel, so it is known before the convolution which outputs count, and, for
// nothing, which inputs are all zero: those that another gate switched off. The convolution then runs over lists: the
// inputs that count are brought together, [row][input][column] with the padding written out; of the weights,
// [input][tap][output], those of the outputs that count, unless whole panels of 16 outputs are on: these are read where
// they lie. A tile is some pixels of a row times one or two panels, held in registers. What Winograd's form takes is computed by it.
//
// T is what an instruction set adds: tiles, bringing 16 weights together, and taking them apart again.
#pragma once
#include <math.h>
#include <string.h>

#include "gated_winograd.h"

namespace {

// Prepared weights: all rows of outputs are filled up with zeros to a multiple of 16.
struct GatedBody {
  const float *most, *add, *bias, *predictor, *weights;  // most: of |weight|; predictor [c][outputs]
  bw_floats floats;  // the convolution; where Winograd's form takes it, the weights are those of bw_floats_pack
  bool winograd;
  GatedBody(const bw_gated& g, const void* body) {
    const int64_t outputs = bw_panels(g.o) * 16;
    most = (const float*)body;
    add = most + 16, bias = add + outputs, predictor = bias + outputs, weights = predictor + g.c * outputs;
    floats = bw_floats_of(g), winograd = bw_floats_winograd(floats);
    if (winograd) weights += outputs;
  }
};

// What the tiles of one image share.
struct GatedTile {
  int64_t inputs;           // that count
  const int32_t* rows;      // [inputs] of the weights
  int64_t length, down;     // of one input's columns; from a tap to the one below it
  int64_t kh, kw;
  const int64_t* right;     // [kw] from the first tap of a row to each other
  int64_t across, next;     // from one tap's weights to the next, from the first panel to the second
  int64_t step, outputs;    // from a row of the tile to the next one; floats of a pixel of `sums`
};

struct GatedImage {
  const float* x;           // [row][input][column]
  GatedTile tile;
  const float* weights;
  int64_t panels;           // that are computed
  const int32_t* places;    // [panels] where the weights of each lie
  bool apart;               // the outputs that count lie side by side in `sums`
  const float* gain;        // [outputs]
  const uint16_t* on;       // [panels of outputs] whose gain is not 0
};

// Sums of |x| over the image: float per row, then double. Several vectors at a time: an addition waits for the one before.
inline void gated_sizes(const bw_gated& g, const float* x, double* total) {
  for (int64_t c = 0; c < g.c; c++) total[c] = 0;
  for (int64_t y = 0; y < g.h; y++, x += g.w * g.c)
    for (int64_t c = 0; c < g.c; c += 64) {
      const int64_t left = g.c - c;
      Floats sum[4] = {zeros(), zeros(), zeros(), zeros()};
      for (int64_t i = 0; i < g.w; i++)
        BW_UNROLL for (int k = 0; k < 4; k++)
          if (k * 16 < left) sum[k] = sum[k] + size_of(load_some(x + i * g.c + c + k * 16, first_lanes(left - k * 16)));
      float row[64];
      BW_UNROLL for (int k = 0; k < 4; k++) store(row + k * 16, sum[k]);
      for (int64_t i = 0; i < 64 && i < left; i++) total[c + i] += row[i];
    }
}

// [row][input][column] of the inputs in the list; columns of one remainder of the stride lie together.
inline void gated_inputs(const bw_gated& g, const float* x, const int32_t* index, int64_t inputs, int64_t length, float* out) {
  const int64_t each = length / g.stride_w, rows = g.h + 2 * g.pad_h;
  memset(out, 0, (size_t)(rows * inputs * length) * sizeof(float));
  for (int64_t y = 0; y < g.h; y++) {
    float* to = out + (y + g.pad_h) * inputs * length;
    for (int64_t i = 0; i < g.w; i++, x += g.c) {
      float* at = to + (i + g.pad_w) % g.stride_w * each + (i + g.pad_w) / g.stride_w;
      for (int64_t j = 0; j < inputs; j++) at[j * length] = x[index[j]];
    }
  }
}

// One or two rows of outputs.
template <class T>
bool gated_rows(const bw_gated& g, const GatedBody& body, const GatedImage& image, int64_t y, int64_t count, float* out,
                const float* residual) {
  const GatedTile& t = image.tile;
  float* sums = (float*)bw_scratch(BW_SCRATCH_ROW, (size_t)(count * g.ow * t.outputs + 16) * sizeof(float));
  if (!sums) return false;
  const int64_t most = count == 1 ? T::PIXELS : T::PIXELS / 2, tiles = bw_ceil_div(g.ow, most), width = bw_ceil_div(g.ow, tiles);
  const float* x = image.x + y * g.stride_h * t.inputs * t.length;
  for (int64_t p = 0; p < image.panels; p += 2) {
    const int64_t panels = p + 1 < image.panels ? 2 : 1;
    GatedTile mine = t;
    mine.next = panels == 2 ? image.places[p + 1] - image.places[p] : 0;
    for (int64_t left = 0; left < g.ow; left += width) {
      const int64_t pixels = left + width < g.ow ? width : g.ow - left;
      T::tile(count, pixels, panels)(mine, x + left, image.weights + image.places[p], sums + left * t.outputs + p * 16,
                                     g.ow * t.outputs);
    }
  }
  for (int64_t i = 0; i < count * g.ow; i++) {
    const int64_t at = (y * g.ow + i) * g.o;
    T::finish(g, image, body.add, sums + i * t.outputs, out + at, residual ? residual + at : nullptr);
  }
  return true;
}

const int64_t GATED_FEW = 24;  // tiles that do not make up for weights that are brought together

// `active` outputs count. Where they fill fewer panels side by side their sums are computed first, else results leave the tiles.
template <class T>
bool gated_by_winograd(const bw_gated& g, const GatedBody& body, const GatedImage& image, const float* x, const int32_t* index,
                       int64_t inputs, int64_t active, float* out, const float* residual, int threads) {
  const int64_t all = bw_panels(g.o), pixels = g.oh * g.ow;
  bool full = bw_ceil_div(g.oh, 2) * bw_ceil_div(g.ow, 2) <= GATED_FEW;  // something of each panel counts
  for (int64_t p = 0; p < all; p++) full &= image.on[p] != 0;
  if (!image.apart || full) {
    uint16_t* lanes = (uint16_t*)bw_scratch(BW_SCRATCH_CUTS, (size_t)all * (sizeof(uint16_t) + sizeof(int32_t)) + 4);
    if (!lanes) return false;
    int32_t* panels = (int32_t*)(lanes + (all + 1) / 2 * 2);
    for (int64_t p = 0, i = 0; p < all; p++) {
      lanes[p] = image.on[p] ? 0xffff : 0;
      if (image.on[p]) panels[i++] = (int32_t)p;
    }
    const GatedFinish finish = {g, body.add, image.gain, image.on, panels, out, residual};
    for (int64_t p = 0; p < all; p++)
      if (!image.on[p]) finish.skip(p);
    return !active || gated_winograd(body.floats, x, body.weights, index, inputs, lanes, [&](const FloatChosen& chosen, const float* from) {
      return float_winograd(chosen.f, from, FloatChosenPanels{chosen, finish}, threads);
    });
  }
  const int64_t width = bw_panels(active) * 16, share = items_per_task(threads, pixels, 1, pixels);
  float* sums = (float*)bw_scratch(BW_SCRATCH_POOL, (size_t)(pixels * width + 16) * sizeof(float));
  if (!sums) return false;
  const bool done = !active || gated_winograd(body.floats, x, body.weights, index, inputs, image.on,
                                              [&](const FloatChosen& chosen, const float* from) {
    return float_winograd(chosen.f, from, FloatChosenSums{chosen, sums}, threads);
  });
  for_tasks(threads, done ? bw_ceil_div(pixels, share) : 0, [&](int64_t task) {
    for (int64_t i = task * share; i < pixels && i < (task + 1) * share; i++)
      T::finish(g, image, body.add, sums + i * width, out + i * g.o, residual ? residual + i * g.o : nullptr);
  });
  return done;
}

template <class T>
bool gated_image(const bw_gated& g, const GatedBody& body, const float* x, float* out, const float* residual, float* on,
                 int threads) {
  const int64_t all = bw_panels(g.o), outputs = all * 16, taps = g.kh * g.kw;
  const size_t tables = (size_t)(g.c * (sizeof(double) + 2 * sizeof(int32_t)) + outputs * 2 * sizeof(float) +
                                 all * (sizeof(int32_t) + sizeof(uint16_t)) + g.kw * sizeof(int64_t));
  double* total = (double*)bw_scratch(BW_SCRATCH_ROWS, tables);
  if (!total) return false;
  int64_t* right = (int64_t*)(total + g.c);
  float *size = (float*)(right + g.kw), *gain = size + outputs;
  int32_t *index = (int32_t*)(gain + outputs), *rows = index + g.c, *places = rows + g.c;
  uint16_t* mask = (uint16_t*)(places + all);

  // the gate
  gated_sizes(g, x, total);
  double sum = 0;
  int64_t inputs = 0;
  for (int64_t o = 0; o < outputs; o++) size[o] = body.bias[o];
  for (int64_t c = 0; c < g.c; c++) {
    sum += total[c];
    if (total[c] == 0) continue;
    const float m = (float)(total[c] / (double)(g.h * g.w));
    const float* row = body.predictor + c * outputs;
    for (int64_t o = 0; o < outputs; o++) size[o] += m * row[o];
    index[inputs++] = (int32_t)c;
  }
  for (int64_t o = 0; o < outputs; o++) size[o] = size[o] < 0 ? 0 : size[o];
  if (!bw_winners(size, g.o, g.count, g.block, on)) return false;
  // A sum that might overflow makes NaN of an output that is off, too: then all are computed.
  const bool safe = sum * *body.most < (body.winograd ? 1e36 : 1e38);  // Winograd's sums are up to 21 times as large
  int64_t active = 0;
  bool whole = true;
  for (int64_t p = 0; p < all; p++) {
    uint16_t bits = 0;
    int64_t wide = g.o - p * 16 < 16 ? g.o - p * 16 : 16;
    for (int64_t i = 0; i < 16; i++) {
      const int64_t o = p * 16 + i;
      gain[o] = i < wide ? size[o] * on[o] : 0;
      if (i < wide && (!safe || gain[o] != 0)) bits |= (uint16_t)(1 << i), active++;
    }
    mask[p] = bits;
    whole &= !bits || bits == (uint16_t)((1 << wide) - 1);
  }

  GatedImage image;
  image.gain = gain, image.on = mask;
  image.apart = !whole && bw_panels(active) < all;
  image.panels = image.apart ? bw_panels(active) : 0;
  if (!image.apart)
    for (int64_t p = 0; p < all; p++)
      if (mask[p]) places[image.panels++] = (int32_t)(p * 16);
  if (body.winograd) return gated_by_winograd<T>(g, body, image, x, index, inputs, active, out, residual, threads);
  GatedTile& t = image.tile;
  const int64_t columns = bw_ceil_div(g.w + 2 * g.pad_w, g.stride_w);
  t.inputs = inputs, t.rows = index, t.length = columns * g.stride_w, t.kh = g.kh, t.kw = g.kw, t.right = right;
  t.down = g.dil_h * inputs * t.length, t.step = g.stride_h * inputs * t.length;
  t.outputs = image.panels * 16, t.across = outputs;
  for (int64_t k = 0; k < g.kw; k++) right[k] = k * g.dil_w % g.stride_w * columns + k * g.dil_w / g.stride_w;
  image.weights = body.weights, image.places = places;
  if (image.apart) {
    float* mine = (float*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(inputs * taps * t.outputs + 16) * sizeof(float));
    if (!mine) return false;
    for (int64_t j = 0; j < inputs; j++) {
      rows[j] = (int32_t)j;
      for (int64_t k = 0; k < taps; k++)
        T::together(body.weights + (index[j] * taps + k) * outputs, mask, all, mine + (j * taps + k) * t.outputs);
    }
    for (int64_t p = 0; p < image.panels; p++) places[p] = (int32_t)(p * 16);
    image.weights = mine, t.rows = rows, t.across = t.outputs;
  }
  const int64_t floats = (g.h + 2 * g.pad_h) * inputs * t.length + 1;
  float* packed = (float*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)floats * sizeof(float));
  if (!packed) return false;
  gated_inputs(g, x, index, inputs, t.length, packed);
  image.x = packed;

  const int64_t high = g.ow <= T::PIXELS / 2 && g.oh > 1 ? 2 : 1;
  const int64_t share = items_per_task(threads, g.oh, high, g.oh);
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(g.oh, share), [&](int64_t task) {
    const int64_t end = (task + 1) * share < g.oh ? (task + 1) * share : g.oh;
    for (int64_t y = task * share; y < end; y += high)
      if (!gated_rows<T>(g, body, image, y, y + high <= end ? high : 1, out, residual))
        __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
  });
  return !no_memory;
}

template <class T>
int gated_conv(const bw_gated& given, const float* x, const void* prepared, float* out, const float* residual, float* on, int threads) {
  bw_gated g = given;
  if (g.kh == 1 && g.kw == 1 && g.stride_h == 1 && g.stride_w == 1 && !g.pad_h && !g.pad_w)  // pixels in one row
    g.w *= g.h, g.ow = g.w, g.h = g.oh = 1;
  const GatedBody body(g, prepared);
  const int64_t in = g.h * g.w * g.c, made = g.oh * g.ow * g.o, inside = g.n < threads ? threads : 1;
  int no_memory = 0;
  for_tasks(inside == 1 ? threads : 1, g.n, [&](int64_t i) {
    const float* mine = residual ? residual + i * made : nullptr;
    if (!gated_image<T>(g, body, x + i * in, out + i * made, mine, on + i * g.o, (int)inside))
      __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "no memory for the lists of a gated convolution") : BW_OK;
}

}  // namespace
