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

// Rows 0 .. count - 1, count <= 16 VECTORS. `x` and `out` are those of the first. False: no memory.
template <int VECTORS>
bool connections_task(const bw_connections& l, const float* x, int64_t count, float* out) {
  const int64_t rows = VECTORS * 16;
  float* const columns = (float*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(l.k * rows) * sizeof(float));
  if (!columns) return false;
  for (int64_t v = 0; v < VECTORS; v++)
    for (int64_t k = 0; k < l.k; k += 16) {
      const float* from[16];
      for (int64_t r = 0; r < 16; r++) from[r] = x + (v * 16 + r < count ? v * 16 + r : count - 1) * l.k + k;
      turned(from, l.k - k < 16 ? l.k - k : 16, columns + k * rows + v * 16, rows);
    }
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
  return true;
}

inline int linear_connections(const bw_connections& l, const float* x, float* out, int threads) {
  const int64_t share = l.n > 16 ? 32 : 16;
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(l.n, share), [&](int64_t task) {
    const int64_t first = task * share, count = l.n - first < share ? l.n - first : share;
    const float* from = x + first * l.k;
    float* to = out + first * l.o;
    const bool done = count > 16 ? connections_task<2>(l, from, count, to) : connections_task<1>(l, from, count, to);
    if (!done) __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for the columns of a linear layer") : BW_OK;
}

}  // namespace
