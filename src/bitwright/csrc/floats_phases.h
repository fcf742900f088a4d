// Float convolutions in steps of 2 of an image with few channels, a net's first layer: Winograd's F(3x3, 4x4) over phases.
//
// A window of 5 to 8 in steps of 2 falls into 2x2 phases, the even and the odd rows and columns, of up to 4x4 taps in steps of 1. An
// image of C channels, at most 4, becomes one of half the side with 4 C, and 36 products for each of these give 3x3 outputs: for a
// window of 7x7, 144 products of a channel where 441 are counted. As in floats.h: V = B'dB of 6x6 inputs, U = GwG' in double when the
// weights are packed, 36 products of matrices, Y = A'MA. The points are 0, 1, -1, 2, -1/2 and infinity: the error of a sum is about
// twice that of the direct one (with 1/2 and -2, or +-2, or larger tiles, it is three to eight times).
#pragma once
#include "floats.h"

namespace {

const int64_t PHASE_TILES = 18;  // of a block: V, M and the weights stay in the second cache

// The inputs of one place of all phases: of channels 2 C of an even row, then of the odd row below.
BW_INLINE Floats phases_at(const float* even, int64_t row, int64_t values) {
#if defined(__AVX512F__)
  const uint16_t low = first_lanes(values), high = (uint16_t)(low << values);
  return _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(low, even), high, even + row - values);
#else
  float x[16] = {};
  for (int64_t i = 0; i < values; i++) x[i] = even[i], x[values + i] = even[row + i];
  return load(x);
#endif
}

BW_INLINE void phase_inputs(const Floats (&d)[6], Floats (&to)[6]) {
  const Floats odd = d[3] - d[1], even = d[4] - d[2], inner = d[4] - d[1];
  to[0] = plus_product(plus_product(d[0] + d[4], all_of(-2.0f), d[2]), all_of(-1.5f), odd);
  to[1] = plus_product(plus_product(inner, all_of(-2.5f), d[2]), all_of(-0.5f), d[3]);
  to[2] = plus_product(plus_product(d[4] + d[1], all_of(0.5f), d[2]), all_of(-2.5f), d[3]);
  to[3] = plus_product(even, all_of(0.5f), odd);
  to[4] = plus_product(even, all_of(-2.0f), odd);
  to[5] = plus_product(plus_product(d[1] + d[5], all_of(-2.0f), d[3]), all_of(-1.5f), even);
}

BW_INLINE void phase_outputs(const Floats (&m)[6], Floats (&to)[3]) {
  const Floats both = m[1] + m[2];
  to[0] = (m[0] + both) + (m[3] + m[4]);
  to[1] = plus_product(plus_product(m[1] - m[2], all_of(2.0f), m[3]), all_of(-0.5f), m[4]);
  to[2] = plus_product(plus_product(both + m[5], all_of(4.0f), m[3]), all_of(0.25f), m[4]);
}

struct PhaseBlock {
  int64_t wide, begin, end;  // tiles of a row; those of this block
};

// V of the block, [36][tiles][16]: down the columns first; three of the six columns of a tile are those of its left neighbor.
inline void phase_block_inputs(const PhaseBlock& b, const float* image, int64_t row, int64_t values, float* v) {
  const int64_t slab = (b.end - b.begin) * 16;
  for (int64_t t = b.begin; t < b.end;) {
    const int64_t ty = t / b.wide, tx = t % b.wide, count = b.wide - tx < b.end - t ? b.wide - tx : b.end - t;
    const float* at = image + 6 * ty * row + 3 * tx * values;
    const auto column = [&](int64_t i, Floats (&to)[6]) {
      Floats d[6];
      BW_UNROLL_MANY for (int k = 0; k < 6; k++) d[k] = phases_at(at + 2 * k * row + i * values, row, values);
      phase_inputs(d, to);
    };
    Floats columns[6][6];
    BW_UNROLL_MANY for (int k = 0; k < 3; k++) column(k, columns[k]);
    for (float *to = v + (t - b.begin) * 16, *end = to + count * 16; to < end; to += 16, at += 3 * values) {
      BW_UNROLL_MANY for (int k = 3; k < 6; k++) column(k, columns[k]);
      BW_UNROLL_MANY for (int k = 0; k < 6; k++) {
        const Floats d[6] = {columns[0][k], columns[1][k], columns[2][k], columns[3][k], columns[4][k], columns[5][k]};
        Floats across[6];
        phase_inputs(d, across);
        BW_UNROLL_MANY for (int i = 0; i < 6; i++) store(to + (k * 6 + i) * slab, across[i]);
      }
      BW_UNROLL_MANY for (int k = 0; k < 3; k++)
        BW_UNROLL_MANY for (int i = 0; i < 6; i++) columns[k][i] = columns[k + 3][i];
    }
    t += count;
  }
}

// The 3x3 outputs of each tile of the block from its sums [36][tiles][outputs].
inline void phase_block_outputs(const bw_floats& f, const PhaseBlock& b, const float* m, int64_t panels, const FloatFinish& to) {
  const int64_t row = panels * 16, slab = (b.end - b.begin) * row;
  for (int64_t t = b.begin; t < b.end; t++, m += row) {
    const int64_t y = t / b.wide * 3, x = t % b.wide * 3, high = f.oh - y < 3 ? f.oh - y : 3, wide = f.ow - x < 3 ? f.ow - x : 3;
    for (int64_t p = 0; p < panels; p++) {
      Floats columns[3][6];
      BW_UNROLL_MANY for (int i = 0; i < 6; i++) {
        Floats d[6], down[3];
        BW_UNROLL_MANY for (int k = 0; k < 6; k++) d[k] = load(m + (k * 6 + i) * slab + p * 16);
        phase_outputs(d, down);
        BW_UNROLL_MANY for (int k = 0; k < 3; k++) columns[k][i] = down[k];
      }
      BW_UNROLL_MANY for (int k = 0; k < 3; k++) {
        Floats across[3];
        phase_outputs(columns[k], across);
        BW_UNROLL_MANY for (int i = 0; i < 3; i++)
          if (k < high && i < wide) to.write(across[i], (y + k) * f.ow + x + i, p);
      }
    }
  }
}

inline bool float_phases(const bw_floats& f, const float* x, const float* add, const float* body, float* out, const float* residual,
                         int threads) {
  const int64_t wide = bw_ceil_div(f.ow, 3), down = bw_ceil_div(f.oh, 3), tiles = wide * down, values = 2 * f.c;
  const int64_t blocks = bw_ceil_div(tiles, PHASE_TILES), groups = bw_ceil_div(f.o, FLOAT_GROUP * 16), zero = 0;
  const int64_t columns = f.o < FLOAT_GROUP * 16 ? bw_panels(f.o) * 16 : FLOAT_GROUP * 16;
  const int64_t high = 6 * down + 6, row = (6 * wide + 6) * f.c;
  float* padded = (float*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)(high * row) * sizeof(float));
  if (!padded) return false;
  int no_memory = 0;
  for (int64_t n = 0; n < f.n; n++, x += f.h * f.w * f.c, out += f.oh * f.ow * f.o) {
    const float* other = residual ? residual + n * f.oh * f.ow * f.o : nullptr;
    float_padded(f, x, high, 6 * wide + 6, padded);
    for_tasks(threads, blocks, [&](int64_t task) {
      const int64_t begin = task * PHASE_TILES, left = tiles - begin, count = left < PHASE_TILES ? left : PHASE_TILES;
      const PhaseBlock b = {wide, begin, begin + count};
      float* v = (float*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(36 * PHASE_TILES * 16) * sizeof(float));
      float* m = (float*)bw_scratch(BW_SCRATCH_SUMS, (size_t)(36 * PHASE_TILES * columns) * sizeof(float));
      if (!v || !m) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
      phase_block_inputs(b, padded, row, values, v);
      int64_t places[PHASE_TILES];
      for (int64_t t = 0; t < count; t++) places[t] = t * 16;
      const FloatRuns runs = {&zero, 1, 4 * f.c, nullptr};
      for (int64_t g = 0; g < groups; g++) {
        const FloatGroup group(f, g);
        const int64_t width = group.panels * 16;
        const float* w = group.weights(body, 36 * 4 * f.c);
        for (int64_t k = 0; k < 36; k++, w += 4 * f.c * width) {
          const FloatSums to = {m + k * count * width, width};
          float_group(runs, v + k * count * 16, places, w, group.panels, to, count);
        }
        phase_block_outputs(f, b, m, group.panels, float_finish(f, group, add, out, other));
      }
    });
  }
  return !no_memory;
}

}  // namespace
