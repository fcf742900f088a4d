// Forward and backward of weight parts: mean|w| sign(w) per filter (BWN, XNOR-Net, Bi-Real), DoReFa's odd levels.
#pragma once
#include "train_blocks.h"

namespace {

inline int64_t filter_words(int64_t count) { return bw_ceil_div(count, BLOCK); }

// Filters are rows of `count` weights. bits, if given, [filters][2][words]: w >= 0, then |w| <= 1.
template <class E>
inline void binary_forward(const E* w, E* y, float* scales, uint64_t* bits, int64_t filters, int64_t count, bool one_scale,
                           int threads) {
  const auto size_of = [=](int64_t filter) {
    Reader<E> read;
    Sum sum;
    alignas(64) float size[BLOCK];
    for (int64_t i = 0; i < count; i += BLOCK) {
      const float* __restrict v = read(w + filter * count + i, count - i);
      for (int j = 0; j < BLOCK; j++) size[j] = fabsf(v[j]);
      sum.add(size);
    }
    return sum.total();
  };
  double all = 0;  // a layer-wise scale is needed before the first value
  for (int64_t f = 0; one_scale && f < filters; f++) all += size_of(f);
  const int64_t per_task = TASK / (count + 1) + 1;
  for_tasks(threads, bw_ceil_div(filters, per_task), [=](int64_t task) {
    Reader<E> read;
    Writer<E> write;
    alignas(64) int32_t lanes[BLOCK];
    const int64_t from = task * per_task, to = from + per_task < filters ? from + per_task : filters;
    for (int64_t f = from; f < to; f++) {
      const double mean = one_scale ? all / (double)(filters * count) : size_of(f) / (double)count;
      const float scale = as_stored((float)mean, w);
      scales[f] = scale;
      uint64_t* plus = bits ? bits + 2 * f * filter_words(count) : nullptr;
      uint64_t* small = plus ? plus + filter_words(count) : nullptr;
      for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t at = f * count + i, left = count - i;
        const float* __restrict v = read(w + at, left);
        float* __restrict out = write.at(y + at, left);
        for (int j = 0; j < BLOCK; j++) out[j] = v[j] >= 0.0f ? scale : -scale;  // with a NaN the scale is one too
        write.done(y + at, left);
        if (!bits) continue;
        for (int j = 0; j < BLOCK; j++) lanes[j] = -(int32_t)(v[j] >= 0.0f);
        plus[i / BLOCK] = packed(lanes);
        for (int j = 0; j < BLOCK; j++) lanes[j] = -(int32_t)(fabsf(v[j]) <= 1.0f);
        small[i / BLOCK] = packed(lanes);
      }
    }
  });
}

// dw = g small                                        (scale not learned through: exact = false)
// dw = scale g small + sign / n sum_j g_j sign_j      (exact, one scale per filter or one for all)
template <class E>
inline void binary_backward(const E* g, const float* scales, const uint64_t* bits, E* dw, int64_t filters,
                            int64_t count, bool exact, bool one_scale, int threads) {
  const auto signed_sum = [=](int64_t f) {
    const uint64_t* plus = bits + 2 * f * filter_words(count);
    Reader<E> read;
    Sum sum;
    alignas(64) float value[BLOCK];
    for (int64_t i = 0; i < count; i += BLOCK) {
      const float* __restrict grad = read(g + f * count + i, count - i);
      spread(plus[i / BLOCK], value);
      for (int j = 0; j < BLOCK; j++) value[j] = grad[j] * (2.0f * value[j] - 1.0f);
      sum.add(value);
    }
    return sum.total();
  };
  double all = 0;
  for (int64_t f = 0; exact && one_scale && f < filters; f++) all += signed_sum(f);
  const int64_t per_task = TASK / (count + 1) + 1;
  for_tasks(threads, bw_ceil_div(filters, per_task), [=](int64_t task) {
    Reader<E> read;
    Writer<E> write;
    alignas(64) float plus[BLOCK], small[BLOCK];
    const int64_t from = task * per_task, to = from + per_task < filters ? from + per_task : filters;
    for (int64_t f = from; f < to; f++) {
      const uint64_t* words = bits + 2 * f * filter_words(count);
      const double sum = !exact ? 0 : one_scale ? all : signed_sum(f);
      const float share = (float)((double)(float)sum / (double)(one_scale ? filters * count : count));
      const float scale = exact ? scales[f] : 1.0f;
      for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t at = f * count + i, left = count - i;
        const float* __restrict grad = read(g + at, left);
        float* __restrict out = write.at(dw + at, left);
        spread(words[filter_words(count) + i / BLOCK], small);
        if (exact) {
          spread(words[i / BLOCK], plus);
          for (int j = 0; j < BLOCK; j++) out[j] = grad[j] * scale * small[j] + share * (2.0f * plus[j] - 1.0f);
        } else {
          for (int j = 0; j < BLOCK; j++) out[j] = grad[j] * small[j];
        }
        write.done(dw + at, left);
      }
    }
  });
}

// t = tanh(w) -> y = (2 q(t / (2 peak) + 1/2) - 1) alive on `top` + 1 levels; peak = max|t|, alive = peak > 0.
// peak[0] is written: the maximum, or 1 where that is 0 or not a number (as a slope: see dorefa_backward).
template <class E>
inline void dorefa_forward(const float* t, E* y, float* peak, int64_t n, float top, int threads) {
  alignas(64) float most[16] = {}, lost[16] = {};
  Reader<float> read_block;
  for (int64_t i = 0; i < n; i += BLOCK) {
    const float* __restrict v = read_block(t + i, n - i);
    for (int j = 0; j < BLOCK; j += 16)
      for (int k = 0; k < 16; k++) {
        most[k] = fabsf(v[j + k]) > most[k] ? fabsf(v[j + k]) : most[k];
        lost[k] = v[j + k] == v[j + k] ? lost[k] : 1.0f;
      }
  }
  float largest = 0;
  bool number = true;
  for (int k = 0; k < 16; k++) largest = most[k] > largest ? most[k] : largest, number &= lost[k] == 0.0f;
  const float alive = number && largest > 0 ? 1.0f : 0.0f, range = alive > 0 ? largest : 1.0f;
  const float twice = 2 * range, step = (float)(2.0 / (double)top);
  peak[0] = range;
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<float> read;
    Writer<E> write;
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float* __restrict v = read(t + i, left);
      float* __restrict out = write.at(y + i, left);
      for (int j = 0; j < BLOCK; j++) {
        const float unit = v[j] / twice + 0.5f, floored = unit < 0.0f ? 0.0f : unit;
        out[j] = (nearest((floored > 1.0f ? 1.0f : floored) * top) * step - 1.0f) * alive;
      }
      write.done(y + i, left);
    }
  });
}

// dw = g (1 - t t) / peak, the slope rounded to the type of g
template <class E>
inline void dorefa_backward(const E* g, const float* t, float peak, E* dw, int64_t n, int threads) {
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read_g;
    Reader<float> read_t;
    Writer<E> write;
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float *__restrict grad = read_g(g + i, left), *__restrict v = read_t(t + i, left);
      float* __restrict out = write.at(dw + i, left);
      for (int j = 0; j < BLOCK; j++) out[j] = grad[j] * as_stored((1.0f - v[j] * v[j]) / peak, g);
      write.done(dw + i, left);
    }
  });
}

}  // namespace
