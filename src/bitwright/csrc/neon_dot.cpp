// ARM CPUs with the dot product of four int8 (ARMv8.2 with "asimddp", all of v8.4): byte weights of -128..127 as int8.
// A code x is used as x - 128, also where the patch lies outside the image, and 128 times the weight's sum is added back.
#include "neon.h"

namespace {

// Layout: int8 [o][row], a row being the products of a group, filled up with zeros to a multiple of 16; then int32 [o] sums.
inline int64_t dot_row(const bw_conv& conv) { return (conv.kh * conv.kw * (conv.c / conv.groups) + 15) / 16 * 16; }
inline int64_t dot_size(const bw_conv& conv) { return conv.o * dot_row(conv) + conv.o * 4; }

int32_t dot_layout(const bw_conv& conv, const int16_t* values) {
  const int64_t count = conv.o * conv.kh * conv.kw * (conv.c / conv.groups);
  for (int64_t i = 0; i < count; i++)
    if (values[i] < -128 || values[i] > 127) return BW_LAYOUT_GENERIC_BYTES;
  return BW_LAYOUT_DOT_BYTES;
}

int64_t size_of_either(const bw_conv& conv) {
  const int64_t wide = generic_bytes_size(conv), narrow = dot_size(conv);
  return wide > narrow ? wide : narrow;
}

void dot_weights(const bw_conv& conv, const int16_t* values, int32_t layout, void* body) {
  if (layout != BW_LAYOUT_DOT_BYTES) return table_bytes_weights(conv, values, layout, body);
  const int64_t count = conv.kh * conv.kw * (conv.c / conv.groups), row = dot_row(conv);
  int8_t* weights = (int8_t*)body;
  memset(body, 0, (size_t)(conv.o * row));
  for (int64_t o = 0; o < conv.o; o++) {
    int32_t sum = 0;
    for (int64_t k = 0; k < count; k++) {
      weights[o * row + k] = (int8_t)values[o * count + k];
      sum += values[o * count + k];
    }
    memcpy(weights + conv.o * row + o * 4, &sum, 4);
  }
}

void gather_less_128(const bw_conv& conv, const uint8_t* x, const Pixel& at, int8_t* patch) {
  memset(patch, -128, (size_t)(conv.groups * dot_row(conv)));
  gather_codes(conv, x, at, dot_row(conv), patch, [](uint8_t code) { return (int8_t)(code ^ 0x80); });
}

int dot_conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body, const bw_sink& output, int threads) {
  if (layout != BW_LAYOUT_DOT_BYTES) return neon_conv_bytes(conv, x, layout, body, output, threads);
  const int64_t row = dot_row(conv);
  const uint8_t* sums = (const uint8_t*)body + conv.o * row;
  const auto step = [](int32x4_t parts[SIDE][SIDE], const int8_t* const w[SIDE], const int8_t* const x[SIDE], int64_t k) {
    int8x16_t ws[SIDE], xs[SIDE];
    for (int i = 0; i < SIDE; i++) ws[i] = vld1q_s8(w[i] + k), xs[i] = vld1q_s8(x[i] + k);
    for (int o = 0; o < SIDE; o++)
      for (int i = 0; i < SIDE; i++) parts[o][i] = vdotq_s32(parts[o][i], ws[o], xs[i]);
  };
  return neon_conv(
      conv, output, threads, conv.groups * row,
      [&](const Pixel& at, void* patch) { gather_less_128(conv, x, at, (int8_t*)patch); },
      [&](const void* const patch[SIDE], int32_t* values) {
        dot_block<16>(conv, (const int8_t*)body, row, patch, step, [&](int32_t sum, int64_t o) {
          int32_t of_weights;
          memcpy(&of_weights, sums + o * 4, 4);
          return sum + 128 * of_weights;
        }, values);
      });
}

}  // namespace

BW_GENERIC_TABLE(bw_table_neon_dot_base, "neon_dot", bw_cpu_has_dot);

extern const bw_kernel_table bw_table_neon_dot = [] {
  bw_kernel_table table = bw_table_neon_dot_base;
  table.conv_bits = neon_conv_bits;
  table.bytes_layout = dot_layout;
  table.bytes_size = size_of_either;
  table.bytes_weights = dot_weights;
  table.conv_bytes = dot_conv_bytes;
  return table;
}();
