// Forward and backward of input parts: sign, clip and round (DoReFa, PACT), learned steps (LSQ).
#pragma once
#include "train_blocks.h"

namespace {

// y = +1, -1, NaN;  mask: bit i = |x| <= 1 (closed) or < 1 (open)
template <class E>
inline void sign_forward(const E* x, E* y, uint64_t* mask, int64_t n, bool open, int threads) {
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read;
    Writer<E> write;
    alignas(64) int32_t lanes[BLOCK];
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float* __restrict v = read(x + i, left);
      float* __restrict out = write.at(y + i, left);
      for (int j = 0; j < BLOCK; j++) {
        const float signed_one = v[j] >= 0.0f ? 1.0f : -1.0f;
        out[j] = v[j] == v[j] ? signed_one : v[j];
      }
      write.done(y + i, left);
      if (!mask) continue;
      if (open)
        for (int j = 0; j < BLOCK; j++) lanes[j] = -(int32_t)(fabsf(v[j]) < 1.0f);
      else
        for (int j = 0; j < BLOCK; j++) lanes[j] = -(int32_t)(fabsf(v[j]) <= 1.0f);
      mask[i / BLOCK] = packed(lanes);
    }
  });
}

// y = x >= threshold ? on : off;  NaN stays
template <class E>
inline void step_forward(const E* x, E* y, int64_t n, float threshold, float on, float off, int threads) {
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read;
    Writer<E> write;
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float* __restrict v = read(x + i, left);
      float* __restrict out = write.at(y + i, left);
      for (int j = 0; j < BLOCK; j++) {
        const float level = v[j] >= threshold ? on : off;
        out[j] = v[j] == v[j] ? level : v[j];
      }
      write.done(y + i, left);
    }
  });
}

// y = (2 floor((clip(x, -1, 1) + 1) * top / 2 + 1/2) - top) / top;  inside: |x| <= 1.  NaN stays
template <class E>
inline void odd_forward(const E* x, E* y, uint64_t* inside, int64_t n, float top, int threads) {
  const float half = top / 2, down = (float)(1.0 / (double)top);
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read;
    Writer<E> write;
    alignas(64) int32_t lanes[BLOCK];
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float* __restrict v = read(x + i, left);
      float* __restrict out = write.at(y + i, left);
      for (int j = 0; j < BLOCK; j++) {
        const float floored = v[j] < -1.0f ? -1.0f : v[j];
        const float level = below(((floored > 1.0f ? 1.0f : floored) + 1.0f) * half + 0.5f);
        out[j] = (2.0f * level - top) * down;
      }
      write.done(y + i, left);
      if (!inside) continue;
      for (int j = 0; j < BLOCK; j++) lanes[j] = -(int32_t)(fabsf(v[j]) <= 1.0f);
      inside[i / BLOCK] = packed(lanes);
    }
  });
}

// dx = g * bit. A product, not a choice: what torch's mask does to -0.0, inf and NaN.
template <class E>
inline void mask_backward(const E* g, const uint64_t* mask, E* dx, int64_t n, int threads) {
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read;
    Writer<E> write;
    alignas(64) float bit[BLOCK];
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float* __restrict grad = read(g + i, left);
      float* __restrict out = write.at(dx + i, left);
      spread(mask[i / BLOCK], bit);
      for (int j = 0; j < BLOCK; j++) out[j] = grad[j] * bit[j];
      write.done(dx + i, left);
    }
  });
}

// dx = g * max(0, 2 - 2|x|), the slope rounded to the type of x
template <class E>
inline void approx_backward(const E* g, const E* x, E* dx, int64_t n, int threads) {
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read_g, read_x;
    Writer<E> write;
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float *__restrict grad = read_g(g + i, left), *__restrict v = read_x(x + i, left);
      float* __restrict out = write.at(dx + i, left);
      for (int j = 0; j < BLOCK; j++) {
        const float slope = 2.0f - 2.0f * fabsf(v[j]);
        out[j] = grad[j] * as_stored(slope < 0.0f ? 0.0f : slope, x);
      }
      write.done(dx + i, left);
    }
  });
}

// y = rint(clip(x, 0, high) * up) * down;  inside: 0 <= x <= high;  above: x >= high
template <class E>
inline void clip_forward(const E* x, E* y, uint64_t* inside, uint64_t* above, int64_t n, float high, float up,
                         float down, int threads) {
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read;
    Writer<E> write;
    alignas(64) int32_t lanes[BLOCK];
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float* __restrict v = read(x + i, left);
      float* __restrict out = write.at(y + i, left);
      for (int j = 0; j < BLOCK; j++) {
        const float floored = v[j] < 0.0f ? 0.0f : v[j];
        out[j] = nearest((floored > high ? high : floored) * up) * down;
      }
      write.done(y + i, left);
      if (inside) {
        for (int j = 0; j < BLOCK; j++) lanes[j] = -(int32_t)((v[j] >= 0.0f) & (v[j] <= high));
        inside[i / BLOCK] = packed(lanes);
      }
      if (above) {
        for (int j = 0; j < BLOCK; j++) lanes[j] = -(int32_t)(v[j] >= high);
        above[i / BLOCK] = packed(lanes);
      }
    }
  });
}

// sum of g where the bit is set, one partial sum per task
template <class E>
inline void masked_sums(const E* g, const uint64_t* mask, double* partial, int64_t n, int threads) {
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read;
    Sum sum;
    alignas(64) float bit[BLOCK];
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const float* __restrict grad = read(g + i, first + count - i);
      spread(mask[i / BLOCK], bit);
      for (int j = 0; j < BLOCK; j++) bit[j] *= grad[j];
      sum.add(bit);
    }
    partial[first / TASK] = sum.total();
  });
}

// One element of a learned step: v = x / step in float32.
inline float lsq_value(float v, float step, float low, float high) {
  const float floored = v < low ? low : v;
  return nearest(floored > high ? high : floored) * step;
}
inline float lsq_inside(float v, float low, float high) { return (float)(int32_t)((v >= low) & (v <= high)); }
inline float lsq_slope(float v, float low, float high) {
  const float floored = v <= low ? low : nearest(v) - v;
  return v >= high ? high : floored;
}

// A tensor [outer][channels][inner] with one step per channel is a sequence of runs with one step each; inner = 1
// (channels_last) is taken in rows of all channels. Partial sums: one per task, or one per task and channel.
struct Runs {
  int64_t outer, channels, inner;
  bool rows() const { return inner == 1 && channels > 1; }
  int64_t rows_per_task() const { return TASK / channels + 1; }
  int64_t chunks() const { return bw_ceil_div(inner, TASK); }
  int64_t tasks() const { return rows() ? bw_ceil_div(outer, rows_per_task()) : outer * channels * chunks(); }
  int64_t partials() const { return rows() ? tasks() * channels : tasks(); }
};

template <class E>
inline void lsq_forward(const E* x, const float* steps, E* y, const Runs& runs, float low, float high, int threads) {
  for_tasks(threads, runs.tasks(), [=](int64_t task) {
    if (runs.rows()) {
      const int64_t from = task * runs.rows_per_task(), to = from + runs.rows_per_task();
      for (int64_t row = from; row < to && row < runs.outer; row++) {
        const E* in = x + row * runs.channels;
        E* __restrict out = y + row * runs.channels;
        for (int64_t c = 0; c < runs.channels; c++) store(out + c, lsq_value(widened(in[c]) / steps[c], steps[c], low, high));
      }
      return;
    }
    const int64_t run = task / runs.chunks(), first = task % runs.chunks() * TASK;
    const int64_t end = runs.inner - first < TASK ? runs.inner : first + TASK;
    const float step = steps[run % runs.channels];
    Reader<E> read;
    Writer<E> write;
    for (int64_t i = run * runs.inner + first; i < run * runs.inner + end; i += BLOCK) {
      const int64_t left = run * runs.inner + end - i;
      const float* __restrict v = read(x + i, left);
      float* __restrict out = write.at(y + i, left);
      for (int j = 0; j < BLOCK; j++) out[j] = lsq_value(v[j] / step, step, low, high);
      write.done(y + i, left);
    }
  });
}

template <class E>
inline void lsq_backward(const E* g, const E* x, const float* steps, E* dx, double* partial, const Runs& runs,
                         float low, float high, int threads) {
  for_tasks(threads, runs.tasks(), [=](int64_t task) {
    if (runs.rows()) {
      const int64_t from = task * runs.rows_per_task(), to = from + runs.rows_per_task();
      double* __restrict sums = partial + task * runs.channels;
      for (int64_t c = 0; c < runs.channels; c++) sums[c] = 0;
      for (int64_t row = from; row < to && row < runs.outer; row++) {
        const E *grads = g + row * runs.channels, *in = x + row * runs.channels;
        E* __restrict out = dx + row * runs.channels;
        for (int64_t c = 0; c < runs.channels; c++)
          store(out + c, widened(grads[c]) * lsq_inside(widened(in[c]) / steps[c], low, high));
        for (int64_t c = 0; c < runs.channels; c++)
          sums[c] += (double)(widened(grads[c]) * lsq_slope(widened(in[c]) / steps[c], low, high));
      }
      return;
    }
    const int64_t run = task / runs.chunks(), first = task % runs.chunks() * TASK;
    const int64_t end = runs.inner - first < TASK ? runs.inner : first + TASK;
    const float step = steps[run % runs.channels];
    Reader<E> read_g, read_x;
    Writer<E> write;
    Sum sum;
    alignas(64) float scaled[BLOCK], to_step[BLOCK];
    for (int64_t i = run * runs.inner + first; i < run * runs.inner + end; i += BLOCK) {
      const int64_t left = run * runs.inner + end - i;
      const float *__restrict grad = read_g(g + i, left), *__restrict v = read_x(x + i, left);
      float* __restrict out = write.at(dx + i, left);
      // one choice per loop: gcc 12 vectorizes no more
      for (int j = 0; j < BLOCK; j++) scaled[j] = v[j] / step;
      for (int j = 0; j < BLOCK; j++) out[j] = grad[j] * lsq_inside(scaled[j], low, high);
      write.done(dx + i, left);
      for (int j = 0; j < BLOCK; j++) to_step[j] = lsq_slope(scaled[j], low, high);
      for (int j = 0; j < BLOCK; j++) to_step[j] *= grad[j];
      for (int64_t j = left; j < BLOCK; j++) to_step[j] = 0.0f;  // 0 / 0 where the step is 0
      sum.add(to_step);
    }
    partial[task] = sum.total();
  });
}

}  // namespace
