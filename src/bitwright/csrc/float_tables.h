// Linear layers whose weights have few levels, on floats: the sums of a group of inputs, one for each choice of their levels, are a
// table of 16 numbers, and every output looks its own up. A group is 4 inputs of 2 levels, 2 of 3 or 4, or one of up to 16. A look-up
// and an addition stand for `group` products of 16 outputs, and a weight is read as 4 / group bits: with one image the time of a
// product of floats is that of reading its weights.
//
// Indices lie as [pass of 64 outputs][word][64]: a word holds eight groups, four bits each, the first lowest.
#pragma once
#include "parallel.h"
#include "skip_lanes.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

const int TABLE_PASS = 64;  // outputs that share a table while it is in a register

inline void make_tables(const bw_tables& t, const float* x, int64_t groups, float* tables) {
  for (int64_t g = 0; g < groups; g++) {
    Floats sum = zeros();
    for (int64_t i = 0; i < t.group && g * t.group + i < t.k; i++)
      sum = plus_product(sum, all_of(x[g * t.group + i]), load(t.levels + i * 16));
    store(tables + g * 16, sum);
  }
}

// The sums of the outputs of a pass. Two of each take turns: a shorter chain, and a smaller error.
#if defined(__AVX2__) && !defined(__AVX512F__)
// A table is two registers; the highest bit of an index says which. 32 outputs at a time.
inline void look_up(const float* tables, const uint32_t* index, int64_t words, float* sums) {
  for (int part = 0; part < TABLE_PASS; part += 32) {
    __m256 sum[2][4];
    BW_UNROLL for (int i = 0; i < 8; i++) sum[i / 4][i % 4] = _mm256_setzero_ps();
    for (int64_t word = 0; word < words; word++) {
      __m256i at[4];
      BW_UNROLL for (int i = 0; i < 4; i++) at[i] = _mm256_loadu_si256((const __m256i*)(index + word * TABLE_PASS + part + i * 8));
      for (int g = 0; g < 8; g += 2)
        BW_UNROLL for (int turn = 0; turn < 2; turn++) {
          const float* const table = tables + (word * 8 + g + turn) * 16;
          const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
          BW_UNROLL for (int i = 0; i < 4; i++) {
            const __m256 highest = _mm256_castsi256_ps(_mm256_slli_epi32(at[i], 28));
            const __m256 found = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at[i]), _mm256_permutevar8x32_ps(high, at[i]), highest);
            sum[turn][i] = _mm256_add_ps(sum[turn][i], found), at[i] = _mm256_srli_epi32(at[i], 4);
          }
        }
    }
    BW_UNROLL for (int i = 0; i < 4; i++) _mm256_storeu_ps(sums + part + i * 8, _mm256_add_ps(sum[0][i], sum[1][i]));
  }
}
#else
#if defined(__AVX512F__)
typedef __m512i Indices;
BW_INLINE Indices load_indices(const uint32_t* from) { return _mm512_loadu_si512(from); }
BW_INLINE Floats entries(Floats table, Indices index) { return _mm512_permutexvar_ps(index, table); }  // the low four bits
BW_INLINE Indices next_group(Indices index) { return _mm512_srli_epi32(index, 4); }
#else
typedef uint32_t Indices __attribute__((vector_size(64)));
BW_INLINE Indices load_indices(const uint32_t* from) {
  Indices index;
  memcpy(&index, from, 64);
  return index;
}
BW_INLINE Floats entries(Floats table, Indices index) {
  float from[16], to[16];
  store(from, table);
  for (int i = 0; i < 16; i++) to[i] = from[index[i] & 15];
  return load(to);
}
BW_INLINE Indices next_group(Indices index) { return index >> 4; }
#endif
inline void look_up(const float* tables, const uint32_t* index, int64_t words, float* sums) {
  const int vectors = TABLE_PASS / 16;
  Floats sum[2][vectors];
  BW_UNROLL for (int i = 0; i < 2 * vectors; i++) sum[i / vectors][i % vectors] = zeros();
  for (int64_t word = 0; word < words; word++, index += TABLE_PASS, tables += 8 * 16) {
    Indices at[vectors];
    BW_UNROLL for (int i = 0; i < vectors; i++) at[i] = load_indices(index + i * 16);
    BW_UNROLL_MANY for (int g = 0; g < 8; g++) {
      const Floats table = load(tables + g * 16);
      BW_UNROLL for (int i = 0; i < vectors; i++) {
        sum[g % 2][i] = sum[g % 2][i] + entries(table, at[i]);
        at[i] = next_group(at[i]);
      }
    }
  }
  BW_UNROLL for (int i = 0; i < vectors; i++) store(sums + i * 16, sum[0][i] + sum[1][i]);
}
#endif

inline void table_pass(const bw_tables& t, const float* tables, const uint32_t* index, int64_t words, int64_t pass, float* out) {
  float sums[TABLE_PASS];
  look_up(tables, index, words, sums);
  for (int i = 0; i < TABLE_PASS; i += 16) {
    const int64_t o = pass * TABLE_PASS + i;
    if (o >= t.o) return;
    const uint16_t lanes = first_lanes(t.o - o);
    Floats y = times_plus(load(sums + i), load_first(t.scale + o, lanes), load_first(t.add + o, lanes));
    if (t.more) y = y + load_first(out + o, lanes);
    store_first(out + o, y, lanes);
  }
}

inline int linear_tables(const bw_tables& t, const float* x, const uint32_t* index, float* out, int threads) {
  const int64_t words = bw_ceil_div(t.k, 8 * t.group), passes = bw_ceil_div(t.o, TABLE_PASS);
  float* tables = (float*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(words * 8 * 16) * sizeof(float));
  if (!tables) return bw_fail(BW_NO_MEMORY, "no memory for the tables of a linear layer");
  for (int64_t n = 0; n < t.n; n++, x += t.k, out += t.o) {
    make_tables(t, x, words * 8, tables);
    for_tasks(threads, passes, [&](int64_t pass) {
      table_pass(t, tables, index + pass * words * TABLE_PASS, words, pass, out);
    });
  }
  return BW_OK;
}

}  // namespace
