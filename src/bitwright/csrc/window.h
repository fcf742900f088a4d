// Implicit im2col, for kernels with registers of many lanes. The window of a pixel is read where it lies, as kh runs of kw pixels, because NHWC
// makes neighbouring pixels contiguous. Only zero padding needs a copy of the input, with the border written.
#pragma once
#include <string.h>

#include "kernels.h"
#include "parallel.h"

namespace {

// Element T is uint32 (words) or uint8 (codes). All steps in elements.
template <class T>
struct Window {
  const T* image;
  int64_t step_n, step_y, step_x;            // from one image, output row, output pixel to the next
  int64_t runs_y, runs_x, run_y, run_x, run; // runs_y * runs_x runs of `run` elements, run_y and run_x apart
};

// Scratch that holds every image with pad_h, pad_w pixels of zeros around it; fill(to, y) writes row y, counted
// over all images, inside the border. Null: no memory.
template <class T, class Fill>
const T* bordered(const bw_conv& conv, int64_t pixel, int threads, const Fill& fill, bw_scratch_slot slot = BW_SCRATCH_IMAGE) {
  const int64_t height = conv.h + 2 * conv.pad_h, row = (conv.w + 2 * conv.pad_w) * pixel;
  T* copy = (T*)bw_scratch(slot, (size_t)(conv.n * height * row) * sizeof(T) + 64);
  if (!copy) return nullptr;
  const int64_t rows = conv.n * height, chunk = items_per_task(threads, rows, 16, 256);
  for_tasks(threads, bw_ceil_div(rows, chunk), [&](int64_t task) {
    const int64_t last = (task + 1) * chunk < rows ? (task + 1) * chunk : rows;
    for (int64_t r = task * chunk; r < last; r++) {
      T* to = copy + r * row;
      const int64_t y = r % height - conv.pad_h, edge = conv.pad_w * pixel, inside = conv.w * pixel;
      if (y < 0 || y >= conv.h) {
        memset(to, 0, (size_t)row * sizeof(T));
        continue;
      }
      memset(to, 0, (size_t)edge * sizeof(T));
      fill(to + edge, r / height * conv.h + y);
      memset(to + edge + inside, 0, (size_t)edge * sizeof(T));
    }
  });
  return copy;
}

// `pixel` elements per pixel, of which a run reads `used` (one bit plane of several). `merge`: rows that touch may
// become one run.
template <class T>
void set_window(const bw_conv& conv, const T* image, int64_t pixel, int64_t used, bool merge, Window<T>* window) {
  window->image = image;
  const int64_t row = (conv.w + 2 * conv.pad_w) * pixel;
  window->step_n = (conv.h + 2 * conv.pad_h) * row;
  window->step_y = conv.stride_h * row, window->step_x = conv.stride_w * pixel;
  window->runs_y = conv.kh, window->runs_x = conv.kw, window->run = used;
  window->run_y = conv.dil_h * row, window->run_x = conv.dil_w * pixel;
  if (used == pixel && (conv.dil_w == 1 || conv.kw == 1)) {  // the taps of a row touch
    window->run = conv.kw * pixel, window->runs_x = 1;
    if (merge && window->run == row && conv.dil_h == 1) window->run *= conv.kh, window->runs_y = 1;
  }
}

// The same, with the copy where padding or the caller wants one. False: no memory.
template <class T>
bool make_window(const bw_conv& conv, const T* x, int64_t pixel, int64_t used, bool copy, bool merge, int threads,
                 Window<T>* window) {
  if (copy || conv.pad_h || conv.pad_w) {
    const int64_t row = conv.w * pixel;
    const T* from = x;
    x = bordered<T>(conv, pixel, threads, [&](T* to, int64_t y) { memcpy(to, from + y * row, (size_t)row * sizeof(T)); });
  }
  set_window(conv, x, pixel, used, merge, window);
  return x != nullptr;
}

// The elements of a window that are read together (a word of bits, four codes), one after the other: `place[i]` is where the i-th
// lie, counted from the first.
struct Places {
  const int32_t* place;
  int64_t count;
};

template <class T>
bool make_places(const Window<T>& window, int64_t step, int64_t count, Places* places) {
  int32_t* place = (int32_t*)bw_scratch(BW_SCRATCH_PLACES, (size_t)count * 4);
  if (!place) return false;
  *places = {place, count};
  for (int64_t ry = 0; ry < window.runs_y; ry++)
    for (int64_t rx = 0; rx < window.runs_x; rx++)
      for (int64_t j = 0; j < window.run; j += step) *place++ = (int32_t)(ry * window.run_y + rx * window.run_x + j);
  return true;
}

// Walks over output pixels in order, n slowest; gives the address of the window and the border class. Few instructions a step: what a
// tile does before its products is not hidden behind those of the tile before.
template <class T>
class Walk {
 public:
  Walk(const bw_conv& conv_, const Window<T>& window_, int64_t pixel)
      : conv(conv_), window(window_), n(pixel / (conv.oh * conv.ow)), oy(pixel / conv.ow % conv.oh), ox(pixel % conv.ow) {
    start_row();
  }
  const T* address() const { return at; }
  int64_t border() const { return row_classes + conv.col_class[ox]; }
  const int32_t* corr() const { return conv.corr + border() * conv.o; }
  BW_INLINE void next() {
    at += window.step_x;
    if (++ox == conv.ow) next_row();
  }

 private:
  const bw_conv& conv;
  const Window<T>& window;
  int64_t n, oy, ox, row_classes;
  const T* at;

  void start_row() {
    at = window.image + n * window.step_n + oy * window.step_y + ox * window.step_x;
    row_classes = conv.row_class[oy] * conv.col_classes;
  }
  __attribute__((noinline)) void next_row() {
    ox = 0;
    if (++oy == conv.oh) oy = 0, n++;
    start_row();
  }
};

// The constants of `count` pixels from `pixel` on, in the order of Walk.
inline void border_rows(const bw_conv& conv, int64_t pixel, int64_t count, const int32_t** corr) {
  int64_t oy = pixel / conv.ow % conv.oh, ox = pixel % conv.ow;
  while (count > 0) {
    const int32_t* const row = conv.corr + conv.row_class[oy] * conv.col_classes * conv.o;
    const int64_t some = conv.ow - ox < count ? conv.ow - ox : count;
    for (int64_t i = 0; i < some; i++) corr[i] = row + conv.col_class[ox + i] * conv.o;
    corr += some, count -= some, ox = 0;
    if (++oy == conv.oh) oy = 0;
  }
}

}  // namespace
