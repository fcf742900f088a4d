// The C entry points of training: check the arguments, then call the active table.
#include "kernels.h"

namespace {

#define BW_REQUIRE(condition, ...) \
  if (!(condition)) return bw_fail(BW_BAD_ARGUMENT, __VA_ARGS__)

int check(int64_t n, int dtype, int threads, bool pointers) {
  BW_REQUIRE(n >= 0 && n < (int64_t)1 << 47, "n = %lld is not a size", (long long)n);
  BW_REQUIRE(dtype == BW_FLOAT32_TYPE || dtype == BW_BFLOAT16_TYPE, "unknown dtype %d", dtype);
  BW_REQUIRE(threads >= 1, "threads must be positive, got %d", threads);
  BW_REQUIRE(pointers || n == 0, "a tensor is null");
  return BW_OK;
}

// n of a tensor of two or three sizes, -1 where it would not fit
int64_t product(int64_t a, int64_t b, int64_t c = 1) {
  const int64_t limit = (int64_t)1 << 47;
  if (a < 0 || b < 0 || c < 0) return -1;
  if (a == 0 || b == 0 || c == 0) return 0;
  return a < limit && b < limit / a && c < limit / (a * b) ? a * b * c : -1;
}

}  // namespace

#define BW_TRAIN(n, pointers)                                                 \
  if (int error = check(n, dtype, threads, pointers)) return error;           \
  const bw_kernel_table* active = bw_active_table();                          \
  if (!active) return BW_BAD_ISA;                                             \
  const bw_train_table& table = *active->train();                             \
  const bw_dtype type = (bw_dtype)dtype

extern "C" {

int bw_sign_forward(const void* x, void* y, uint64_t* mask, int64_t n, int dtype, int open, int threads) {
  BW_TRAIN(n, x && y);
  if (n) table.sign_forward(type, x, y, mask, n, open != 0, threads);
  return BW_OK;
}

int bw_step_forward(const void* x, void* y, int64_t n, float threshold, float on, float off, int dtype, int threads) {
  BW_TRAIN(n, x && y);
  if (n) table.step_forward(type, x, y, n, threshold, on, off, threads);
  return BW_OK;
}

int bw_mask_backward(const void* g, const uint64_t* mask, void* dx, int64_t n, int dtype, int threads) {
  BW_TRAIN(n, g && mask && dx);
  if (n) table.mask_backward(type, g, mask, dx, n, threads);
  return BW_OK;
}

int bw_approx_backward(const void* g, const void* x, void* dx, int64_t n, int dtype, int threads) {
  BW_TRAIN(n, g && x && dx);
  if (n) table.approx_backward(type, g, x, dx, n, threads);
  return BW_OK;
}

int bw_clip_forward(const void* x, void* y, uint64_t* inside, uint64_t* above, int64_t n, const float* high,
                    int64_t levels, int dtype, int threads) {
  BW_TRAIN(n, x && y && high);
  BW_REQUIRE(levels >= 1 && levels < 1 << 23, "levels must be positive, got %lld", (long long)levels);
  if (n) table.clip_forward(type, x, y, inside, above, n, *high, (float)levels / *high, *high / (float)levels, threads);
  return BW_OK;
}

int bw_odd_forward(const void* x, void* y, uint64_t* inside, int64_t n, int64_t top, int dtype, int threads) {
  BW_TRAIN(n, x && y);
  BW_REQUIRE(top >= 1 && top < 1 << 23, "top must be positive, got %lld", (long long)top);
  if (n) table.odd_forward(type, x, y, inside, n, (float)top, threads);
  return BW_OK;
}

int bw_clip_backward(const void* g, const uint64_t* inside, const uint64_t* above, void* dx, float* dhigh, int64_t n,
                     int dtype, int threads) {
  BW_TRAIN(n, g && (inside || !dx) && (above || !dhigh));
  if (dhigh) *dhigh = 0;
  if (n == 0) return BW_OK;
  if (dx) table.mask_backward(type, g, inside, dx, n, threads);
  if (!dhigh) return BW_OK;
  const int64_t tasks = table.lsq_partials(1, 1, n);
  double* partial = (double*)bw_scratch(BW_SCRATCH_SUMS, (size_t)tasks * sizeof(double));
  if (!partial) return bw_fail(BW_NO_MEMORY, "out of memory for partial sums");
  table.masked_sums(type, g, above, partial, n, threads);
  double total = 0;
  for (int64_t i = 0; i < tasks; i++) total += partial[i];
  *dhigh = (float)total;
  return BW_OK;
}

int bw_lsq_forward(const void* x, const float* steps, void* y, int64_t outer, int64_t channels, int64_t inner, float low,
                   float high, int dtype, int threads) {
  const int64_t n = product(outer, channels, inner);
  BW_REQUIRE(low > -8388608.0f && high < 8388608.0f, "low and high must be below 2^23");
  BW_TRAIN(n, x && steps && y);
  if (n) table.lsq_forward(type, x, steps, y, outer, channels, inner, low, high, threads);
  return BW_OK;
}

int bw_lsq_backward(const void* g, const void* x, const float* steps, void* dx, float* dsteps, int64_t outer,
                    int64_t channels, int64_t inner, float low, float high, float factor, int dtype, int threads) {
  const int64_t n = product(outer, channels, inner);
  BW_REQUIRE(low > -8388608.0f && high < 8388608.0f, "low and high must be below 2^23");
  BW_TRAIN(n, g && x && steps && dx);
  BW_REQUIRE(dsteps || channels == 0, "dsteps is null");
  if (n == 0) {
    for (int64_t c = 0; c < channels; c++) dsteps[c] = 0;
    return BW_OK;
  }
  const int64_t partials = table.lsq_partials(outer, channels, inner);
  double* partial = (double*)bw_scratch(BW_SCRATCH_SUMS, (size_t)(partials + channels) * sizeof(double));
  if (!partial) return bw_fail(BW_NO_MEMORY, "out of memory for partial sums");
  table.lsq_backward(type, g, x, steps, dx, partial, outer, channels, inner, low, high, threads);
  // partial sums are [...][channels][pieces of a run]
  const int64_t pieces = inner == 1 && channels > 1 ? 1 : partials / (outer * channels);
  double* total = partial + partials;
  for (int64_t c = 0; c < channels; c++) total[c] = 0;
  for (int64_t i = 0; i < partials; i++) total[i / pieces % channels] += partial[i];
  for (int64_t c = 0; c < channels; c++) dsteps[c] = factor * (float)total[c];
  return BW_OK;
}

int bw_binary_forward(const void* w, void* y, float* scales, uint64_t* bits, int64_t filters, int64_t count,
                      int one_scale, int dtype, int threads) {
  const int64_t n = product(filters, count);
  BW_TRAIN(n, w && y && scales);
  if (n) table.binary_forward(type, w, y, scales, bits, filters, count, one_scale != 0, threads);
  return BW_OK;
}

int bw_binary_backward(const void* g, const float* scales, const uint64_t* bits, void* dw, int64_t filters,
                       int64_t count, int exact, int one_scale, int dtype, int threads) {
  const int64_t n = product(filters, count);
  BW_TRAIN(n, g && scales && bits && dw);
  if (n) table.binary_backward(type, g, scales, bits, dw, filters, count, exact != 0, one_scale != 0, threads);
  return BW_OK;
}

int bw_dorefa_forward(const float* t, void* y, float* peak, int64_t n, int64_t top, int dtype, int threads) {
  BW_TRAIN(n, t && y && peak);
  BW_REQUIRE(top >= 1 && top < 1 << 23, "top must be positive, got %lld", (long long)top);
  if (n) table.dorefa_forward(type, t, y, peak, n, (float)top, threads);
  return BW_OK;
}

int bw_dorefa_backward(const void* g, const float* t, const float* peak, void* dw, int64_t n, int dtype, int threads) {
  BW_TRAIN(n, g && t && peak && dw);
  if (n) table.dorefa_backward(type, g, t, *peak, dw, n, threads);
  return BW_OK;
}

}  // extern "C"
