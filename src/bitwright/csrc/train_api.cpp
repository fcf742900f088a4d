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

// What the kernels of a gate work with: room for partial sums and their totals, values per channel repeated.
struct GateRoom {
  double* partial;
  double* total;  // [2][channels]
  float* values;
  const bw_gate_shape& shape;

  GateRoom(const bw_gate_shape& s, bool sums) : shape(s) {
    const size_t doubles = (size_t)(sums ? (s.tasks() * s.lanes() + s.channels) * 2 : 0);
    partial = (double*)bw_scratch(BW_SCRATCH_SUMS, doubles * sizeof(double) + (size_t)(5 * s.spread()) * sizeof(float));
    total = partial + (sums ? s.tasks() * s.lanes() * 2 : 0);
    values = (float*)(partial + doubles);
  }
  // the `slot`-th of the repeated values: of each channel, or the same for all
  const float* repeated(int slot, const float* each, float all = 0) const {
    float* to = values + slot * shape.spread();
    for (int64_t i = 0; i < shape.spread(); i++) to[i] = each ? each[shape.channel(i)] : all;
    return to;
  }
  void add_up() const {
    const int64_t lanes = shape.lanes(), tasks = shape.tasks(), channels = shape.channels;
    for (int64_t i = 0; i < 2 * channels; i++) total[i] = 0;
    for (int64_t task = 0; task < tasks; task++)
      for (int64_t kind = 0; kind < 2; kind++)
        for (int64_t i = 0; i < lanes; i++)
          total[kind * channels + (shape.rows() ? i % channels : task)] += partial[(task * 2 + kind) * lanes + i];
  }
};

}  // namespace

#define BW_GATE(pointers)                                                         \
  const int64_t n = product(outer, channels, inner);                              \
  BW_REQUIRE(!halves || channels % 2 == 0, "halves need an even number of channels"); \
  BW_TRAIN(n, pointers);                                                          \
  const bw_gate_shape shape{outer, channels, inner, halves != 0}
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

int bw_gate_moments(const void* base, double* sums, int64_t outer, int64_t channels, int64_t inner, int halves, int dtype,
                    int threads) {
  BW_GATE(base && sums);
  if (n == 0) {
    for (int64_t i = 0; sums && i < 2 * channels; i++) sums[i] = 0;
    return BW_OK;
  }
  const GateRoom room(shape, true);
  if (!room.partial) return bw_fail(BW_NO_MEMORY, "out of memory for partial sums");
  table.gate_moments(type, base, shape, room.partial, threads);
  room.add_up();
  for (int64_t i = 0; i < 2 * channels; i++) sums[i] = room.total[i];
  return BW_OK;
}

int bw_gate_forward(const void* base, const void* rest, const float* mean, const float* rate, const float* threshold, void* y,
                    float* on, int64_t outer, int64_t channels, int64_t inner, int halves, int dtype, int threads) {
  BW_GATE(base && rest && threshold && y && !mean == !rate);
  if (n == 0) return BW_OK;
  const GateRoom room(shape, false);
  if (!room.partial) return bw_fail(BW_NO_MEMORY, "out of memory for values per channel");
  const bw_gate_values values{room.repeated(0, mean), room.repeated(1, rate, 1), room.repeated(2, threshold), nullptr, nullptr};
  table.gate_forward(type, base, rest, shape, values, y, on, threads);
  return BW_OK;
}

int bw_gate_backward(const void* g, const float* g_on, const void* base, const void* rest, const float* mean,
                     const float* rate, const float* threshold, void* dbase, void* drest, float* dthreshold, int64_t outer,
                     int64_t channels, int64_t inner, int halves, float slope, int sparse, int dtype, int threads) {
  BW_GATE(g && base && rest && threshold && dbase && drest && dthreshold && !mean == !rate);
  for (int64_t c = 0; dthreshold && c < channels; c++) dthreshold[c] = 0;
  if (n == 0) return BW_OK;
  const GateRoom room(shape, true);
  if (!room.partial) return bw_fail(BW_NO_MEMORY, "out of memory for partial sums");
  bw_gate_values values{room.repeated(0, mean), room.repeated(1, rate, 1), room.repeated(2, threshold), nullptr, nullptr};
  const bw_gate_grads grads{g, g_on, dbase, drest, slope, sparse != 0, mean != nullptr};
  table.gate_backward(type, grads, base, rest, shape, values, room.partial, threads);
  room.add_up();
  if (mean) {  // what a value of base moves through mean and rate
    const double each = 1.0 / (double)(outer * inner);
    float* means = (float*)room.partial;  // free again
    for (int64_t i = 0; i < 2 * channels; i++) means[i] = (float)(room.total[i] * each);
    values.mean_dv = room.repeated(3, means);
    values.mean_dvz = room.repeated(4, means + channels);
    table.gate_normalized(type, g, base, shape, values, dbase, threads);
  }
  for (int64_t c = 0; c < channels; c++) dthreshold[c] = (float)-room.total[c];
  return BW_OK;
}

int bw_split_forward(const void* x, void* high, void* low, int64_t n, const float* unit, float one, int dtype, int threads) {
  BW_TRAIN(n, x && high && low && unit);
  BW_REQUIRE(one >= 1.0f && one <= 32768.0f, "one must be a power of two, got %g", one);
  if (n) table.split_forward(type, x, high, low, n, *unit, one, threads);
  return BW_OK;
}

}  // extern "C"
