// What the constant part of a layer's input adds to its sums: less at the border of an image, where taps lie outside. The tables
// depend on the size of the image, so they are made when a size comes.
#pragma once
#include <atomic>
#include <new>

#include "ort_tensors.h"

namespace {

// Outputs along one axis, numbered by the taps that lie inside: those from first[class] on, and before last[class].
struct Axis {
  Array<int32_t> class_of, first, last;
  int64_t classes = 0;

  // one_class: the taps do not matter
  bool make(int64_t size, int64_t out, int64_t taps, int64_t stride, int64_t pad, int64_t dilation, bool one_class) {
    if (!class_of.make(out) || !first.make(out) || !last.make(out)) return false;
    for (int64_t i = 0; i < out; i++) {
      const int64_t at = i * stride - pad;
      int64_t from = at < 0 ? bw_ceil_div(-at, dilation) : 0, to = at < size ? bw_ceil_div(size - at, dilation) : 0;
      if (to > taps) to = taps;
      if (from > to) from = to;
      int64_t found = classes ? class_of.data[i - 1] : 0;  // mostly that of its neighbor
      const auto is = [&](int64_t c) { return one_class || (first.data[c] == from && last.data[c] == to); };
      if (!classes || !is(found))
        for (found = 0; found < classes && !is(found);) found++;
      if (found == classes) first.data[classes] = (int32_t)from, last.data[classes++] = (int32_t)to;
      class_of.data[i] = (int32_t)found;
    }
    return true;
  }
};

struct Borders {
  const Borders* next = nullptr;
  int64_t h = 0, w = 0;
  Axis rows, cols;
  Array<int32_t> corr;  // [row classes, column classes, O]

  // taps [outputs or 1, kh, kw]: what the constant adds at each; conv has the geometry and the sizes of both images
  bool make(const bw_conv& conv, const int32_t* taps, bool alike) {
    const int64_t plane = conv.kh * conv.kw, step = alike ? 0 : plane;
    bool none = true;
    for (int64_t i = 0; i < (alike ? 1 : conv.o) * plane; i++) none &= !taps[i];
    h = conv.h, w = conv.w;
    if (!rows.make(h, conv.oh, conv.kh, conv.stride_h, conv.pad_h, conv.dil_h, none) ||
        !cols.make(w, conv.ow, conv.kw, conv.stride_w, conv.pad_w, conv.dil_w, none) ||
        !corr.make(rows.classes * cols.classes * conv.o))
      return false;
    int32_t* sum = corr.data;
    for (int64_t r = 0; r < rows.classes; r++)
      for (int64_t c = 0; c < cols.classes; c++)
        for (int64_t o = 0; o < conv.o; o++) {
          uint32_t total = 0;  // wraps as the sums of the kernels do
          for (int64_t y = rows.first.data[r]; y < rows.last.data[r]; y++)
            for (int64_t x = cols.first.data[c]; x < cols.last.data[c]; x++)
              total += (uint32_t)taps[o * step + y * conv.kw + x];
          *sum++ = (int32_t)total;
        }
    return true;
  }

  void into(bw_conv* conv) const {
    conv->row_classes = rows.classes, conv->row_class = rows.class_of.data;
    conv->col_classes = cols.classes, conv->col_class = cols.class_of.data;
    conv->corr = corr.data;
  }
};

// The tables of the sizes that came first. Kernels run in several threads at once: an entry never changes, and lives as long as
// the kernel. Sizes beyond MOST are not kept.
class KnownBorders {
 public:
  KnownBorders() = default;
  KnownBorders(const KnownBorders&) = delete;
  ~KnownBorders() {
    for (const Borders* at = head; at;) {
      const Borders* next = at->next;
      delete at;
      at = next;
    }
  }

  const Borders* find(int64_t h, int64_t w) const {
    for (const Borders* at = head.load(std::memory_order_acquire); at; at = at->next)
      if (at->h == h && at->w == w) return at;
    return nullptr;
  }

  // Whether it is kept now; else it stays the caller's. Two threads may keep the same size: both entries are right.
  bool keep(Borders* made) const {
    if (count.fetch_add(1) >= MOST) {
      count.fetch_sub(1);
      return false;
    }
    made->next = head.load();
    while (!head.compare_exchange_weak(made->next, made)) {}
    return true;
  }

 private:
  static constexpr int MOST = 64;
  mutable std::atomic<const Borders*> head{nullptr};
  mutable std::atomic<int> count{0};
};

}  // namespace
