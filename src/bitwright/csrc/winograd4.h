// Winograd's F(4x4, 3x3) in integers, exact: what the instruction sets share.
//
//   V = B' d B of each 6x6 patch d of codes up to 255: within +-68 * 255, 16 bits;
//   U = H g H', H g = (6 g0, -(g0 + g1 + g2), -(g0 - g1 + g2), g0 + 2 g1 + 4 g2, g0 - 2 g1 + 4 g2, 6 g2): within 49 * 255, 16 bits;
//   M = sum_c U V, y = A' M A with rows 24 y0 = m0 + 4 (m1 + m2) + (m3 + m4), 12 y1 = 2 (m1 - m2) + (m3 - m4),
//   6 y2 = (m1 + m2) + (m3 + m4), 6 y3 = (m1 - m2) + 2 (m3 - m4) + m5.
//
// All of it modulo 2^32: sums may wrap. What comes out is 9 * 2^k * I with k <= 6; 9 has an inverse modulo 2^32, and I itself is
// left after k shifts to the right, because layers whose |I| could reach 2^25 stay with the direct kernel.
#pragma once
#include "kernels.h"

namespace {

inline bool winograd4_exact(const bw_conv& conv, const int16_t* values) {  // weights [o][9][c]
  for (int64_t o = 0; o < conv.o; o++) {
    int64_t above = 0, below = 0;
    for (int64_t i = 0; i < 9 * conv.c; i++) {
      const int64_t value = values[o * 9 * conv.c + i];
      (value > 0 ? above : below) += value;
    }
    if (above * 255 >= 1 << 25 || below * -255 >= 1 << 25) return false;
  }
  return true;
}

inline void winograd4_row(const int* g, int64_t step, int* to) {
  const int a = g[0], b = g[step], c = g[2 * step];
  to[0] = 6 * a, to[1] = -(a + b + c), to[2] = -(a - b + c), to[3] = a + 2 * b + 4 * c, to[4] = a - 2 * b + 4 * c, to[5] = 6 * c;
}

// U [6][6] of one filter, whose nine weights lie `step` apart.
inline void winograd4_filter(const int16_t* values, int64_t step, int16_t* to) {
  int g[9], down[18], u[6];
  for (int i = 0; i < 9; i++) g[i] = values[i * step];
  for (int i = 0; i < 3; i++) {
    winograd4_row(g + i, 3, u);
    for (int k = 0; k < 6; k++) down[k * 3 + i] = u[k];
  }
  for (int k = 0; k < 6; k++) {
    winograd4_row(down + k * 3, 1, u);
    for (int i = 0; i < 6; i++) to[k * 6 + i] = (int16_t)u[i];
  }
}

}  // namespace
