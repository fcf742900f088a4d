// Linear layers whose weights have few levels, on floats: the sums of a group of inputs, one for each choice of their levels, are a
// table of 16 numbers, and every output looks its own up. A group is 4 inputs of 2 levels, 2 of 3 or 4, or one of up to 16. A look-up
// and an addition stand for `group` products of 16 outputs, and a weight is read as 4 / group bits: with one image the time of a
// product of floats is that of reading its weights.
//
// Indices lie as [pass of 64 outputs][word][4][16]: a word holds eight groups, four bits each, the first lowest.
#pragma once
#include "parallel.h"
#include "skip_lanes.h"

namespace {

const int TABLE_PASS = 4;  // vectors of outputs that share a table while it is in a register

#if defined(__AVX512F__)
typedef __m512i Indices;
BW_INLINE Indices load_indices(const uint32_t* from) { return _mm512_loadu_si512(from); }
BW_INLINE Floats look_up(Floats table, Indices index) { return _mm512_permutexvar_ps(index, table); }  // the low four bits
BW_INLINE Indices next_group(Indices index) { return _mm512_srli_epi32(index, 4); }
#else
typedef uint32_t Indices __attribute__((vector_size(64)));
BW_INLINE Indices load_indices(const uint32_t* from) {
  Indices index;
  memcpy(&index, from, 64);
  return index;
}
BW_INLINE Floats look_up(Floats table, Indices index) {
  float from[16], to[16];
  store(from, table);
  for (int i = 0; i < 16; i++) to[i] = from[index[i] & 15];
  return load(to);
}
BW_INLINE Indices next_group(Indices index) { return index >> 4; }
#endif

inline void make_tables(const bw_tables& t, const float* x, int64_t groups, float* tables) {
  for (int64_t g = 0; g < groups; g++) {
    Floats sum = zeros();
    for (int64_t i = 0; i < t.group && g * t.group + i < t.k; i++)
      sum = plus_product(sum, all_of(x[g * t.group + i]), load(t.levels + i * 16));
    store(tables + g * 16, sum);
  }
}

// 64 outputs. Two sums each take turns: a shorter chain, and a smaller error.
inline void table_pass(const bw_tables& t, const float* tables, const uint32_t* index, int64_t words, int64_t pass, float* out) {
  Floats sum[2][TABLE_PASS];
  BW_UNROLL for (int i = 0; i < 2 * TABLE_PASS; i++) sum[i / TABLE_PASS][i % TABLE_PASS] = zeros();
  for (int64_t word = 0; word < words; word++, index += TABLE_PASS * 16, tables += 8 * 16) {
    Indices at[TABLE_PASS];
    BW_UNROLL for (int i = 0; i < TABLE_PASS; i++) at[i] = load_indices(index + i * 16);
    BW_UNROLL_MANY for (int g = 0; g < 8; g++) {
      const Floats table = load(tables + g * 16);
      BW_UNROLL for (int i = 0; i < TABLE_PASS; i++) {
        sum[g % 2][i] = sum[g % 2][i] + look_up(table, at[i]);
        at[i] = next_group(at[i]);
      }
    }
  }
  for (int i = 0; i < TABLE_PASS; i++) {
    const int64_t o = (pass * TABLE_PASS + i) * 16;
    if (o >= t.o) return;
    const uint16_t lanes = first_lanes(t.o - o);
    Floats y = times_plus(sum[0][i] + sum[1][i], load_first(t.scale + o, lanes), load_first(t.add + o, lanes));
    if (t.more) y = y + load_first(out + o, lanes);
    store_first(out + o, y, lanes);
  }
}

inline int linear_tables(const bw_tables& t, const float* x, const uint32_t* index, float* out, int threads) {
  const int64_t words = bw_ceil_div(t.k, 8 * t.group), passes = bw_ceil_div(t.o, TABLE_PASS * 16);
  float* tables = (float*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(words * 8 * 16) * sizeof(float));
  if (!tables) return bw_fail(BW_NO_MEMORY, "no memory for the tables of a linear layer");
  for (int64_t n = 0; n < t.n; n++, x += t.k, out += t.o) {
    make_tables(t, x, words * 8, tables);
    for_tasks(threads, passes, [&](int64_t pass) {
      table_pass(t, tables, index + pass * words * TABLE_PASS * 16, words, pass, out);
    });
  }
  return BW_OK;
}

}  // namespace
