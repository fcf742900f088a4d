// Generic float -> code packing and max pooling on codes.
#pragma once
#include "generic_emit.h"
#include "parallel.h"

namespace {

const int64_t PACK_BLOCK = 32;  // pixels whose codes are held at once: an NCHW plane is read in runs of this length

// Codes of `count` values that lie one after the other, all of one ladder.
typedef void CodesInRow(const bw_pack& pack, const float* x, int64_t count, uint8_t* codes);
inline void codes_by_grid(const bw_pack& pack, const float* x, int64_t count, uint8_t* codes) { grid_codes(*pack.grid, x, count, codes); }

// The same as pack_block, by rows.
template <CodesInRow* codes_in_row>
inline void pack_rows(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint8_t* codes) {
  if (!pack.nchw) return codes_in_row(pack, image + first * pack.c, count * pack.c, codes);
  uint8_t row[PACK_BLOCK];
  for (int64_t c = 0; c < pack.c; c++) {
    codes_in_row(pack, image + c * pack.h * pack.w + first, count, row);
    for (int64_t i = 0; i < count; i++) codes[i * pack.c + c] = row[i];
  }
}

// Codes of pixels first..first+count-1 of one image, as [pixel][c].
inline void pack_block(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint8_t* codes) {
  const int64_t channels = pack.c, area = pack.h * pack.w;
  const int64_t step_c = pack.nchw ? area : 1, step_pixel = pack.nchw ? 1 : channels;
  const float* x = image + first * step_pixel;
  for (int64_t c = 0; c < channels; c++) {
    const float* ladder = pack.thresholds + (pack.per_channel ? c * pack.levels : 0);
    const bool flip = pack.flip && pack.flip[c];
    for (int64_t i = 0; i < count; i++) {
      const float value = x[c * step_c + i * step_pixel];
      uint8_t code = 0;
      if (pack.levels <= 4)
        for (int64_t l = 0; l < pack.levels; l++) code = (uint8_t)(code + (value >= ladder[l]));
      else
        code = count_levels(value, ladder, pack.levels, 1);
      codes[i * channels + c] = flip ? (uint8_t)(pack.levels - code) : code;
    }
  }
}

using PackBlock = void(const bw_pack& pack, const float* image, int64_t first, int64_t count, uint8_t* codes);

template <class Write>
inline int generic_pack(const bw_pack& pack, const float* x, int threads, PackBlock* block, const Write& write) {
  const int64_t area = pack.h * pack.w, blocks = bw_ceil_div(area, PACK_BLOCK);
  int no_memory = 0;
  for_tasks(threads, pack.n * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * PACK_BLOCK;
    const int64_t count = area - first < PACK_BLOCK ? area - first : PACK_BLOCK;
    uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)(PACK_BLOCK * pack.c));
    if (!codes) {
      __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
      return;
    }
    block(pack, x + n * area * pack.c, first, count, codes);
    write(codes, n * area + first, count);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory while packing") : BW_OK;
}

inline bool one_ladder(const bw_pack& pack) { return !pack.flip && !pack.per_channel; }
inline PackBlock* generic_block(const bw_pack& pack) { return pack.grid && one_ladder(pack) ? pack_rows<codes_by_grid> : pack_block; }

inline int pack_to_bits(const bw_pack& pack, const float* x, uint32_t* out, int threads, PackBlock* block) {
  const int64_t words = pack.planes * bw_words(pack.c, pack.groups);
  return generic_pack(pack, x, threads, block, [&](const uint8_t* codes, int64_t pixel, int64_t count) {
    for (int64_t i = 0; i < count; i++)
      codes_to_words(codes + i * pack.c, pack.c, pack.groups, pack.planes, out + (pixel + i) * words);
  });
}
inline int generic_pack_bits(const bw_pack& pack, const float* x, uint32_t* out, int threads) {
  return pack_to_bits(pack, x, out, threads, generic_block(pack));
}

inline int pack_to_bytes(const bw_pack& pack, const float* x, uint8_t* out, int threads, PackBlock* block) {
  return generic_pack(pack, x, threads, block, [&](const uint8_t* codes, int64_t pixel, int64_t count) {
    memcpy(out + pixel * pack.c, codes, (size_t)(count * pack.c));
  });
}

// The codes of one ladder lie as their numbers do, or channel by channel first, up to four at a time.
inline int ladder_bytes(const bw_pack& pack, const float* x, uint8_t* out, int threads, CodesInRow* codes_in_row) {
  const int64_t area = pack.h * pack.w, channels = pack.c, block = 256, blocks = bw_ceil_div(area, block);
  for_tasks(threads, pack.n * blocks, [&](int64_t task) {
    const int64_t n = task / blocks, first = task % blocks * block, count = area - first < block ? area - first : block;
    uint8_t* const to = out + (n * area + first) * channels;
    if (!pack.nchw) return codes_in_row(pack, x + (n * area + first) * channels, count * channels, to);
    uint8_t row[4][block];
    for (int64_t c = 0; c < channels; c += 4) {
      const int64_t some = channels - c < 4 ? channels - c : 4;
      for (int64_t i = 0; i < some; i++) codes_in_row(pack, x + ((n * channels + c + i) * area + first), count, row[i]);
      uint8_t* const at = to + c;
      if (some == 4)
        for (int64_t i = 0; i < count; i++) {
          const uint8_t four[4] = {row[0][i], row[1][i], row[2][i], row[3][i]};
          memcpy(at + i * channels, four, 4);
        }
      else if (channels == 3)  // colors: the compiler shuffles instead of storing byte by byte
        for (int64_t i = 0; i < count; i++) to[3 * i] = row[0][i], to[3 * i + 1] = row[1][i], to[3 * i + 2] = row[2][i];
      else
        for (int64_t i = 0; i < count * some; i++) at[i / some * channels + i % some] = row[i % some][i / some];
    }
  });
  return BW_OK;
}
inline int generic_pack_bytes(const bw_pack& pack, const float* x, uint8_t* out, int threads) {
  if (pack.grid && one_ladder(pack)) return ladder_bytes(pack, x, out, threads, codes_by_grid);
  return pack_to_bytes(pack, x, out, threads, pack_block);
}

// ---- max pooling: padding never wins, because a window starts at code 0, which is the lowest ----------------

// best = max(best, x) for 32 channels per word, codes spread over planes. From the highest plane down, `more`
// marks channels where x is already known to be larger, `same` those still undecided.
inline void max_words(uint32_t* best, const uint32_t* x, int64_t words, int64_t planes) {
  if (planes == 1) {
    for (int64_t i = 0; i < words; i++) best[i] |= x[i];
    return;
  }
  for (int64_t i = 0; i < words; i++) {
    uint32_t more = 0, same = ~0u;
    for (int64_t p = planes - 1; p >= 0; p--) {
      more |= same & x[p * words + i] & ~best[p * words + i];
      same &= ~(x[p * words + i] ^ best[p * words + i]);
    }
    for (int64_t p = 0; p < planes; p++)
      best[p * words + i] = (x[p * words + i] & more) | (best[p * words + i] & ~more);
  }
}

inline void max_bytes(uint8_t* best, const uint8_t* x, int64_t count) {
  for (int64_t i = 0; i < count; i++) best[i] = x[i] > best[i] ? x[i] : best[i];
}

// `size` elements of T per pixel
template <class T, class Max>
inline void pool_row(const bw_pool& pool, int64_t size, const T* x, int64_t row, T* out, const Max& max) {
  const int64_t n = row / pool.oh, oy = row % pool.oh;
  T* best = out + row * pool.ow * size;
  memset(best, 0, (size_t)(pool.ow * size) * sizeof(T));
  for (int64_t ox = 0; ox < pool.ow; ox++, best += size)
    for (int64_t ky = 0; ky < pool.kh; ky++) {
      const int64_t iy = oy * pool.stride_h - pool.pad_h + ky * pool.dil_h;
      if (iy < 0 || iy >= pool.h) continue;
      for (int64_t kx = 0; kx < pool.kw; kx++) {
        const int64_t ix = ox * pool.stride_w - pool.pad_w + kx * pool.dil_w;
        if (ix >= 0 && ix < pool.w) max(best, x + ((n * pool.h + iy) * pool.w + ix) * size);
      }
    }
}

inline int generic_maxpool_bits(const bw_pool& pool, const uint32_t* x, uint32_t* out, int threads) {
  for_tasks(threads, pool.n * pool.oh, [&](int64_t row) {
    pool_row(pool, pool.planes * pool.channels, x, row, out,
             [&](uint32_t* best, const uint32_t* v) { max_words(best, v, pool.channels, pool.planes); });
  });
  return BW_OK;
}

inline int generic_maxpool_bytes(const bw_pool& pool, const uint8_t* x, uint8_t* out, int threads) {
  for_tasks(threads, pool.n * pool.oh, [&](int64_t row) {
    pool_row(pool, pool.channels, x, row, out,
             [&](uint8_t* best, const uint8_t* v) { max_bytes(best, v, pool.channels); });
  });
  return BW_OK;
}

}  // namespace
