// The sum of a gated layer and its gradients: y = base + rest where v = (base - mean) rate - threshold is above 0.
#pragma once
#include "train_blocks.h"

namespace {

// Channels are taken a block of 64 outputs at a time. In rows (inner = 1, channels_last) a run is as many short rows as fill whole
// blocks, and values per channel are repeated along it; else a run is the positions of one channel of one sample.
struct GateRuns : bw_gate_shape {
  const int64_t length, lanes;  // computed once
  explicit GateRuns(const bw_gate_shape& s) : bw_gate_shape(s), length(s.length()), lanes(s.lanes()) {}

  // block(first output, how many, where the values of its channels are, where their sums are)
  template <class Block>
  void each(int64_t task, const Block& block) const {
    const int64_t all = outer * channels * inner;
    const int64_t from = rows() ? task * runs_per_task() : 0, to = rows() ? from + runs_per_task() : outer;
    for (int64_t run = from; run < to; run++) {
      const int64_t start = rows() ? run * length : (run * channels + task) * inner;
      const int64_t count = start + length < all ? length : all - start;
      for (int64_t j = 0; j < count; j += BLOCK) block(start + j, count - j, rows() ? j : task * BLOCK, rows() ? j : 0);
    }
  }

  // piece(where in the shared tensor, where in the block, how many) for the parts of a block that lie together
  template <class Piece>
  void pieces(int64_t first, int64_t count, bool rest, const Piece& piece) const {
    int64_t row = first / channels, c = first % channels;
    const int64_t half = channels / 2;
    for (int64_t j = 0; j < count;) {
      const int64_t stop = rest && c < half ? half : channels, run = stop - c < count - j ? stop - c : count - j;
      piece(row * 2 * channels + place(c, rest), j, run);
      j += run, c += run;
      if (c == channels) c = 0, row++;
    }
  }

  // of a block inside one plane
  int64_t plane(int64_t first, bool rest) const {
    const int64_t run = first / inner;
    return (run / channels * 2 * channels + place(run % channels, rest)) * inner + first % inner;
  }
};

// sixteen or eight at a time: a loop of unknown length costs more than the few it copies
template <class Copy>
inline void copy_run(int64_t run, const Copy& copy) {
  int64_t k = 0;
  for (; k + 16 <= run; k += 16)
    for (int i = 0; i < 16; i++) copy(k + i);
  for (; k + 8 <= run; k += 8)
    for (int i = 0; i < 8; i++) copy(k + i);
  for (; k < run; k++) copy(k);
}

template <class E>
struct GateReader {
  Reader<E> read;
  alignas(64) float room[BLOCK];
  const float* operator()(const GateRuns& runs, const E* p, int64_t first, int64_t left, bool rest) {
    if (!runs.halves) return read(p + first, left);
    if (!runs.rows()) return read(p + runs.plane(first, rest), left);
    const int64_t count = left < BLOCK ? left : BLOCK;
    runs.pieces(first, count, rest, [&](int64_t at, int64_t j, int64_t run) {
      const E* __restrict from = p + at;
      float* __restrict to = room + j;
      copy_run(run, [=](int64_t k) { to[k] = widened(from[k]); });
    });
    for (int64_t j = count; j < BLOCK; j++) room[j] = 0.0f;
    return room;
  }
};

template <class E>
struct GateWriter {
  Writer<E> write;
  alignas(64) float room[BLOCK];
  int64_t apart(const GateRuns& runs, int64_t first, bool rest) const { return runs.halves ? runs.plane(first, rest) : first; }
  float* at(const GateRuns& runs, E* p, int64_t first, int64_t left, bool rest) {
    return runs.halves && runs.rows() ? room : write.at(p + apart(runs, first, rest), left);
  }
  void done(const GateRuns& runs, E* p, int64_t first, int64_t left, bool rest) {
    if (!runs.halves || !runs.rows()) return write.done(p + apart(runs, first, rest), left);
    runs.pieces(first, left < BLOCK ? left : BLOCK, rest, [&](int64_t at, int64_t j, int64_t run) {
      const float* __restrict from = room + j;
      E* __restrict to = p + at;
      copy_run(run, [=](int64_t k) { store(to + k, from[k]); });
    });
  }
};

// dv *= slope s (1 - s), s = sigmoid(slope v), from t = slope |v| cut at 88: e / (1 + e)^2 slope with e = e^-t
inline void times_bump(const float* __restrict t, float slope, float* __restrict dv) {
  alignas(64) float near[BLOCK], power[BLOCK];
  alignas(64) uint32_t bits[BLOCK];
  for (int j = 0; j < BLOCK; j++) near[j] = t[j] * -1.44269504f + 12582912.0f;  // 1.5 * 2^23: to the nearest whole number
  memcpy(bits, near, sizeof bits);
  for (int j = 0; j < BLOCK; j++) bits[j] = (bits[j] + 127) << 23;  // 2^n, from the lowest bits; 0 for n = -127
  memcpy(power, bits, sizeof power);
  for (int j = 0; j < BLOCK; j++) {
    const float n = near[j] - 12582912.0f;
    const float r = -t[j] - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts
    float sum = 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    const float e = ((sum * r * r + r) + 1.0f) * power[j], one = 1.0f + e;
    dv[j] *= e / (one * one) * slope;
  }
}

inline void gate_distance(const float* __restrict base, const bw_gate_values& values, int64_t at, float* __restrict v) {
  const float *__restrict mean = values.mean + at, *__restrict rate = values.rate + at;
  const float* __restrict threshold = values.threshold + at;
  for (int j = 0; j < BLOCK; j++) v[j] = (base[j] - mean[j]) * rate[j] - threshold[j];
}

// per channel: sums of base and of its squares
template <class E>
inline void gate_moments(const E* base, const bw_gate_shape& shape, double* partial, int threads) {
  const GateRuns runs(shape);
  const int64_t lanes = runs.lanes;
  for_tasks(threads, runs.tasks(), [=](int64_t task) {
    GateReader<E> read;
    double* sums = partial + task * 2 * lanes;
    for (int64_t j = 0; j < 2 * lanes; j++) sums[j] = 0;
    runs.each(task, [&](int64_t first, int64_t left, int64_t, int64_t lane) {
      const float* __restrict x = read(runs, base, first, left, false);
      double *__restrict sum = sums + lane, *__restrict squares = sums + lanes + lane;
      for (int j = 0; j < BLOCK; j++) sum[j] += (double)x[j];
      for (int j = 0; j < BLOCK; j++) squares[j] += (double)x[j] * (double)x[j];
    });
  });
}

template <class E>
inline void gate_forward(const E* base, const E* rest, const bw_gate_shape& shape, const bw_gate_values& values, E* y,
                         float* on, int threads) {
  const GateRuns runs(shape);
  for_tasks(threads, runs.tasks(), [=](int64_t task) {
    GateReader<E> read_base, read_rest;
    Writer<E> write;
    alignas(64) float v[BLOCK];
    runs.each(task, [&](int64_t first, int64_t left, int64_t at, int64_t) {
      const float* __restrict b = read_base(runs, base, first, left, false);
      const float* __restrict r = read_rest(runs, rest, first, left, true);
      float* __restrict out = write.at(y + first, left);
      gate_distance(b, values, at, v);
      // an off rest is left out, not multiplied: it may be infinite
      for (int j = 0; j < BLOCK; j++) out[j] = v[j] > 0.0f ? b[j] + r[j] : b[j];
      for (int j = 0; j < BLOCK; j++) out[j] = v[j] == v[j] ? out[j] : v[j];
      write.done(y + first, left);
      if (!on) return;
      for (int j = 0; j < BLOCK; j++) v[j] = v[j] == v[j] ? (v[j] > 0.0f ? 1.0f : 0.0f) : v[j];
      for (int64_t j = 0; j < left && j < BLOCK; j++) on[first + j] = v[j];
    });
  });
}

// dv = (g rest + g_on) slope s (1 - s): its sums per channel, and for a normalized base those of dv times it. to_rest = g on;
// to_base = g + dv, for a normalized base dv alone: the rest of it needs the sums.
template <class E>
inline void gate_backward(const bw_gate_grads& grads, const E* base, const E* rest, const bw_gate_shape& shape,
                          const bw_gate_values& values, double* partial, int threads) {
  const GateRuns runs(shape);
  const int64_t lanes = runs.lanes;
  const E* g = (const E*)grads.g;
  for_tasks(threads, runs.tasks(), [=](int64_t task) {
    GateReader<E> read_base, read_rest;
    Reader<E> read_g;
    GateWriter<E> write_base, write_rest;
    alignas(64) float v[BLOCK], t[BLOCK], dv[BLOCK];
    const float slope = grads.slope;
    E *to_base = (E*)grads.to_base, *to_rest = (E*)grads.to_rest;
    double* sums = partial + task * 2 * lanes;
    for (int64_t j = 0; j < 2 * lanes; j++) sums[j] = 0;
    runs.each(task, [&](int64_t first, int64_t left, int64_t at, int64_t lane) {
      const float* __restrict b = read_base(runs, base, first, left, false);
      const float* __restrict r = read_rest(runs, rest, first, left, true);
      const float* __restrict grad = read_g(g + first, left);
      const float *__restrict mean = values.mean + at, *__restrict rate = values.rate + at;
      gate_distance(b, values, at, v);
      // loops of their own: gcc 12 vectorizes no more at once
      for (int j = 0; j < BLOCK; j++) t[j] = fabsf(v[j]) * slope;
      for (int j = 0; j < BLOCK; j++) t[j] = t[j] > 88.0f ? 88.0f : t[j];
      for (int j = 0; j < BLOCK; j++) dv[j] = as_stored(grad[j] * r[j], g);
      if (grads.g_on)
        for (int64_t j = 0; j < left && j < BLOCK; j++) dv[j] += grads.g_on[first + j];
      times_bump(t, slope, dv);
      if (grads.sparse)
        for (int j = 0; j < BLOCK; j++) dv[j] = v[j] < 0.0f ? 0.0f : dv[j];
      for (int64_t j = left; j < BLOCK; j++) dv[j] = 0.0f;
      double *__restrict sum = sums + lane, *__restrict products = sums + lanes + lane;
      for (int j = 0; j < BLOCK; j++) sum[j] += (double)dv[j];
      if (grads.normalized)
        for (int j = 0; j < BLOCK; j++) products[j] += (double)(dv[j] * ((b[j] - mean[j]) * rate[j]));
      float* __restrict out = write_base.at(runs, to_base, first, left, false);
      if (grads.normalized)
        for (int j = 0; j < BLOCK; j++) out[j] = dv[j];
      else
        for (int j = 0; j < BLOCK; j++) out[j] = grad[j] + as_stored(dv[j], g);
      write_base.done(runs, to_base, first, left, false);
      float* __restrict other = write_rest.at(runs, to_rest, first, left, true);
      for (int j = 0; j < BLOCK; j++) t[j] = v[j] > 0.0f ? 1.0f : 0.0f;
      for (int j = 0; j < BLOCK; j++) other[j] = grad[j] * (v[j] == v[j] ? t[j] : v[j]);
      write_rest.done(runs, to_rest, first, left, true);
    });
  });
}

// to_base = g + rate (to_base - mean_dv - z mean_dvz), z = (base - mean) rate
template <class E>
inline void gate_normalized(const E* g, const E* base, const bw_gate_shape& shape, const bw_gate_values& values, E* to_base,
                            int threads) {
  const GateRuns runs(shape);
  for_tasks(threads, runs.tasks(), [=](int64_t task) {
    GateReader<E> read_base, read_dv;
    Reader<E> read_g;
    GateWriter<E> write;
    alignas(64) float v[BLOCK];
    runs.each(task, [&](int64_t first, int64_t left, int64_t at, int64_t) {
      const float* __restrict b = read_base(runs, base, first, left, false);
      const float* dv = read_dv(runs, to_base, first, left, false);
      const float* __restrict grad = read_g(g + first, left);
      const float *__restrict mean = values.mean + at, *__restrict rate = values.rate + at;
      const float *__restrict mean_dv = values.mean_dv + at, *__restrict mean_dvz = values.mean_dvz + at;
      for (int j = 0; j < BLOCK; j++) v[j] = rate[j] * ((dv[j] - mean_dv[j]) - (b[j] - mean[j]) * rate[j] * mean_dvz[j]);
      float* out = write.at(runs, to_base, first, left, false);
      for (int j = 0; j < BLOCK; j++) out[j] = grad[j] + as_stored(v[j], g);
      write.done(runs, to_base, first, left, false);
    });
  });
}

// x = whole numbers times unit: high = those cut to multiples of `one`, times unit; low = what was cut, times unit
template <class E>
inline void split_forward(const E* x, E* high, E* low, int64_t n, float unit, float one, int threads) {
  const float part = 1.0f / one;  // a power of two
  for_elements(threads, n, [=](int64_t first, int64_t count) {
    Reader<E> read;
    Writer<E> write_high, write_low;
    for (int64_t i = first; i < first + count; i += BLOCK) {
      const int64_t left = first + count - i;
      const float* __restrict v = read(x + i, left);
      float *__restrict top = write_high.at(high + i, left), *__restrict bottom = write_low.at(low + i, left);
      alignas(64) float whole[BLOCK], cut[BLOCK];
      for (int j = 0; j < BLOCK; j++) whole[j] = nearest(v[j] / unit);
      for (int j = 0; j < BLOCK; j++) cut[j] = copysignf(below(fabsf(whole[j]) * part), whole[j]) * one;
      for (int j = 0; j < BLOCK; j++) top[j] = cut[j] * unit;
      for (int j = 0; j < BLOCK; j++) bottom[j] = (whole[j] - cut[j]) * unit;
      write_high.done(high + i, left);
      write_low.done(low + i, left);
    }
  });
}

}  // namespace
