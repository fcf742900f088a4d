// Which of its three ways a float convolution takes; the weights are packed for it.
#pragma once
#include "floats_phases.h"

namespace {

inline int conv_floats(const bw_floats& given, const float* x, const void* weights, float* out, const float* residual, int threads) {
  bw_floats f = given;
  if (f.kh == 1 && f.kw == 1 && f.stride_h == 1 && f.stride_w == 1 && !f.pad_h && !f.pad_w && !f.nchw)  // pixels in one row
    f.w *= f.h, f.ow = f.w, f.h = f.oh = 1;
  if (f.h == 1 && f.w == 1 && f.kh == 1 && f.kw == 1 && f.stride_w == 1 && !f.pad_h && !f.pad_w)  // so are images of one pixel
    f.w = f.ow = f.n, f.n = 1, f.nchw = 0;
  const float *add = (const float*)weights, *body = add + bw_panels(f.o) * 16;
  const bool done = bw_floats_winograd(f) ? float_winograd(f, x, FloatWhole{f, add, body, out, residual, 0}, threads)
                    : bw_floats_phases(f) ? float_phases(f, x, add, body, out, residual, threads)
                                          : float_direct(f, x, add, body, out, residual, threads);
  return done ? BW_OK : bw_fail(BW_NO_MEMORY, "no memory for the image of a float convolution");
}

}  // namespace
