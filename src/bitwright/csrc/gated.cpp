// Gated convolutions: entry points, prepared weights, and who wins; see gated.h.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "kernels.h"

namespace {

#define BW_REQUIRE(condition, ...) \
  if (!(condition)) return bw_fail(BW_BAD_ARGUMENT, __VA_ARGS__)

const int64_t LIMIT = (int64_t)1 << 24;  // of any one size
bool size_ok(int64_t value) { return value > 0 && value < LIMIT; }

int check_layer(const bw_gated* g) {
  BW_REQUIRE(g, "gated: the layer is null");
  BW_REQUIRE(size_ok(g->c) && size_ok(g->o) && size_ok(g->kh) && size_ok(g->kw), "gated: c, o, kh and kw must be positive");
  BW_REQUIRE(size_ok(g->stride_h) && size_ok(g->stride_w) && size_ok(g->dil_h) && size_ok(g->dil_w),
             "gated: stride and dilation must be positive");
  BW_REQUIRE(size_ok(g->block) && g->o % g->block == 0 && g->count > 0 && g->count <= g->o / g->block,
             "gated: %lld blocks of %lld of %lld channels", (long long)g->count, (long long)g->block, (long long)g->o);
  return BW_OK;
}

int check_run(const bw_gated* g) {
  if (int error = check_layer(g)) return error;
  BW_REQUIRE(g->n >= 0 && g->n < LIMIT && size_ok(g->h) && size_ok(g->w), "gated: n, h and w must be positive");
  BW_REQUIRE(g->pad_h >= 0 && g->pad_h < LIMIT && g->pad_w >= 0 && g->pad_w < LIMIT, "gated: padding must not be negative");
  BW_REQUIRE(g->oh > 0 && g->ow > 0 && g->oh == bw_windows(g->h, g->kh, g->stride_h, g->pad_h, g->dil_h) &&
                 g->ow == bw_windows(g->w, g->kw, g->stride_w, g->pad_w, g->dil_w),
             "gated: oh, ow = %lld, %lld do not follow from the geometry", (long long)g->oh, (long long)g->ow);
  return BW_OK;
}

struct Candidate {
  float size;
  int64_t block;
};

// NaN is the largest of all, as in torch; of equal ones the first.
bool before(const Candidate& a, const Candidate& b) {
  if (isnan(a.size) || isnan(b.size)) return isnan(a.size) && (!isnan(b.size) || a.block < b.block);
  return a.size > b.size || (a.size == b.size && a.block < b.block);
}

}  // namespace

bool bw_winners(const float* size, int64_t o, int64_t count, int64_t block, float* on) {
  const int64_t blocks = o / block;
  if (count == blocks) {
    for (int64_t i = 0; i < o; i++) on[i] = size[i] > 0;
    return true;
  }
  Candidate* all = (Candidate*)bw_scratch(BW_SCRATCH_CUTS, (size_t)blocks * sizeof(Candidate));
  if (!all) return false;
  for (int64_t b = 0; b < blocks; b++) {
    float sum = 0;
    for (int64_t i = 0; i < block; i++) sum += size[b * block + i];
    all[b] = {sum / (float)block, b};
  }
  std::nth_element(all, all + count - 1, all + blocks, before);
  memset(on, 0, (size_t)o * sizeof(float));
  for (int64_t k = 0; k < count; k++)
    for (int64_t i = all[k].block * block; i < (all[k].block + 1) * block; i++) on[i] = size[i] > 0;
  return true;
}

bw_floats bw_floats_of(const bw_gated& g) {
  return {g.n, g.h, g.w, g.c, g.o, g.kh, g.kw, g.stride_h, g.stride_w, g.pad_h, g.pad_w, g.dil_h, g.dil_w, g.oh, g.ow, 0, 0};
}

extern "C" {

int64_t bw_gated_size(const bw_gated* g) {
  if (check_layer(g)) return -1;
  const bw_floats f = bw_floats_of(*g);
  const int64_t outputs = bw_panels(g->o) * 16, taps = g->kh * g->kw, before = 16 + outputs * (2 + g->c);
  return before * (int64_t)sizeof(float) + (bw_floats_winograd(f) ? bw_floats_size(&f) : outputs * g->c * taps * (int64_t)sizeof(float));
}

int bw_gated_pack(const bw_gated* g, const float* weight, const float* add, const float* predictor, const float* bias, void* dst) {
  if (int error = check_layer(g)) return error;
  BW_REQUIRE(weight && add && predictor && bias && dst, "gated: a tensor is null");
  const bw_floats f = bw_floats_of(*g);
  const bool winograd = bw_floats_winograd(f);
  const int64_t outputs = bw_panels(g->o) * 16, taps = g->kh * g->kw;
  float* body = (float*)dst;
  memset(body, 0, (size_t)bw_gated_size(g));
  float *to_add = body + 16, *to_bias = to_add + outputs, *to_predictor = to_bias + outputs, *to = to_predictor + g->c * outputs;
  for (int64_t o = 0; o < g->o; o++) {
    to_add[o] = add[o], to_bias[o] = bias[o];
    for (int64_t c = 0; c < g->c; c++) {
      to_predictor[c * outputs + o] = predictor[o * g->c + c];
      for (int64_t k = 0; k < taps; k++) {
        const float w = weight[(o * g->c + c) * taps + k];
        if (!winograd) to[(c * taps + k) * outputs + o] = w;
        if (!(fabsf(w) <= body[0])) body[0] = fabsf(w);
      }
    }
  }
  return winograd ? bw_floats_pack(&f, weight, nullptr, to) : BW_OK;
}

int bw_conv_gated(const bw_gated* g, const float* x, const void* weights, float* out, const float* residual, float* on, int threads) {
  if (int error = check_run(g)) return error;
  if (!g->n) return BW_OK;
  BW_REQUIRE(x && weights && out && on, "gated: x, weights, out or on is null");
  const bw_kernel_table* table = bw_active_table();
  if (!table) return BW_BAD_ISA;
  return table->conv_gated(*g, x, weights, out, residual, on, threads < 1 ? 1 : threads);
}

}  // extern "C"
