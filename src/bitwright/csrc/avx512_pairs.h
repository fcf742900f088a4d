// AVX-512: two taps in a word, where the bits of a pixel fill at most half of one: a window of 3x3 is 5 words, not 9.
//
// The input is copied with its padding, each row three times: every pixel with its right neighbor in the upper half of the word, with
// the pixel below it, and alone. The taps of a window go in pairs side by side; those of the last column of an odd width one below
// the other; the last of an odd column alone. "Neighbor" means the next tap: `dil` pixels away.
#pragma once
#include "window.h"

namespace {

inline bool lanes_paired(const bw_conv& conv) { return conv.c <= 16 && conv.kh * conv.kw > 1; }
inline int64_t lanes_pairs(const bw_conv& conv) { return bw_ceil_div(conv.kh * conv.kw, 2); }

// Where the bits of a tap lie: the word of the window, and the first bit.
struct PairedTap {
  int64_t word;
  int shift;
};
inline PairedTap paired_tap(const bw_conv& conv, int64_t tap) {
  const int64_t y = tap / conv.kw, x = tap % conv.kw, pairs = conv.kw / 2;
  if (x < pairs * 2) return {y * pairs + x / 2, x % 2 ? 16 : 0};
  return {conv.kh * pairs + y / 2, y % 2 ? 16 : 0};
}

// The window and the places of its words. False: no memory.
inline bool make_pairs(const bw_conv& conv, const uint32_t* x, int threads, Window<uint32_t>* window, Places* places) {
  const int64_t pixel = conv.x_planes;  // a word of each plane
  if (!make_window(conv, x, pixel, 1, false, false, threads, window)) return false;
  const uint32_t* alone = window->image;
  const int64_t row = (conv.w + 2 * conv.pad_w) * pixel, rows = conv.n * (conv.h + 2 * conv.pad_h), right = conv.dil_w * pixel;
  uint32_t* copy = (uint32_t*)bw_scratch(BW_SCRATCH_PANEL, (size_t)(rows * row * 3) * 4);
  int32_t* place = (int32_t*)bw_scratch(BW_SCRATCH_PLACES, (size_t)lanes_pairs(conv) * 4);
  if (!copy || !place) return false;
  const int64_t chunk = items_per_task(threads, rows, 16, 256);
  for_tasks(threads, bw_ceil_div(rows, chunk), [&](int64_t task) {
    const int64_t last = (task + 1) * chunk < rows ? (task + 1) * chunk : rows;
    for (int64_t r = task * chunk; r < last; r++) {
      const uint32_t* from = alone + r * row;
      uint32_t* to = copy + r * row * 3;
      const int64_t with_right = row > right ? row - right : 0;
      for (int64_t i = 0; i < with_right; i++) to[i] = from[i] | from[i + right] << 16;
      memcpy(to + with_right, from + with_right, (size_t)(row - with_right) * 4);
      const uint32_t* below = from + conv.dil_h * row;
      if (r + conv.dil_h < rows)
        for (int64_t i = 0; i < row; i++) to[row + i] = from[i] | below[i] << 16;
      else memcpy(to + row, from, (size_t)row * 4);
      memcpy(to + row * 2, from, (size_t)row * 4);
    }
  });
  window->image = copy, window->step_n *= 3, window->step_y *= 3;
  *places = {place, lanes_pairs(conv)};
  const int64_t down = conv.dil_h * row * 3;
  for (int64_t y = 0; y < conv.kh; y++)
    for (int64_t i = 0; i + 1 < conv.kw; i += 2) *place++ = (int32_t)(y * down + i * right);
  if (conv.kw % 2)
    for (int64_t y = 0; y < conv.kh; y += 2) *place++ = (int32_t)(y * down + (conv.kw - 1) * right + (y + 1 < conv.kh ? row : row * 2));
  return true;
}

}  // namespace
