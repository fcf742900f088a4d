// Generic convolutions: gather the patch of one pixel (zeros outside the image), then one dot product per output.
// Zero bits under AND, and zero bytes under *, contribute nothing: zero padding needs no special case.
#pragma once
#include "generic_emit.h"
#include "parallel.h"

namespace {

// sum of popcount(a & b) over `count` 64-bit words
inline int64_t and_popcount(const uint64_t* a, const uint64_t* b, int64_t count) {
  int64_t total = 0;
#if defined(__POPCNT__) || defined(__aarch64__)
  for (int64_t i = 0; i < count; i++) total += __builtin_popcountll(a[i] & b[i]);
#else
  // Baseline x86-64 has no popcount and the compiler would call a table look-up. Counting inside bytes
  // vectorises with SSE2; a byte holds 31 words' worth (31 * 8 = 248).
  for (int64_t first = 0; first < count; first += 31) {
    const int64_t last = first + 31 < count ? first + 31 : count;
    uint64_t bytes = 0;
    for (int64_t i = first; i < last; i++) {
      uint64_t v = a[i] & b[i];
      v -= v >> 1 & 0x5555555555555555u;
      v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
      bytes += (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    }
    const uint64_t pairs = (bytes & 0x00ff00ff00ff00ffu) + (bytes >> 8 & 0x00ff00ff00ff00ffu);
    total += (int64_t)(pairs * 0x0001000100010001u >> 48);
  }
#endif
  return total;
}

inline int64_t popcount(const uint64_t* a, int64_t count) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; i++) total += __builtin_popcountll(a[i]);
  return total;
}

struct Pixel {
  int64_t n, oy, ox;
};

inline Pixel pixel_at(const bw_conv& conv, int64_t index) {
  return {index / (conv.oh * conv.ow), index / conv.ow % conv.oh, index % conv.ow};
}

inline const int32_t* corr_of(const bw_conv& conv, const Pixel& at) {
  return conv.corr + (conv.row_class[at.oy] * conv.col_classes + conv.col_class[at.ox]) * conv.o;
}

// ---- bits -------------------------------------------------------------------------------------------------
// Weights: [o][w_planes][row], patch: [groups][x_planes][row]; a row is taps * group_words uint32, padded to an
// even number so that it can be read as uint64.

inline int64_t bits_row(const bw_conv& conv) {  // in uint64
  return bw_ceil_div(conv.kh * conv.kw * bw_ceil_div(conv.c / conv.groups, 32), 2);
}

inline int64_t generic_bits_size(const bw_conv& conv) { return conv.o * conv.w_planes * bits_row(conv) * 8; }

inline void generic_bits_weights(const bw_conv& conv, const uint8_t* bits, void* body) {
  const int64_t channels = conv.c / conv.groups, words = bw_ceil_div(channels, 32), taps = conv.kh * conv.kw;
  memset(body, 0, (size_t)generic_bits_size(conv));
  for (int64_t q = 0; q < conv.w_planes; q++)
    for (int64_t o = 0; o < conv.o; o++) {
      uint32_t* row = (uint32_t*)((uint64_t*)body + (o * conv.w_planes + q) * bits_row(conv));
      for (int64_t c = 0; c < channels; c++)
        for (int64_t tap = 0; tap < taps; tap++)
          if (*bits++) row[tap * words + c / 32] |= 1u << (c % 32);
    }
}

inline void gather_bits(const bw_conv& conv, const uint32_t* x, const Pixel& at, uint64_t* patch) {
  const int64_t words = bw_ceil_div(conv.c / conv.groups, 32), row = bits_row(conv) * 2;
  memset(patch, 0, (size_t)(conv.groups * conv.x_planes * row) * 4);
  for (int64_t ky = 0; ky < conv.kh; ky++) {
    const int64_t iy = at.oy * conv.stride_h - conv.pad_h + ky * conv.dil_h;
    if (iy < 0 || iy >= conv.h) continue;
    for (int64_t kx = 0; kx < conv.kw; kx++) {
      const int64_t ix = at.ox * conv.stride_w - conv.pad_w + kx * conv.dil_w;
      if (ix < 0 || ix >= conv.w) continue;
      const uint32_t* from = x + ((at.n * conv.h + iy) * conv.w + ix) * conv.x_planes * conv.groups * words;
      for (int64_t p = 0; p < conv.x_planes; p++)
        for (int64_t g = 0; g < conv.groups; g++, from += words)
          memcpy((uint32_t*)patch + (g * conv.x_planes + p) * row + (ky * conv.kw + kx) * words, from,
                 (size_t)words * 4);
    }
  }
}

inline void dot_bits(const bw_conv& conv, const uint64_t* weights, const uint64_t* patch, const int32_t* corr,
                     int32_t* values) {
  const int64_t row = bits_row(conv), group_outputs = conv.o / conv.groups;
  for (int64_t g = 0; g < conv.groups; g++) {
    const uint64_t* xs = patch + g * conv.x_planes * row;
    int64_t offset = 0;  // what w_zero adds: the same for every output of the group
    if (conv.w_zero)
      for (int64_t p = 0; p < conv.x_planes; p++) offset += conv.w_zero * conv.x_mult[p] * popcount(xs + p * row, row);
    for (int64_t o = g * group_outputs; o < (g + 1) * group_outputs; o++) {
      int64_t sum = offset + corr[o];
      for (int64_t q = 0; q < conv.w_planes; q++) {
        const uint64_t* w = weights + (o * conv.w_planes + q) * row;
        int64_t plane = 0;
        for (int64_t p = 0; p < conv.x_planes; p++) plane += conv.x_mult[p] * and_popcount(w, xs + p * row, row);
        sum += conv.w_mult[q] * plane;
      }
      values[o] = (int32_t)sum;
    }
  }
}

// ---- bytes ------------------------------------------------------------------------------------------------
// Weights: int16 [o][taps][group channels] as given; patch: int16 [groups][taps][group channels]. A product of
// two int16 summed into int32 is the pattern compilers turn into pmaddwd / vpdpwssd / smlal.

inline int64_t generic_bytes_size(const bw_conv& conv) {
  return conv.o * conv.kh * conv.kw * (conv.c / conv.groups) * 2;
}

// Writes what the window of a pixel covers inside the image: groups of `row` values, read(code) each.
template <class Value, class Read>
inline void gather_codes(const bw_conv& conv, const uint8_t* x, const Pixel& at, int64_t row, Value* patch, const Read& read) {
  const int64_t channels = conv.c / conv.groups;
  for (int64_t ky = 0; ky < conv.kh; ky++) {
    const int64_t iy = at.oy * conv.stride_h - conv.pad_h + ky * conv.dil_h;
    if (iy < 0 || iy >= conv.h) continue;
    for (int64_t kx = 0; kx < conv.kw; kx++) {
      const int64_t ix = at.ox * conv.stride_w - conv.pad_w + kx * conv.dil_w;
      if (ix < 0 || ix >= conv.w) continue;
      const uint8_t* from = x + ((at.n * conv.h + iy) * conv.w + ix) * conv.c;
      for (int64_t g = 0; g < conv.groups; g++)
        for (int64_t c = 0; c < channels; c++)
          patch[g * row + (ky * conv.kw + kx) * channels + c] = read(from[g * channels + c]);
    }
  }
}

inline void gather_bytes(const bw_conv& conv, const uint8_t* x, const Pixel& at, int16_t* patch) {
  const int64_t row = conv.kh * conv.kw * (conv.c / conv.groups);
  memset(patch, 0, (size_t)(conv.groups * row) * 2);
  gather_codes(conv, x, at, row, patch, [](uint8_t code) { return (int16_t)code; });
}

inline void dot_bytes(const bw_conv& conv, const int16_t* weights, const int16_t* patch, const int32_t* corr,
                      int32_t* values) {
  const int64_t row = conv.kh * conv.kw * (conv.c / conv.groups), group_outputs = conv.o / conv.groups;
  for (int64_t g = 0; g < conv.groups; g++) {
    const int16_t* x = patch + g * row;
    const int64_t last = (g + 1) * group_outputs;
    int64_t o = g * group_outputs;
    for (; o + 4 <= last; o += 4) {  // four at a time: one load of x serves four products
      const int16_t* w = weights + o * row;
      int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (int64_t k = 0; k < row; k++) {
        s0 += (int32_t)x[k] * w[k];
        s1 += (int32_t)x[k] * w[row + k];
        s2 += (int32_t)x[k] * w[2 * row + k];
        s3 += (int32_t)x[k] * w[3 * row + k];
      }
      values[o] = s0 + corr[o], values[o + 1] = s1 + corr[o + 1];
      values[o + 2] = s2 + corr[o + 2], values[o + 3] = s3 + corr[o + 3];
    }
    for (; o < last; o++) {
      int32_t sum = 0;
      for (int64_t k = 0; k < row; k++) sum += (int32_t)x[k] * weights[o * row + k];
      values[o] = sum + corr[o];
    }
  }
}

// ---- the loop over pixels, the same for both ---------------------------------------------------------------

template <class Gather, class Dot>
inline int generic_conv(const bw_conv& conv, const bw_sink& output, int threads, int64_t patch_bytes,
                        const Gather& gather, const Dot& dot) {
  const int64_t pixels = conv.n * conv.oh * conv.ow, chunk = items_per_task(threads, pixels, 1, 64);
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(pixels, chunk), [&](int64_t task) {
    void* patch = bw_scratch(BW_SCRATCH_PATCH, (size_t)patch_bytes);
    int32_t* values = (int32_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o * 5);
    if (!patch || !values) {
      __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
      return;
    }
    uint8_t* codes = (uint8_t*)(values + conv.o);
    const int64_t last = (task + 1) * chunk < pixels ? (task + 1) * chunk : pixels;
    for (int64_t pixel = task * chunk; pixel < last; pixel++) {
      const Pixel at = pixel_at(conv, pixel);
      gather(at, patch);
      dot(patch, corr_of(conv, at), values);
      emit_pixel(output, conv.o, pixel, values, codes);
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a convolution patch") : BW_OK;
}

inline int generic_conv_bits(const bw_conv& conv, const uint32_t* x, const void* body, const bw_sink& output,
                             int threads) {
  return generic_conv(
      conv, output, threads, conv.groups * conv.x_planes * bits_row(conv) * 8,
      [&](const Pixel& at, void* patch) { gather_bits(conv, x, at, (uint64_t*)patch); },
      [&](const void* patch, const int32_t* corr, int32_t* values) {
        dot_bits(conv, (const uint64_t*)body, (const uint64_t*)patch, corr, values);
      });
}

inline int generic_conv_bytes(const bw_conv& conv, const uint8_t* x, const void* body, const bw_sink& output,
                              int threads) {
  return generic_conv(
      conv, output, threads, conv.kh * conv.kw * conv.c * 2,
      [&](const Pixel& at, void* patch) { gather_bytes(conv, x, at, (int16_t*)patch); },
      [&](const void* patch, const int32_t* corr, int32_t* values) {
        dot_bytes(conv, (const int16_t*)body, (const int16_t*)patch, corr, values);
      });
}

}  // namespace
