// Float convolutions and linear layers by tables: entry points and prepared weights, the same for every instruction set; see floats.h.
#include <string.h>

#include "float_weights.h"

namespace {

#define BW_REQUIRE(condition, ...) \
  if (!(condition)) return bw_fail(BW_BAD_ARGUMENT, __VA_ARGS__)

const int64_t LIMIT = (int64_t)1 << 24;  // of any one size
bool size_ok(int64_t value) { return value > 0 && value < LIMIT; }

int check_layer(const bw_floats* f) {
  BW_REQUIRE(f, "floats: the layer is null");
  BW_REQUIRE(size_ok(f->c) && size_ok(f->o) && size_ok(f->kh) && size_ok(f->kw), "floats: c, o, kh and kw must be positive");
  BW_REQUIRE(size_ok(f->stride_h) && size_ok(f->stride_w) && size_ok(f->dil_h) && size_ok(f->dil_w),
             "floats: stride and dilation must be positive");
  return BW_OK;
}

int check_run(const bw_floats* f) {
  if (int error = check_layer(f)) return error;
  BW_REQUIRE(f->n >= 0 && f->n < LIMIT && size_ok(f->h) && size_ok(f->w), "floats: n, h and w must be positive");
  BW_REQUIRE(f->pad_h >= 0 && f->pad_h < LIMIT && f->pad_w >= 0 && f->pad_w < LIMIT, "floats: padding must not be negative");
  BW_REQUIRE(f->oh > 0 && f->ow > 0 && f->oh == bw_windows(f->h, f->kh, f->stride_h, f->pad_h, f->dil_h) &&
                 f->ow == bw_windows(f->w, f->kw, f->stride_w, f->pad_w, f->dil_w),
             "floats: oh, ow = %lld, %lld do not follow from the geometry", (long long)f->oh, (long long)f->ow);
  return BW_OK;
}

// G of floats_phases.h, for the points 0, 1, -1, 2, -1/2 and infinity.
void phase_weights(const double (&w)[4], double (&to)[6]) {
  const double even = w[0] + w[2], odd = w[1] + w[3];
  to[0] = w[0], to[1] = -(even + odd) / 3, to[2] = (even - odd) / 3;
  to[3] = (w[0] + 2 * w[1] + 4 * w[2] + 8 * w[3]) / 15, to[4] = (-8 * w[0] + 4 * w[1] - 2 * w[2] + w[3]) * 2 / 15, to[5] = w[3];
}

// The 36 numbers G w G' of each of the 2x2 phases of a window, [36][4], each rounded once.
void phases(const bw_floats& f, const float* w, float* to) {
  for (int64_t phase = 0; phase < 4; phase++) {
    double down[4][6];  // [column][6]
    for (int64_t s = 0; s < 4; s++) {
      double taps[4];
      for (int64_t r = 0; r < 4; r++) {
        const int64_t y = 2 * r + phase / 2, x = 2 * s + phase % 2;
        taps[r] = y < f.kh && x < f.kw ? w[y * f.kw + x] : 0.0;
      }
      phase_weights(taps, down[s]);
    }
    for (int64_t k = 0; k < 6; k++) {
      const double row[4] = {down[0][k], down[1][k], down[2][k], down[3][k]};
      double across[6];
      phase_weights(row, across);
      for (int64_t i = 0; i < 6; i++) to[(k * 6 + i) * 4 + phase] = (float)across[i];
    }
  }
}

// Rows of products that an input channel has in the prepared weights.
int64_t rows_of(const bw_floats& f) { return bw_floats_winograd(f) ? 16 : bw_floats_phases(f) ? 36 * 4 : f.kh * f.kw; }

}  // namespace

bool bw_floats_phases(const bw_floats& f) {
  const auto fits = [](int64_t k) { return k >= 5 && k <= 8; };
  return f.stride_h == 2 && f.stride_w == 2 && f.dil_h == 1 && f.dil_w == 1 && f.c <= 4 && fits(f.kh) && fits(f.kw);
}

bool bw_floats_winograd(const bw_floats& f) {
  return f.kh == 3 && f.kw == 3 && f.stride_h == 1 && f.stride_w == 1 && f.dil_h == 1 && f.dil_w == 1 && f.c >= 16 && !f.nchw;
}

extern "C" {

int64_t bw_floats_size(const bw_floats* f) {
  if (check_layer(f)) return -1;
  return bw_panels(f->o) * 16 * (1 + rows_of(*f) * f->c) * (int64_t)sizeof(float);
}

int bw_floats_pack(const bw_floats* f, const float* weight, const float* add, void* dst) {
  if (int error = check_layer(f)) return error;
  BW_REQUIRE(weight && dst, "floats: weight or dst is null");
  const bool whole = bw_floats_winograd(*f), strided = bw_floats_phases(*f);
  const int64_t taps = f->kh * f->kw, rows = rows_of(*f);
  float *to_add = (float*)dst, *body = to_add + bw_panels(f->o) * 16;
  memset(dst, 0, (size_t)bw_floats_size(f));
  for (int64_t o = 0; o < f->o; o++) {
    if (add) to_add[o] = add[o];
    const int64_t first = o / 64 * 64, width = f->o - first < 64 ? bw_panels(f->o - first) * 16 : 64;
    float* to = body + first * rows * f->c + o % 64;
    for (int64_t c = 0; c < f->c; c++, weight += taps) {
      float changed[36 * 4];
      if (whole) float_winograd_weights(weight, 1, changed);
      if (strided) phases(*f, weight, changed);
      for (int64_t k = 0; k < rows; k++) to[(k * f->c + c) * width] = whole || strided ? changed[k] : weight[k];
    }
  }
  return BW_OK;
}

int bw_conv_floats(const bw_floats* f, const float* x, const void* weights, float* out, const float* residual, int threads) {
  if (int error = check_run(f)) return error;
  if (!f->n) return BW_OK;
  BW_REQUIRE(x && weights && out, "floats: x, weights or out is null");
  const bw_kernel_table* table = bw_active_table();
  if (!table) return BW_BAD_ISA;
  return table->conv_floats(*f, x, weights, out, residual, threads < 1 ? 1 : threads);
}

int bw_linear_tables(const bw_tables* t, const float* x, const uint32_t* index, float* out, int threads) {
  BW_REQUIRE(t, "tables: the layer is null");
  BW_REQUIRE(t->n >= 0 && t->n < LIMIT && size_ok(t->k) && size_ok(t->o), "tables: n, k and o must be positive");
  BW_REQUIRE(t->group >= 1 && t->group <= 4, "tables: a group is 1 to 4 inputs");
  if (!t->n) return BW_OK;
  BW_REQUIRE(t->levels && t->scale && t->add && x && index && out, "tables: a tensor is null");
  const bw_kernel_table* table = bw_active_table();
  if (!table) return BW_BAD_ISA;
  return table->linear_tables(*t, x, index, out, threads < 1 ? 1 : threads);
}

int bw_linear_connections(const bw_connections* layer, const float* x, float* out, int threads) {
  BW_REQUIRE(layer, "connections: the layer is null");
  const bw_connections& l = *layer;
  BW_REQUIRE(l.n >= 0 && l.n < LIMIT && size_ok(l.k) && size_ok(l.o), "connections: n, k and o must be positive");
  if (!l.n) return BW_OK;
  BW_REQUIRE(l.begin && l.index && l.value && x && out, "connections: a tensor is null");
  BW_REQUIRE((l.scale == nullptr) == (l.add == nullptr), "connections: scale and add go together");
  const bw_kernel_table* table = bw_active_table();
  return table ? table->linear_connections(l, x, out, threads < 1 ? 1 : threads) : BW_BAD_ISA;
}

}  // extern "C"
