// Linear layers on floats whose weights are mostly zero. The numbers of up to 32 rows lie side by side, [K][rows], so that a weight that
// is left costs one load of itself and multiplies whole vectors: two thirds of what the dense kernel does in a cycle. Even and odd
// weights have sums of their own: a shorter chain. Sixteen outputs at a time are turned round, to lie by row. One row is
// read as it lies.
#pragma once
#include "generic_lists.h"
#include "skip_lanes.h"

namespace {

typedef float Sixteen __attribute__((vector_size(64)));

// Sixteen rows of `width` numbers, at most sixteen, as columns, `step` apart. Not inlined: it is long.
__attribute__((noinline)) void turned(const float* const* from, int64_t width, float* to, int64_t step) {
  Sixteen a[16] = {};
  for (int r = 0; r < 16; r++) memcpy(&a[r], from[r], (size_t)width * 4);
  turn_round(a);
  for (int64_t i = 0; i < width; i++) memcpy(to + i * step, &a[i], 64);
}

// to[i] = tanh(x[i]) to a few units in the last place: 1 - 2 / (e^2a + 1), near 0 its series.
__attribute__((noinline)) void tanh_of(const float* x, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const float v = x[i], size = v < 0 ? -v : v, a = size < 10.0f ? size : 10.0f, square = a * a;
    // 2a = k ln 2 + r; adding 1.5 * 2^23 rounds to a whole number
    const float k = (a * 2.88539008f + 12582912.0f) - 12582912.0f;
    const float r = (2.0f * a - k * 0.693145752f) - k * 1.42860677e-6f;
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = (e * r + 1.0f) * r + 1.0f;
    const int32_t power = ((int32_t)k + 127) << 23;
    float two_to_k;
    memcpy(&two_to_k, &power, sizeof power);
    const float large = 1.0f - 2.0f / (e * two_to_k + 1.0f);
    float s = -1382.0f / 155925;
    s = s * square + 62.0f / 2835;
    s = s * square - 17.0f / 315;
    s = s * square + 2.0f / 15;
    s = s * square - 1.0f / 3;
    const float small = a + a * square * s, y = a < 0.35f ? small : large;
    to[i] = v != v ? v : v < 0 ? -y : y;  // NaN stays
  }
}

// What comes behind the sums of a row.
BW_INLINE void finish_row(const bw_connections& l, float* y) {
  if (l.tanh & 2) tanh_of(y, y, l.o);
  if (l.scale)
    for (int64_t o = 0; o < l.o; o++) y[o] = y[o] * l.scale[o] + l.add[o];
}

inline void connections_row(const bw_connections& l, const float* x, float* out) {
  for (int64_t o = 0; o < l.o; o++) {
    float sum[4] = {};
    int64_t i = l.begin[o];
    const int64_t end = l.begin[o + 1];
    for (; i + 4 <= end; i += 4)
      for (int64_t j = 0; j < 4; j++) sum[j] += l.value[i + j] * x[l.index[i + j]];
    for (; i < end; i++) sum[0] += l.value[i] * x[l.index[i]];
    const float all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    out[o] = l.bias ? all + l.bias[o] : all;
  }
  finish_row(l, out);
}

// Sixteen rows of numbers, from `k` on, as they lie.
struct FloatRows {
  const float* x;
  int64_t k;
  BW_INLINE const float* at(int64_t row, int64_t first, int64_t, float*) const { return x + row * k + first; }
};
// Of codes, which become floats at `to`.
struct CodeRows {
  const uint8_t* x;
  int64_t k;
  BW_INLINE const float* at(int64_t row, int64_t first, int64_t width, float* to) const {
    uint8_t codes[16] = {};
    memcpy(codes, x + row * k + first, (size_t)width);
    for (int i = 0; i < 16; i++) to[i] = (float)codes[i];
    return to;
  }
};

// Rows 0 .. count - 1, count <= 16 VECTORS: the sums, out [count][o].
template <int VECTORS, class X>
void connections_rows(const bw_connections& l, const X& x, int64_t count, float* columns, float* out) {
  const int64_t rows = VECTORS * 16;
  alignas(64) float lie[16][16];
  for (int64_t v = 0; v < VECTORS; v++)
    for (int64_t k = 0; k < l.k; k += 16) {
      const int64_t width = l.k - k < 16 ? l.k - k : 16;
      const float* from[16];
      for (int64_t r = 0; r < 16; r++) from[r] = x.at(v * 16 + r < count ? v * 16 + r : count - 1, k, width, lie[r]);
      turned(from, width, columns + k * rows + v * 16, rows);
    }
  if (l.tanh & 1) tanh_of(columns, columns, l.k * rows);
  for (int64_t first = 0; first < l.o; first += 16) {
    const int64_t outputs = l.o - first < 16 ? l.o - first : 16;
    alignas(64) float tile[16][VECTORS * 16];
    for (int64_t o = 0; o < outputs; o++) {
      Floats even[VECTORS], odd[VECTORS];
      BW_UNROLL for (int v = 0; v < VECTORS; v++) even[v] = all_of(l.bias ? l.bias[first + o] : 0.0f), odd[v] = zeros();
      int64_t i = l.begin[first + o];
      const int64_t end = l.begin[first + o + 1];
      for (; i + 2 <= end; i += 2) {
        const float *a = columns + l.index[i] * rows, *b = columns + l.index[i + 1] * rows;
        const Floats wa = all_of(l.value[i]), wb = all_of(l.value[i + 1]);
        BW_UNROLL for (int v = 0; v < VECTORS; v++) even[v] = plus_product(even[v], wa, load(a + v * 16));
        BW_UNROLL for (int v = 0; v < VECTORS; v++) odd[v] = plus_product(odd[v], wb, load(b + v * 16));
      }
      if (i < end)
        BW_UNROLL for (int v = 0; v < VECTORS; v++)
          even[v] = plus_product(even[v], all_of(l.value[i]), load(columns + l.index[i] * rows + v * 16));
      BW_UNROLL for (int v = 0; v < VECTORS; v++) store(tile[o] + v * 16, even[v] + odd[v]);
    }
    for (int64_t v = 0; v < VECTORS; v++) {
      const float* from[16];
      alignas(64) float a[16][16];
      for (int64_t r = 0; r < 16; r++) from[r] = tile[r < outputs ? r : 0] + v * 16;
      turned(from, 16, a[0], 16);
      for (int64_t p = 0; p < 16 && v * 16 + p < count; p++) memcpy(out + (v * 16 + p) * l.o + first, a[p], (size_t)outputs * 4);
    }
  }
}

inline int linear_connections(const bw_connections& l, const float* x, float* out, int threads) {
  const int64_t share = l.n > 16 ? 32 : l.n > 1 ? 16 : 1;
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(l.n, share), [&](int64_t task) {
    const int64_t first = task * share, count = l.n - first < share ? l.n - first : share;
    const float* from = x + first * l.k;
    float* to = out + first * l.o;
    const bool columns_needed = share > 1 || l.tanh & 1;
    float* const columns = columns_needed ? (float*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(l.k * (count > 16 ? 32 : share)) * 4) : nullptr;
    if (columns_needed && !columns) {
      __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    } else if (share > 1) {
      const FloatRows lie = {from, l.k};
      count > 16 ? connections_rows<2>(l, lie, count, columns, to) : connections_rows<1>(l, lie, count, columns, to);
      for (int64_t r = 0; r < count; r++) finish_row(l, to + r * l.o);
    } else {
      if (columns) tanh_of(from, columns, l.k);
      connections_row(l, columns ? columns : from, to);
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for the columns of a linear layer") : BW_OK;
}

inline int coded_connections(const bw_coded_connections& layer, const uint8_t* x, const bw_sink& sink, int threads) {
  bw_connections l = *layer.list;
  l.bias = nullptr, l.tanh = 0;
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(l.n, 32), [&](int64_t task) {
    const int64_t first = task * 32, count = l.n - first < 32 ? l.n - first : 32;
    float* const columns = (float*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(l.k * 32) * 4);
    float* const sums = (float*)bw_scratch(BW_SCRATCH_SUMS, (size_t)(l.o * 32) * 4);
    int32_t* const row = (int32_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)l.o * 5);
    if (!columns || !sums || !row) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    const CodeRows lie = {x + first * l.k, l.k};
    count > 16 ? connections_rows<2>(l, lie, count, columns, sums) : connections_rows<1>(l, lie, count, columns, sums);
    for (int64_t p = 0; p < count; p++) {
      for (int64_t o = 0; o < l.o; o++) row[o] = (int32_t)sums[p * l.o + o] + layer.conv->corr[o];
      emit_pixel(sink, l.o, first + p, row, (uint8_t*)(row + l.o));
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for the columns of a linear layer") : BW_OK;
}

}  // namespace
