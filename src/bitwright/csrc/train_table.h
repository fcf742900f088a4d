// The training kernels of one unit: a choice of the element type, then the template.
#pragma once
#include <type_traits>

#include "train_gates.h"
#include "train_inputs.h"
#include "train_weights.h"

namespace {

// call(float*) or call(bfloat16*): the pointer carries only the type
template <class Call>
inline void for_type(bw_dtype dtype, const Call& call) {
  if (dtype == BW_BFLOAT16_TYPE) call((bfloat16*)nullptr);
  else call((float*)nullptr);
}

void train_sign_forward(bw_dtype dtype, const void* x, void* y, uint64_t* mask, int64_t n, bool open, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; sign_forward((const E*)x, (E*)y, mask, n, open, threads); });
}
void train_step_forward(bw_dtype dtype, const void* x, void* y, int64_t n, float threshold, float on, float off, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; step_forward((const E*)x, (E*)y, n, threshold, on, off, threads); });
}
void train_mask_backward(bw_dtype dtype, const void* g, const uint64_t* mask, void* dx, int64_t n, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; mask_backward((const E*)g, mask, (E*)dx, n, threads); });
}
void train_approx_backward(bw_dtype dtype, const void* g, const void* x, void* dx, int64_t n, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; approx_backward((const E*)g, (const E*)x, (E*)dx, n, threads); });
}
void train_clip_forward(bw_dtype dtype, const void* x, void* y, uint64_t* inside, uint64_t* above, int64_t n, float high,
                        float up, float down, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    clip_forward((const E*)x, (E*)y, inside, above, n, high, up, down, threads);
  });
}
void train_odd_forward(bw_dtype dtype, const void* x, void* y, uint64_t* inside, int64_t n, float top, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; odd_forward((const E*)x, (E*)y, inside, n, top, threads); });
}
void train_masked_sums(bw_dtype dtype, const void* g, const uint64_t* mask, double* partial, int64_t n, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; masked_sums((const E*)g, mask, partial, n, threads); });
}
int64_t train_lsq_partials(int64_t outer, int64_t channels, int64_t inner) { return Runs{outer, channels, inner}.partials(); }
void train_lsq_forward(bw_dtype dtype, const void* x, const float* steps, void* y, int64_t outer, int64_t channels,
                       int64_t inner, float low, float high, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    lsq_forward((const E*)x, steps, (E*)y, Runs{outer, channels, inner}, low, high, threads);
  });
}
void train_lsq_backward(bw_dtype dtype, const void* g, const void* x, const float* steps, void* dx, double* partial,
                        int64_t outer, int64_t channels, int64_t inner, float low, float high, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    lsq_backward((const E*)g, (const E*)x, steps, (E*)dx, partial, Runs{outer, channels, inner}, low, high, threads);
  });
}
void train_binary_forward(bw_dtype dtype, const void* w, void* y, float* scales, uint64_t* bits, int64_t filters,
                          int64_t count, bool one_scale, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    binary_forward((const E*)w, (E*)y, scales, bits, filters, count, one_scale, threads);
  });
}
void train_binary_backward(bw_dtype dtype, const void* g, const float* scales, const uint64_t* bits, void* dw,
                           int64_t filters, int64_t count, bool exact, bool one_scale, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    binary_backward((const E*)g, scales, bits, (E*)dw, filters, count, exact, one_scale, threads);
  });
}
void train_dorefa_forward(bw_dtype dtype, const float* t, void* y, float* peak, int64_t n, float top, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; dorefa_forward(t, (E*)y, peak, n, top, threads); });
}
void train_dorefa_backward(bw_dtype dtype, const void* g, const float* t, float peak, void* dw, int64_t n, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; dorefa_backward((const E*)g, t, peak, (E*)dw, n, threads); });
}
void train_gate_moments(bw_dtype dtype, const void* base, const bw_gate_shape& shape, double* partial, int threads) {
  for_type(dtype, [&](auto* e) { using E = std::remove_pointer_t<decltype(e)>; gate_moments((const E*)base, shape, partial, threads); });
}
void train_gate_forward(bw_dtype dtype, const void* base, const void* rest, const bw_gate_shape& shape,
                        const bw_gate_values& values, void* y, float* on, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    gate_forward((const E*)base, (const E*)rest, shape, values, (E*)y, on, threads);
  });
}
void train_gate_backward(bw_dtype dtype, const bw_gate_grads& grads, const void* base, const void* rest,
                         const bw_gate_shape& shape, const bw_gate_values& values, double* partial, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    gate_backward(grads, (const E*)base, (const E*)rest, shape, values, partial, threads);
  });
}
void train_gate_normalized(bw_dtype dtype, const void* g, const void* base, const bw_gate_shape& shape,
                           const bw_gate_values& values, void* to_base, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    gate_normalized((const E*)g, (const E*)base, shape, values, (E*)to_base, threads);
  });
}
void train_split_forward(bw_dtype dtype, const void* x, void* high, void* low, int64_t n, float unit, float one, int threads) {
  for_type(dtype, [&](auto* e) {
    using E = std::remove_pointer_t<decltype(e)>;
    split_forward((const E*)x, (E*)high, (E*)low, n, unit, one, threads);
  });
}

// A function, not a pointer: the table of one unit may stand in for another before it is initialized.
const bw_train_table* train_table() {
  static const bw_train_table table = {
      train_sign_forward,  train_step_forward, train_mask_backward,  train_approx_backward, train_clip_forward,
      train_odd_forward,   train_masked_sums,   train_lsq_partials,   train_lsq_forward,     train_lsq_backward,
      train_binary_forward, train_binary_backward, train_dorefa_forward, train_dorefa_backward,
      train_gate_moments,  train_gate_forward, train_gate_backward, train_gate_normalized,
      train_split_forward,
  };
  return &table;
}

}  // namespace
