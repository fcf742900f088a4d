// Generic kernels, shared by every unit: the same source is compiled once per instruction set (portable.cpp,
// avx2.cpp, avx512.cpp) and the compiler vectorises it with that unit's flags. Everything is in an anonymous
// namespace, so no copy can be mistaken for another.
//
// This file: from integers or codes of one pixel to the tensor the caller asked for.
#pragma once
#include <string.h>

#include "kernels.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the packed layouts assume a little-endian machine"
#endif

namespace {

// The codes of one pixel [channels] -> [planes][words]. Eight bytes at a time: the multiplication moves bit 0
// of byte i to bit 56 + i (8i + (56 - 7i)), and no two of its partial products meet.
inline void codes_to_words(const uint8_t* codes, int64_t channels, int64_t groups, int64_t planes, uint32_t* out) {
  const int64_t group_channels = channels / groups, group_words = bw_ceil_div(group_channels, 32);
  for (int64_t p = 0; p < planes; p++)
    for (int64_t g = 0; g < groups; g++)
      for (int64_t word = 0; word < group_words; word++) {
        const int64_t first = g * group_channels + word * 32;
        const int64_t left = group_channels - word * 32 < 32 ? group_channels - word * 32 : 32;
        uint32_t bits = 0;
        for (int64_t i = 0; i < left; i += 8) {
          uint64_t eight = 0;
          memcpy(&eight, codes + first + i, left - i < 8 ? (size_t)(left - i) : 8);
          eight = (eight >> p & 0x0101010101010101u) * 0x0102040810204080u >> 56;
          bits |= (uint32_t)eight << i;
        }
        out[(p * groups + g) * group_words + word] = bits;
      }
}

inline void words_to_codes(const uint32_t* words, int64_t channels, int64_t groups, int64_t planes, uint8_t* codes) {
  const int64_t group_channels = channels / groups, group_words = bw_ceil_div(group_channels, 32);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t c = 0; c < group_channels; c++) {
      unsigned code = 0;
      for (int64_t p = 0; p < planes; p++)
        code |= (words[(p * groups + g) * group_words + c / 32] >> (c % 32) & 1) << p;
      codes[g * group_channels + c] = (uint8_t)code;
    }
}

// Number of thresholds of channel c that `value` reaches; stride 0 shares one ladder. Ascending, so a bisection
// is right, and a NaN (no comparison holds) ends at 0.
template <class T>
inline uint8_t count_levels(T value, const T* thresholds, int64_t levels, int64_t stride) {
  int64_t low = 0, high = levels;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (value >= thresholds[middle * stride]) low = middle + 1;
    else high = middle;
  }
  return (uint8_t)low;
}

// thresholds [levels][count]: few levels are faster counted straight through, which vectorises over channels.
inline void count_levels_row(const int32_t* values, int64_t count, const int32_t* thresholds, int64_t levels,
                             const uint8_t* flip, uint8_t* codes) {
  if (levels <= 15) {
    for (int64_t i = 0; i < count; i++) codes[i] = 0;
    for (int64_t l = 0; l < levels; l++)
      for (int64_t i = 0; i < count; i++) codes[i] = (uint8_t)(codes[i] + (values[i] >= thresholds[l * count + i]));
  } else {
    for (int64_t i = 0; i < count; i++) codes[i] = count_levels(values[i], thresholds + i, levels, count);
  }
  if (flip)
    for (int64_t i = 0; i < count; i++) codes[i] = flip[i] ? (uint8_t)(levels - codes[i]) : codes[i];
}

// Codes by an even ladder. Adding and taking away 1.5 * 2^23 rounds to the even neighbour, and what is clamped is small.
inline void grid_codes(const bw_grid& grid, const float* y, int64_t count, uint8_t* __restrict codes) {
  const int32_t first = grid.low, last = grid.high, base = grid.base;
  const float value = grid.value, low = (float)(first - base), high = (float)(last - base), magic = 12582912.0f;
  const auto code = [&](float number, float place) {
    place = place > low ? place : low;
    place = place < high ? place : high;
    return number == number ? (uint8_t)((int32_t)((place + magic) - magic) + base) : (uint8_t)0;
  };
  if (grid.kind == BW_GRID_STEP)
    for (int64_t i = 0; i < count; i++) codes[i] = (uint8_t)(y[i] >= value ? last : y[i] == y[i] ? first : 0);
  else if (grid.kind == BW_GRID_DIVIDE)
    for (int64_t i = 0; i < count; i++) codes[i] = code(y[i], y[i] / value);
  else
    for (int64_t i = 0; i < count; i++) codes[i] = code(y[i], y[i] * value);
}

// The codes beside the floats y of a pixel.
inline void emit_beside(const bw_sink& output, int64_t channels, int64_t pixel, const float* y, uint8_t* codes) {
  if (output.extra && output.grid) {
    grid_codes(*output.grid, y, channels, (uint8_t*)output.extra + pixel * channels);
  } else if (output.extra && output.levels > 1) {
    for (int64_t i = 0; i < channels; i++) codes[i] = count_levels(y[i], output.cuts + i, output.levels, channels);
    const int64_t words = bw_words(channels, 1) * output.out_planes;
    codes_to_words(codes, channels, 1, output.out_planes, (uint32_t*)output.extra + pixel * words);
  } else if (output.extra) {
    uint8_t* __restrict bits = output.extra_bytes ? (uint8_t*)output.extra + pixel * channels : codes;
    if (const float* cuts = output.cuts)
      for (int64_t i = 0; i < channels; i++) bits[i] = y[i] >= cuts[i];
    else
      for (int64_t i = 0; i < channels; i++) bits[i] = y[i] >= 0.0f;
    if (output.flip)
      for (int64_t i = 0; i < channels; i++) bits[i] ^= output.flip[i] != 0;
    if (!output.extra_bytes)
      codes_to_words(codes, channels, 1, 1, (uint32_t*)output.extra + pixel * bw_words(channels, 1));
  }
}

// Write pixel number `pixel` (over n, oy, ox) whose integers are `values` [channels]; `codes` is work space.
inline void emit_pixel(const bw_sink& output, int64_t channels, int64_t pixel, const int32_t* values,
                       uint8_t* codes) {
  if (output.mode == BW_INT32) {
    memcpy((int32_t*)output.out + pixel * channels, values, (size_t)channels * 4);
  } else if (output.mode == BW_FLOAT32) {
    float* y = (float*)output.out + pixel * channels;
    for (int64_t i = 0; i < channels; i++) y[i] = (float)values[i] * output.scale[i] + output.add[i];
    if (output.residual)
      for (int64_t i = 0; i < channels; i++) y[i] += output.residual[pixel * channels + i];
    if (output.relu)
      for (int64_t i = 0; i < channels; i++) y[i] = y[i] < 0.0f ? 0.0f : y[i];  // NaN stays
    emit_beside(output, channels, pixel, y, codes);
  } else if (output.mode == BW_WORDS) {
    count_levels_row(values, channels, output.thresholds, output.levels, output.flip, codes);
    const int64_t words = bw_words(channels, output.out_groups) * output.out_planes;
    codes_to_words(codes, channels, output.out_groups, output.out_planes, (uint32_t*)output.out + pixel * words);
  } else if (output.grid) {
    uint8_t* to = (uint8_t*)output.out + pixel * channels;
    for (int64_t i = 0; i < channels; i += 64) {
      const int64_t count = channels - i < 64 ? channels - i : 64;
      float y[64];
      for (int64_t j = 0; j < count; j++) y[j] = (float)values[i + j] * output.scale[i + j] + output.add[i + j];
      grid_codes(*output.grid, y, count, to + i);
    }
  } else {
    count_levels_row(values, channels, output.thresholds, output.levels, output.flip,
                     (uint8_t*)output.out + pixel * channels);
  }
}

}  // namespace
