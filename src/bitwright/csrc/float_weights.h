// The weights of Winograd's F(2x2, 3x3).
#pragma once
#include "kernels.h"

namespace {

// Sixteen numbers G w G' of the nine of a window, which lie `step` apart; each rounded once.
inline void float_winograd_weights(const float* w, int64_t step, float* to) {
  double down[4][3];
  for (int i = 0; i < 3; i++) {
    const double a = w[i * step], b = w[(3 + i) * step], c = w[(6 + i) * step];
    down[0][i] = a, down[1][i] = (a + b + c) / 2, down[2][i] = (a - b + c) / 2, down[3][i] = c;
  }
  for (int k = 0; k < 4; k++) {
    const double a = down[k][0], b = down[k][1], c = down[k][2];
    const double row[4] = {a, (a + b + c) / 2, (a - b + c) / 2, c};
    for (int i = 0; i < 4; i++) to[k * 4 + i] = (float)row[i];
  }
}

}  // namespace
