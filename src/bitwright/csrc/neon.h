// Convolutions on ARM: four pixels times four outputs at once, so that each load serves four products.
//   bits    bytes of AND are counted (vcnt) and added as bytes, of which 31 fit without overflow; layout of the generic kernels
//   bytes   int16 products into int32 (vmlal); layout of the generic kernels
//   dot     int8 products into int32 (vdot, where the CPU has it): weights of -128..127, codes less 128; see neon_dot.cpp
// No ARM machine was at hand: these are checked on an emulator, and nothing was timed.
#pragma once
#include <arm_neon.h>

#include "generic_table.h"

namespace {

constexpr int SIDE = 4;  // pixels, and outputs, of a block

// The outputs of a group from `o` on, of which a block takes four; at its end the last one is repeated.
inline int64_t output_at(int64_t o, int i, int64_t last) { return o + i < last ? o + i : last - 1; }

template <class Gather, class Dot>
inline int neon_conv(const bw_conv& conv, const bw_sink& output, int threads, int64_t patch_bytes, const Gather& gather,
                     const Dot& dot) {
  const int64_t pixels = conv.n * conv.oh * conv.ow, chunk = items_per_task(threads, pixels, SIDE, 64);
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(pixels, chunk), [&](int64_t task) {
    uint8_t* patches = (uint8_t*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(SIDE * patch_bytes));
    int32_t* values = (int32_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o * (SIDE * 4 + 1));
    if (!patches || !values) {
      __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
      return;
    }
    uint8_t* codes = (uint8_t*)(values + SIDE * conv.o);
    const int64_t last = (task + 1) * chunk < pixels ? (task + 1) * chunk : pixels;
    for (int64_t first = task * chunk; first < last; first += SIDE) {
      const int count = last - first < SIDE ? (int)(last - first) : SIDE;
      const void* patch[SIDE];
      for (int i = 0; i < SIDE; i++) {
        patch[i] = patches + (i < count ? i : 0) * patch_bytes;
        if (i < count) gather(pixel_at(conv, first + i), patches + i * patch_bytes);
      }
      dot(patch, values);
      for (int i = 0; i < count; i++) {
        int32_t* row = values + i * conv.o;
        const int32_t* corr = corr_of(conv, pixel_at(conv, first + i));
        for (int64_t o = 0; o < conv.o; o++) row[o] += corr[o];
        emit_pixel(output, conv.o, first + i, row, codes);
      }
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a convolution patch") : BW_OK;
}

// counts[output][pixel]: set bits of w & x
inline void and_counts(const uint64_t* const w[SIDE], const uint64_t* const x[SIDE], int64_t words, int32_t counts[SIDE][SIDE]) {
  for (int o = 0; o < SIDE; o++)
    for (int i = 0; i < SIDE; i++) counts[o][i] = 0;
  for (int64_t first = 0; first < words; first += 62) {
    const int64_t last = first + 62 < words ? first + 62 : words;
    uint8x16_t bytes[SIDE][SIDE];
    for (int o = 0; o < SIDE; o++)
      for (int i = 0; i < SIDE; i++) bytes[o][i] = vdupq_n_u8(0);
    const auto add = [&](const auto& load, int64_t k) {
      uint8x16_t ws[SIDE], xs[SIDE];
      for (int i = 0; i < SIDE; i++) ws[i] = load(w[i] + k), xs[i] = load(x[i] + k);
      for (int o = 0; o < SIDE; o++)
        for (int i = 0; i < SIDE; i++) bytes[o][i] = vaddq_u8(bytes[o][i], vcntq_u8(vandq_u8(ws[o], xs[i])));
    };
    int64_t k = first;
    for (; k + 2 <= last; k += 2) add([](const uint64_t* p) { return vreinterpretq_u8_u64(vld1q_u64(p)); }, k);
    if (k < last) add([](const uint64_t* p) { return vreinterpretq_u8_u64(vcombine_u64(vld1_u64(p), vcreate_u64(0))); }, k);
    for (int o = 0; o < SIDE; o++)
      for (int i = 0; i < SIDE; i++) counts[o][i] += vaddlvq_u8(bytes[o][i]);
  }
}

int neon_conv_bits(const bw_conv& conv, const uint32_t* x, int32_t layout, const void* body, const bw_sink& output, int threads) {
  if (layout != BW_LAYOUT_GENERIC_BITS) return table_conv_bits(conv, x, layout, body, output, threads);
  const int64_t row = bits_row(conv), group_outputs = conv.o / conv.groups;
  const uint64_t* weights = (const uint64_t*)body;
  return neon_conv(
      conv, output, threads, conv.groups * conv.x_planes * row * 8,
      [&](const Pixel& at, void* patch) { gather_bits(conv, x, at, (uint64_t*)patch); },
      [&](const void* const patch[SIDE], int32_t* values) {
        for (int64_t g = 0; g < conv.groups; g++) {
          int32_t offset[SIDE] = {};  // what w_zero adds: the same for every output of the group
          for (int i = 0; conv.w_zero && i < SIDE; i++)
            for (int64_t p = 0; p < conv.x_planes; p++)
              offset[i] += (int32_t)(conv.w_zero * conv.x_mult[p] * popcount((const uint64_t*)patch[i] + (g * conv.x_planes + p) * row, row));
          const int64_t last = (g + 1) * group_outputs;
          for (int64_t o = g * group_outputs; o < last; o += SIDE) {
            int32_t sums[SIDE][SIDE], counts[SIDE][SIDE];
            for (int k = 0; k < SIDE; k++) memcpy(sums[k], offset, sizeof offset);
            for (int64_t q = 0; q < conv.w_planes; q++)
              for (int64_t p = 0; p < conv.x_planes; p++) {
                const uint64_t *ws[SIDE], *xs[SIDE];
                for (int i = 0; i < SIDE; i++) {
                  ws[i] = weights + (output_at(o, i, last) * conv.w_planes + q) * row;
                  xs[i] = (const uint64_t*)patch[i] + (g * conv.x_planes + p) * row;
                }
                and_counts(ws, xs, row, counts);
                const int32_t times = conv.w_mult[q] * conv.x_mult[p];
                for (int k = 0; k < SIDE; k++)
                  for (int i = 0; i < SIDE; i++) sums[k][i] += times * counts[k][i];
              }
            for (int k = 0; k < SIDE && o + k < last; k++)
              for (int i = 0; i < SIDE; i++) values[i * conv.o + o + k] = sums[k][i];
          }
        }
      });
}

// sums[output][pixel] over `row` products; `step` adds 8 or 16 of them to each
template <int STEP, class Value, class Step>
inline void products(const Value* const w[SIDE], const Value* const x[SIDE], int64_t row, const Step& step, int32_t sums[SIDE][SIDE]) {
  int32x4_t parts[SIDE][SIDE];
  for (int o = 0; o < SIDE; o++)
    for (int i = 0; i < SIDE; i++) parts[o][i] = vdupq_n_s32(0);
  int64_t k = 0;
  for (; k + STEP <= row; k += STEP) step(parts, w, x, k);
  for (int o = 0; o < SIDE; o++)
    for (int i = 0; i < SIDE; i++) {
      int32_t sum = vaddvq_s32(parts[o][i]);
      for (int64_t rest = k; rest < row; rest++) sum += (int32_t)w[o][rest] * x[i][rest];
      sums[o][i] = sum;
    }
}

template <int STEP, class Value, class Step, class Sum>
inline void dot_block(const bw_conv& conv, const Value* weights, int64_t row, const void* const patch[SIDE], const Step& step,
                      const Sum& sum, int32_t* values) {
  const int64_t group_outputs = conv.o / conv.groups;
  for (int64_t g = 0; g < conv.groups; g++)
    for (int64_t o = g * group_outputs, last = o + group_outputs; o < last; o += SIDE) {
      const Value *ws[SIDE], *xs[SIDE];
      for (int i = 0; i < SIDE; i++) ws[i] = weights + output_at(o, i, last) * row, xs[i] = (const Value*)patch[i] + g * row;
      int32_t sums[SIDE][SIDE];
      products<STEP>(ws, xs, row, step, sums);
      for (int k = 0; k < SIDE && o + k < last; k++)
        for (int i = 0; i < SIDE; i++) values[i * conv.o + o + k] = sum(sums[k][i], o + k);
    }
}

int neon_conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body, const bw_sink& output, int threads) {
  if (layout != BW_LAYOUT_GENERIC_BYTES) return table_conv_bytes(conv, x, layout, body, output, threads);
  const int64_t row = conv.kh * conv.kw * (conv.c / conv.groups);
  const auto step = [](int32x4_t parts[SIDE][SIDE], const int16_t* const w[SIDE], const int16_t* const x[SIDE], int64_t k) {
    int16x8_t ws[SIDE], xs[SIDE];
    for (int i = 0; i < SIDE; i++) ws[i] = vld1q_s16(w[i] + k), xs[i] = vld1q_s16(x[i] + k);
    for (int o = 0; o < SIDE; o++)
      for (int i = 0; i < SIDE; i++) {
        parts[o][i] = vmlal_s16(parts[o][i], vget_low_s16(ws[o]), vget_low_s16(xs[i]));
        parts[o][i] = vmlal_high_s16(parts[o][i], ws[o], xs[i]);
      }
  };
  return neon_conv(
      conv, output, threads, conv.groups * row * 2,
      [&](const Pixel& at, void* patch) { gather_bytes(conv, x, at, (int16_t*)patch); },
      [&](const void* const patch[SIDE], int32_t* values) {
        dot_block<8>(conv, (const int16_t*)body, row, patch, step, [](int32_t sum, int64_t) { return sum; }, values);
      });
}

}  // namespace
