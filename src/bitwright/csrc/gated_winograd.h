// A gated convolution by Winograd's F(2x2, 3x3): the kernel of floats.h over the inputs and outputs that count.
//
// The inputs that count are brought together, pixel by pixel, where that saves vectors. So are the weights, unless all outputs count: product by
// product, for one group of four panels at a time; each is used for all tiles of a block before the next ones take its place.
#pragma once
#include "floats.h"

namespace {

// Numbers of a row that count: which of a panel of sixteen, and where the first one goes.
struct FloatPiece {
  int32_t panel, at;
  Together lanes;
  BW_INLINE void copy(const float* from, float* to) const { lanes.copy(from, to + at); }
};
struct FloatPicks {
  const FloatPiece* pieces;
  int64_t count, width;  // of the pieces; floats of the row that they make, whole panels
};

// Cuts the numbers of the masks into rows of `width`; pieces: room for two a panel.
inline void cut_picks(const uint16_t* lanes, int64_t panels, int64_t width, FloatPiece* pieces, FloatPicks* rows) {
  int64_t row = 0, at = 0;
  rows[0] = {pieces, 0, 0};
  for (int64_t p = 0; p < panels; p++)
    for (uint32_t left = lanes[p]; left;) {
      if (at == width) rows[++row] = {pieces, 0, 0}, at = 0;
      uint32_t mine = left;
      while (__builtin_popcount(mine) > width - at) mine &= ~(0x80000000u >> __builtin_clz(mine));
      *pieces++ = {(int32_t)p, (int32_t)at, together((uint16_t)mine)};
      at += __builtin_popcount(mine), left &= ~mine;
      rows[row].count++, rows[row].width = bw_ceil_div(at, 16) * 16;
    }
}

// What counts of a layer whose weights are those of bw_floats_pack.
struct FloatChosen {
  const bw_floats &f, &layer;  // what counts: f.o outputs; the inputs of V; the layer
  const float* body;
  const int32_t* inputs;       // [count] that count
  int64_t count;
  const FloatPicks* rows;      // of outputs, a group each; null: all outputs count, the weights are read where they lie
  FloatRuns channels;          // that count, in V

  static const int SUMS = 1;
  int64_t groups() const { return bw_ceil_div(f.o, FLOAT_GROUP * 16); }
  int64_t panels(int64_t g) const { return FloatGroup(f, g).panels; }
  bool memory() const { return room(); }
  float* room() const { return (float*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(count * FLOAT_GROUP * 16 + 16) * sizeof(float)); }
  FloatRuns runs(int64_t, int) const { return channels; }
  const float* weights(int64_t g, int, int64_t k) const {
    const FloatGroup group(layer, g);
    if (!rows) return group.weights(body, 16 * layer.c) + k * layer.c * group.panels * 16;
    const FloatPicks& row = rows[g];
    const int64_t last = layer.o / (FLOAT_GROUP * 16), width = bw_panels(layer.o - last * FLOAT_GROUP * 16) * 16;
    float *const made = room(), *to = made;
    const float* from[FLOAT_GROUP * 16];  // weights of the first input; the next one's lie `step` behind
    int64_t step[FLOAT_GROUP * 16];
    for (int64_t i = 0; i < row.count; i++) {
      const int64_t panel = row.pieces[i].panel, group = panel / FLOAT_GROUP;
      step[i] = group == last ? width : FLOAT_GROUP * 16;
      from[i] = body + group * FLOAT_GROUP * 256 * layer.c + k * layer.c * step[i] + panel % FLOAT_GROUP * 16;
    }
    for (int64_t j = 0; j < count; j++, to += row.width) {
      store(to + row.width - 16, zeros());
      const int64_t input = inputs[j], ahead = j + 6 < count ? inputs[j + 6] : input;
      for (int64_t i = 0; i < row.count; i++) {
        __builtin_prefetch(from[i] + ahead * step[i]);
        row.pieces[i].copy(from[i] + input * step[i], to);
      }
    }
    return made;
  }
};

// Its sums [pixel][panels * 16].
struct FloatChosenSums : FloatChosen {
  float* sums;
  FloatSums finish(int64_t g, int64_t) const { return {sums + g * FLOAT_GROUP * 16, bw_panels(f.o) * 16}; }
};

// Sums of whole panels, and what becomes of them.
struct GatedFinish {
  const bw_gated& g;
  const float *add, *gain;   // [outputs]
  const uint16_t* on;        // [panels of outputs]
  const int32_t* panels;     // that are computed
  float* out;
  const float* residual;
  BW_INLINE void put(Floats y, int64_t at, uint16_t lanes) const {
    if (residual) y = y + load_some(residual + at, lanes);
    if (g.relu) y = not_below_zero(y);
    store_some(out + at, y, lanes);
  }
  BW_INLINE void write(const Floats (&y)[1], int64_t pixel, int64_t panel) const {
    const int64_t p = panels[panel], o = p * 16;
    put(choose(on[p], (y[0] + load(add + o)) * load(gain + o), zeros()), pixel * g.o + o, first_lanes(g.o - o));
  }
  // a panel that is off
  void skip(int64_t p) const {
    for (int64_t pixel = 0; pixel < g.oh * g.ow; pixel++) put(zeros(), pixel * g.o + p * 16, first_lanes(g.o - p * 16));
  }
};
struct FloatChosenPanels : FloatChosen {
  GatedFinish to;
  GatedFinish finish(int64_t group, int64_t) const {
    GatedFinish mine = to;
    mine.panels += group * FLOAT_GROUP;
    return mine;
  }
};

// One image, of which the inputs of the list count, and of each panel of outputs the lanes in `on`; whole panels: all lanes or none.
// run(what float_winograd takes, its image, the layer of what counts, of which it fills the finish).
template <class Run>
bool gated_winograd(const bw_floats& layer, const float* x, const float* body, const int32_t* index, int64_t inputs, const uint16_t* on,
                    const Run& run) {
  const int64_t all = bw_panels(layer.o), from = bw_panels(layer.c), pixels = layer.h * layer.w;
  bw_floats f = layer;
  f.n = 1, f.o = 0;
  for (int64_t p = 0; p < all; p++) f.o += __builtin_popcount(on[p]);
  const bool whole = f.o >= layer.o, apart = bw_panels(inputs) < from;
  const int64_t most = 2 * (all + from), groups = bw_ceil_div(all, FLOAT_GROUP) + 1;
  FloatPicks* rows = (FloatPicks*)bw_scratch(BW_SCRATCH_PLACES, (size_t)(groups + 1) * sizeof(FloatPicks) + (size_t)layer.c * 16 +
                                                                   (size_t)most * sizeof(FloatPiece) + (size_t)from * 2);
  if (!rows) return false;
  FloatPicks* channels = rows + groups;
  int64_t* starts = (int64_t*)(channels + 1);
  FloatPiece* pieces = (FloatPiece*)(starts + 2 * layer.c);
  uint16_t* lanes = (uint16_t*)(pieces + most);
  if (!whole) cut_picks(on, all, FLOAT_GROUP * 16, pieces, rows);
  for (int64_t j = 0; j < inputs; j++) starts[j] = apart ? j : index[j], starts[layer.c + j] = index[j];
  if (apart) {  // fewer vectors in an image of these alone
    f.c = inputs;
    memset(lanes, 0, (size_t)from * 2);
    for (int64_t j = 0; j < inputs; j++) lanes[index[j] / 16] |= (uint16_t)(1 << index[j] % 16);
    cut_picks(lanes, from, (from + 1) * 16, pieces + 2 * all, channels);
    float* image = (float*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)(pixels * inputs + 16) * sizeof(float));
    if (!image) return false;
    for (int64_t i = 0; i < pixels; i++)
      for (int64_t j = 0; j < channels->count; j++) {
        const FloatPiece& p = channels->pieces[j];
        const float* from = x + i * layer.c + p.panel * 16;
        if (i + 1 == pixels && p.panel + 1 == bw_panels(layer.c) && layer.c % 16) {  // no more numbers than there are
          float some[16];
          store(some, load_some(from, first_lanes(layer.c % 16)));
          p.copy(some, image + i * inputs);
        } else {
          p.copy(from, image + i * inputs);
        }
      }
    x = image;
  }
  const int64_t zero = 0;
  FloatRuns runs = {starts, inputs, 1, whole ? starts + layer.c : nullptr};
  if (inputs == layer.c || (apart && !whole)) runs = {&zero, 1, inputs, nullptr};
  return run(FloatChosen{f, layer, body, index, inputs, whole ? nullptr : rows, runs}, x);
}

}  // namespace
