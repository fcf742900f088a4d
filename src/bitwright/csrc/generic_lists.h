// Convolution of byte codes with weights that are nearly all zero: each output has a list of the inputs that count (lists.h).
// The codes of up to 64 pixels lie side by side, [K][pixels] bytes, so that a connection costs one load and one sum of bytes; the bytes
// are added up in int32 before they can overflow. Sixteen outputs at a time are turned round, to lie by pixel. One pixel, as at
// batch 1, is read as it lies.
#pragma once
#include <string.h>

#include "generic_emit.h"
#include "parallel.h"

namespace {

const int64_t LIST_FEW = 4;  // below so many pixels, one at a time

struct Lists {
  const uint32_t* begin;
  const uint16_t* index;
  const int16_t* value;
  Lists(const void* body, int64_t o)
      : begin((const uint32_t*)body), index((const uint16_t*)(begin + 3 * o + 1)),
        value((const int16_t*)(index + begin[3 * o])) {}
};

inline int32_t listed_sum(const uint8_t* x, const uint16_t* index, int64_t count) {
  int32_t a = 0, b = 0, c = 0, d = 0;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) a += x[index[i]], b += x[index[i + 1]], c += x[index[i + 2]], d += x[index[i + 3]];
  for (; i < count; i++) a += x[index[i]];
  return a + b + c + d;
}

inline void lists_of_pixel(const Lists& lists, int64_t o, const uint8_t* x, int32_t* sums) {
  for (int64_t i = 0; i < o; i++) {
    const uint32_t *at = lists.begin + 3 * i, other = at[2], end = at[3];
    int32_t sum = listed_sum(x, lists.index + at[0], at[1] - at[0]) - listed_sum(x, lists.index + at[1], other - at[1]);
    for (uint32_t e = other; e < end; e++) sum += lists.value[e] * x[lists.index[e]];
    sums[i] = sum;
  }
}

typedef uint8_t Codes __attribute__((vector_size(16)));
typedef int32_t Sums __attribute__((vector_size(64)));

// sums += or -= the codes of a list, of PIXELS pixels; `most`: codes whose sum fits a byte.
template <int PIXELS, bool MINUS>
BW_INLINE void add_list(const uint8_t* x, const uint16_t* index, int64_t count, int64_t most, int32_t* sums) {
  typedef uint8_t Bytes __attribute__((vector_size(PIXELS)));
  for (int64_t i = 0; i < count;) {
    const int64_t end = i + most < count ? i + most : count;
    Bytes bytes = {};
    for (; i < end; i++) {
      Bytes next;
      memcpy(&next, x + (int64_t)index[i] * PIXELS, PIXELS);
      bytes += next;
    }
    uint8_t narrow[PIXELS];
    memcpy(narrow, &bytes, PIXELS);
    for (int p = 0; p < PIXELS; p++) sums[p] = MINUS ? sums[p] - narrow[p] : sums[p] + narrow[p];
  }
}

// Sixteen rows of sixteen numbers, turned round in four rounds of interleaving: row r of a round goes with row r + 8.
template <class Row>
BW_INLINE void turn_round(Row (&a)[16]) {
  Row b[16];
  for (int round = 0; round < 4; round++) {
    for (int r = 0; r < 8; r++) {
      b[2 * r] = __builtin_shufflevector(a[r], a[r + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      b[2 * r + 1] = __builtin_shufflevector(a[r], a[r + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    memcpy(a, b, sizeof a);
  }
}

// [PIXELS][k] -> [k][PIXELS]
template <int PIXELS>
void side_by_side(const uint8_t* const* rows, int64_t k, uint8_t* out) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16)
    for (int p = 0; p < PIXELS; p += 16) {
      Codes a[16];
      for (int r = 0; r < 16; r++) memcpy(&a[r], rows[p + r] + i, 16);
      turn_round(a);
      for (int r = 0; r < 16; r++) memcpy(out + (i + r) * PIXELS + p, &a[r], 16);
    }
  for (; i < k; i++)
    for (int p = 0; p < PIXELS; p++) out[i * PIXELS + p] = rows[p][i];
}

// sums [PIXELS][o], from what `start` [o] gives or 0, of codes [K][PIXELS]
template <int PIXELS>
void lists_of_pixels(const Lists& lists, int64_t o, const uint8_t* x, int64_t most, const int32_t* start, int32_t* sums) {
  for (int64_t first = 0; first < o; first += 16) {
    const int64_t outputs = o - first < 16 ? o - first : 16;
    alignas(64) int32_t tile[16][PIXELS];
    for (int64_t i = 0; i < outputs; i++) {
      const uint32_t* at = lists.begin + 3 * (first + i);
      int32_t* to = tile[i];
      for (int p = 0; p < PIXELS; p++) to[p] = start ? start[first + i] : 0;
      add_list<PIXELS, false>(x, lists.index + at[0], at[1] - at[0], most, to);
      add_list<PIXELS, true>(x, lists.index + at[1], at[2] - at[1], most, to);
      for (uint32_t e = at[2]; e < at[3]; e++)
        for (int p = 0; p < PIXELS; p++) to[p] += lists.value[e] * x[(int64_t)lists.index[e] * PIXELS + p];
    }
    for (int p = 0; p < PIXELS; p += 16) {
      Sums a[16];
      for (int r = 0; r < 16; r++) memcpy(&a[r], tile[r < outputs ? r : 0] + p, 64);
      turn_round(a);
      for (int r = 0; r < 16; r++) memcpy(sums + (p + r) * o + first, &a[r], (size_t)outputs * 4);
    }
  }
}

// The codes under the kernel, zeros beyond the image.
inline void list_patch(const bw_conv& conv, const uint8_t* x, int64_t pixel, uint8_t* patch) {
  const int64_t n = pixel / (conv.oh * conv.ow), oy = pixel / conv.ow % conv.oh, ox = pixel % conv.ow;
  for (int64_t ky = 0; ky < conv.kh; ky++)
    for (int64_t kx = 0; kx < conv.kw; kx++, patch += conv.c) {
      const int64_t y = oy * conv.stride_h - conv.pad_h + ky * conv.dil_h, left = ox * conv.stride_w - conv.pad_w + kx * conv.dil_w;
      if (y < 0 || y >= conv.h || left < 0 || left >= conv.w) memset(patch, 0, (size_t)conv.c);
      else memcpy(patch, x + ((n * conv.h + y) * conv.w + left) * conv.c, (size_t)conv.c);
    }
}

// Pixels first .. first + count - 1, count <= PIXELS: the integers, and what becomes of them. False: no memory.
template <int PIXELS>
bool lists_task(const bw_conv& conv, const uint8_t* x, const void* body, const bw_sink& sink, int64_t first, int64_t count) {
  const Lists lists(body, conv.o);
  const int64_t k = conv.kh * conv.kw * conv.c, o = conv.o;
  // The codes under the kernel lie as they are needed: 1x1, or a kernel over the whole image.
  const bool lies = !conv.pad_h && !conv.pad_w && ((k == conv.c && conv.stride_h == 1 && conv.stride_w == 1) ||
                    (conv.kh == conv.h && conv.kw == conv.w && conv.dil_h == 1 && conv.dil_w == 1));
  uint8_t* patches = lies ? nullptr : (uint8_t*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(PIXELS * k));
  uint8_t* together = PIXELS == 1 ? nullptr : (uint8_t*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(PIXELS * k));
  int32_t* sums = (int32_t*)bw_scratch(BW_SCRATCH_SUMS, (size_t)(PIXELS * o) * 4);
  uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)o);
  if (!(lies || patches) || !(together || PIXELS == 1) || !sums || !codes) return false;
  const uint8_t* rows[PIXELS];
  for (int64_t p = 0; p < PIXELS; p++) {
    const int64_t mine = p < count ? p : count - 1;
    rows[p] = lies ? x + (first + mine) * k : patches + mine * k;
    if (!lies && p < count) list_patch(conv, x, first + p, patches + p * k);
  }
  const bool same = conv.row_classes == 1 && conv.col_classes == 1;
  if constexpr (PIXELS == 1) {
    lists_of_pixel(lists, o, rows[0], sums);
  } else {
    const int64_t most = 255 / ((1 << (conv.x_planes ? conv.x_planes : 8)) - 1);
    side_by_side<PIXELS>(rows, k, together);
    lists_of_pixels<PIXELS>(lists, o, together, most, same ? conv.corr : nullptr, sums);
  }
  for (int64_t p = 0; p < count; p++) {
    const int64_t pixel = first + p, row = conv.row_class[pixel / conv.ow % conv.oh], column = conv.col_class[pixel % conv.ow];
    const int32_t* corr = conv.corr + (row * conv.col_classes + column) * o;
    if (PIXELS == 1 || !same)
      for (int64_t i = 0; i < o; i++) sums[p * o + i] += corr[i];
    emit_pixel(sink, o, pixel, sums + p * o, codes);
  }
  return true;
}

inline int generic_conv_lists(const bw_conv& conv, const uint8_t* x, const void* body, const bw_sink& sink, int threads) {
  const int64_t pixels = conv.n * conv.oh * conv.ow;
  const int64_t share = pixels < LIST_FEW ? 1 : pixels < 48 || threads > 1 ? 16 : 64;
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(pixels, share), [&](int64_t task) {
    const int64_t first = task * share, count = pixels - first < share ? pixels - first : share;
    const bool done = count == 1    ? lists_task<1>(conv, x, body, sink, first, count)
                      : count <= 16 ? lists_task<16>(conv, x, body, sink, first, count)
                                    : lists_task<64>(conv, x, body, sink, first, count);
    if (!done) __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for patches") : BW_OK;
}

}  // namespace
