// A list of operations in one call: what a packed net does between two operators of its caller.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "parallel.h"

namespace {

const int64_t KEPT = (int64_t)32 << 20;  // a thread keeps so much scratch memory; what is larger is freed after the call

// The sum of the terms of a weight, each with its own scale: the products are added in order, then `add`.
void sum_of_terms(const bw_terms& t, const int32_t* sums, float* out, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; p++) {
    float* y = out + p * t.o;
    const int32_t* term = sums + p * t.o;
    for (int64_t o = 0; o < t.o; o++) y[o] = (float)term[o] * t.scale[o];
    for (int64_t i = 1; i < t.terms; i++) {
      term += t.pixels * t.o;
      for (int64_t o = 0; o < t.o; o++) y[o] += (float)term[o] * t.scale[i * t.o + o];
    }
    for (int64_t o = 0; o < t.o; o++) y[o] += t.add[o];
  }
}

int terms(const bw_terms* t, const int32_t* sums, float* out, int threads) {
  if (!t || t->pixels < 0 || t->o < 1 || t->terms < 1 || !t->scale || !t->add || !((sums && out) || t->pixels == 0))
    return bw_fail(BW_BAD_ARGUMENT, "terms: a size is below 1 or a table is null");
  const int64_t share = items_per_task(threads, t->pixels, 1, t->pixels);
  for_tasks(threads, bw_ceil_div(t->pixels, share), [&](int64_t task) {
    const int64_t end = (task + 1) * share < t->pixels ? (task + 1) * share : t->pixels;
    sum_of_terms(*t, sums, out, task * share, end);
  });
  return BW_OK;
}

int high_bits(const bw_high_bits* h, const uint8_t* x, uint8_t* out) {
  if (!h || h->count < 0 || h->shift < 0 || h->shift > 7 || !((x && out) || h->count == 0))
    return bw_fail(BW_BAD_ARGUMENT, "high bits: the count is below 0, the shift is not 0..7, or a tensor is null");
  if (h->table)
    for (int64_t i = 0; i < h->count; i++) out[i] = h->table[x[i]];
  else
    for (int64_t i = 0; i < h->count; i++) out[i] = (uint8_t)(x[i] >> h->shift);
  return BW_OK;
}

// Where the values of a run lie.
struct Memory {
  void* const* outside;
  char* scratch;
  void* at(int64_t place) const {
    return place >= 0 ? scratch + place : place == BW_NOWHERE ? nullptr : outside[-1 - place];
  }
};

int run_step(const bw_step& step, const Memory& memory, int threads) {
  if (step.alone) threads = 1;
  const void* x = memory.at(step.x);
  void *out = memory.at(step.out), *extra = memory.at(step.extra);
  const float* residual = (const float*)memory.at(step.residual);
  switch (step.operation) {
    case BW_CONV_BITS:
      return bw_conv_bits((const bw_conv*)step.shape, (const uint32_t*)x, step.weights, step.output, out, residual, extra, threads);
    case BW_CONV_BYTES:
      return bw_conv_bytes((const bw_conv*)step.shape, (const uint8_t*)x, step.weights, step.output, out, residual, extra, threads);
    case BW_PACK_BITS:
      return bw_pack_bits((const bw_pack*)step.shape, (const float*)x, (uint32_t*)out, threads);
    case BW_PACK_BYTES:
      return bw_pack_bytes((const bw_pack*)step.shape, (const float*)x, (uint8_t*)out, threads);
    case BW_MAXPOOL_BITS:
      return bw_maxpool_bits((const bw_pool*)step.shape, (const uint32_t*)x, (uint32_t*)out, threads);
    case BW_MAXPOOL_BYTES:
      return bw_maxpool_bytes((const bw_pool*)step.shape, (const uint8_t*)x, (uint8_t*)out, threads);
    case BW_TERMS:
      return terms((const bw_terms*)step.shape, (const int32_t*)x, (float*)out, threads);
    case BW_CONV_GATED:
      return bw_conv_gated((const bw_gated*)step.shape, (const float*)x, step.weights, (float*)out, residual, (float*)extra, threads);
    case BW_SKIP_FLOATS:
    case BW_SKIP_BYTES:
    case BW_SELECT: {
      const bw_skip_call* call = (const bw_skip_call*)step.shape;
      if (!call) return bw_fail(BW_BAD_ARGUMENT, "a layer that skips has no shape");
      if (step.operation == BW_SKIP_FLOATS)
        return bw_skip_floats(call->conv, call->skip, (const float*)x, step.weights, (float*)out, residual, threads);
      if (step.operation == BW_SELECT)
        return bw_select(call->conv, call->skip, (const int32_t*)x, step.output, out, residual, extra, threads);
      return bw_skip_bytes(call->conv, call->skip, (const uint8_t*)x, step.weights, step.output, out, residual, extra, threads);
    }
    case BW_HIGH_BITS:
      return high_bits((const bw_high_bits*)step.shape, (const uint8_t*)x, (uint8_t*)out);
    case BW_CONV_FLOATS:
      return bw_conv_floats((const bw_floats*)step.shape, (const float*)x, step.weights, (float*)out, residual, threads);
    case BW_CONNECTIONS:
      return bw_linear_connections((const bw_connections*)step.shape, (const float*)x, (float*)out, threads);
    case BW_CODED_CONNECTIONS:
      return bw_coded_linear_connections((const bw_coded_connections*)step.shape, (const uint8_t*)x, step.output, out, residual, extra, threads);
    case BW_MAXPOOL_FLOATS:
      return bw_maxpool_floats((const bw_pool*)step.shape, (const float*)x, (float*)out, threads);
    case BW_AVGPOOL_FLOATS:
      return bw_avgpool_floats((const bw_pool*)step.shape, (const float*)x, (float*)out, threads);
    case BW_MEAN_FLOATS:
      return bw_mean_floats((const bw_pool*)step.shape, (const float*)x, (float*)out, threads);
    case BW_SUBSAMPLE_FLOATS:
      return bw_subsample_floats((const bw_subsample*)step.shape, (const float*)x, (float*)out, threads);
    default:
      return bw_fail(BW_BAD_ARGUMENT, "unknown operation %lld", (long long)step.operation);
  }
}

}  // namespace

extern "C" {

int bw_run(const bw_step* steps, int64_t count, void* const* outside, int64_t scratch, int threads) {
  if (count < 0 || scratch < 0) return bw_fail(BW_BAD_ARGUMENT, "run: count and scratch must not be negative");
  if (count && (!steps || !outside)) return bw_fail(BW_BAD_ARGUMENT, "run: steps or outside is null");
  Memory memory = {outside, nullptr};
  void* large = nullptr;
  if (scratch > KEPT) {
    if (posix_memalign(&large, 64, (size_t)scratch)) large = nullptr;
    memory.scratch = (char*)large;
  } else if (scratch) {
    memory.scratch = (char*)bw_scratch(BW_SCRATCH_RUN, (size_t)scratch);
  }
  if (scratch && !memory.scratch) return bw_fail(BW_NO_MEMORY, "no memory for %lld bytes", (long long)scratch);
  int error = BW_OK;
  for (int64_t i = 0; i < count && !error; i++) error = run_step(steps[i], memory, threads);
  free(large);
  return error;
}

int bw_check_range(const float* x, int64_t count, float limit) {
  if (!x && count) return bw_fail(BW_BAD_ARGUMENT, "range: x is null");
  // Without their sign, floats are in the order of their bits, NaN behind infinity: a difference below 0 is one too large.
  int32_t most, outside = 0;
  memcpy(&most, &limit, sizeof most);
  for (int64_t i = 0; i < count; i++) {
    int32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    outside |= most - (bits & 0x7fffffff);
  }
  return outside < 0 ? bw_fail(BW_OUT_OF_RANGE, "range: a value is NaN or beyond %g", (double)limit) : BW_OK;
}

}  // extern "C"
