// The C entry points of convolutions with a base and a rest: check the arguments, then call the active table.
#include "checks.h"

namespace {

int check_skip(const bw_conv* conv, const bw_skip* skip, bool bytes) {
  if (int error = check_shape(conv, false)) return error;
  BW_REQUIRE(size_ok(conv->dil_w), "dilation must be positive");
  BW_REQUIRE(skip, "skip is null");
  const int64_t fan = conv->c / conv->groups, outs = conv->o / conv->groups;
  BW_REQUIRE(skip->low_bits >= 0 && skip->low_bits <= 7 && (bytes || !skip->low_bits), "low_bits must be 0..7, of bytes, got %lld",
             (long long)skip->low_bits);
  if (skip->low_bits) {
    BW_REQUIRE(skip->splits == 1, "splits must be 1 where low_bits decide, got %lld", (long long)skip->splits);
    return BW_OK;
  }
  BW_REQUIRE(!skip->dense || (!bytes && bw_skip_winograd(*conv, *skip)), "dense: only for floats that Winograd's form takes");
  BW_REQUIRE(skip->splits >= 2 && skip->splits <= fan && (skip->shared || skip->splits <= outs),
             "splits must be 2..%lld for %lld input and %lld output channels a group, got %lld",
             (long long)(skip->shared || fan < outs ? fan : outs), (long long)fan, (long long)outs, (long long)skip->splits);
  return BW_OK;
}

int check_norms(const bw_skip& skip, const bw_output& output) {
  BW_REQUIRE(!output.pool_kernel, "a layer that skips does not pool");
  BW_REQUIRE(skip.threshold, "threshold is null");
  BW_REQUIRE(!skip.scale == !skip.add && !skip.off_scale == !skip.off_add && (skip.scale || !skip.off_scale),
             "scale and add come together, off_scale and off_add beside them");
  return BW_OK;
}

// What the packed weights depend on beside the shape.
int64_t kind_of(const bw_conv& conv, const bw_skip& skip) {
  return skip.splits * 64 + (skip.shared != 0) * 32 + (conv.dil_w != 1) * 16 + skip.low_bits;
}
int64_t kind_of_floats(const bw_conv& conv, const bw_skip& skip) {  // low_bits is 0
  return kind_of(conv, skip) + bw_skip_winograd(conv, skip) + 2 * (skip.dense != 0);
}

}  // namespace

bool bw_skip_winograd(const bw_conv& c, const bw_skip& skip) {
  const bw_floats f = {1, 1, 1, c.c, c.o, c.kh, c.kw, c.stride_h, c.stride_w, 0, 0, c.dil_h, c.dil_w, 1, 1, 0, 0};
  return c.groups == 1 && bw_floats_winograd(f) && c.c % skip.splits == 0 && (skip.shared || c.o % skip.splits == 0);
}

extern "C" {

int64_t bw_skip_floats_size(const bw_conv* conv, const bw_skip* skip) {
  if (check_skip(conv, skip, false)) return -1;
  BW_TABLE_OR_FAIL(-1);
  return (int64_t)sizeof(bw_weights_header) + table->skip()->floats_size(*conv, *skip);
}

int bw_skip_floats_pack(const bw_conv* conv, const bw_skip* skip, const float* values, void* dst) {
  if (int error = check_skip(conv, skip, false)) return error;
  BW_REQUIRE(values && dst && (uintptr_t)dst % 64 == 0, "values is null, or dst null or not 64-byte aligned");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  write_header(*conv, BW_LAYOUT_SKIP_FLOATS, kind_of_floats(*conv, *skip), dst);
  table->skip()->floats_weights(*conv, *skip, values, (uint8_t*)dst + sizeof(bw_weights_header));
  return BW_OK;
}

int bw_skip_floats(const bw_conv* conv, const bw_skip* skip, const float* x, const void* weights, float* out,
                   const float* residual, int threads) {
  int32_t layout = 0;
  if (int error = check_skip(conv, skip, false)) return error;
  if (int error = check_geometry(*conv)) return error;
  if (int error = check_header(*conv, weights, kind_of_floats(*conv, *skip), &layout)) return error;
  if (layout != BW_LAYOUT_SKIP_FLOATS) return bw_fail(BW_BAD_LAYOUT, "weights were not made by bw_skip_floats_pack");
  BW_REQUIRE(skip->threshold && skip->bias, "threshold or bias is null");
  BW_REQUIRE(!skip->scale == !skip->add && !skip->off_scale == !skip->off_add && (skip->scale || !skip->off_scale),
             "scale and add come together, off_scale and off_add beside them");
  BW_REQUIRE((x && out) || conv->n == 0, "x or out is null");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  return conv->n ? table->skip()->floats(*conv, *skip, x, body_of(weights), out, residual, threads) : BW_OK;
}

int64_t bw_skip_bytes_size(const bw_conv* conv, const bw_skip* skip) {
  if (check_skip(conv, skip, true)) return -1;
  BW_TABLE_OR_FAIL(-1);
  return (int64_t)sizeof(bw_weights_header) + table->skip()->bytes_size(*conv, *skip);
}

int bw_skip_bytes_pack(const bw_conv* conv, const bw_skip* skip, const int16_t* values, void* dst) {
  if (int error = check_skip(conv, skip, true)) return error;
  if (int error = check_byte_weights(*conv, values, dst)) return error;
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  const int32_t layout = table->skip()->bytes_layout(*conv, *skip, values);
  write_header(*conv, layout, kind_of(*conv, *skip), dst);
  table->skip()->bytes_weights(*conv, *skip, values, layout, (uint8_t*)dst + sizeof(bw_weights_header));
  return BW_OK;
}

int bw_skip_bytes(const bw_conv* conv, const bw_skip* skip, const uint8_t* x, const void* weights, const bw_output* output,
                  void* out, const float* residual, void* extra, int threads) {
  int32_t layout = 0;
  if (int error = check_skip(conv, skip, true)) return error;
  if (int error = check_run(*conv)) return error;
  if (int error = check_output(*conv, output, out)) return error;
  if (int error = check_header(*conv, weights, kind_of(*conv, *skip), &layout)) return error;
  if (int error = check_norms(*skip, *output)) return error;
  if (conv->n == 0) return BW_OK;
  BW_REQUIRE(x, "x is null");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  const bw_sink sink = {*output, out, residual, extra};
  return table->skip()->bytes(*conv, *skip, x, layout, body_of(weights), sink, threads);
}

int bw_select(const bw_conv* conv, const bw_skip* skip, const int32_t* sums, const bw_output* output, void* out,
              const float* residual, void* extra, int threads) {
  BW_REQUIRE(conv && skip && size_ok(conv->o) && conv->n >= 0 && conv->n < LIMIT && size_ok(conv->oh) && size_ok(conv->ow),
             "conv or skip is null, or a size is not positive");
  BW_REQUIRE(skip->low_bits >= 0 && skip->low_bits <= 30, "low_bits must be 0..30, got %lld", (long long)skip->low_bits);
  if (int error = check_output(*conv, output, out)) return error;
  if (int error = check_norms(*skip, *output)) return error;
  if (conv->n == 0) return BW_OK;
  BW_REQUIRE(sums, "sums is null");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  const bw_sink sink = {*output, out, residual, extra};
  return table->skip()->select(*conv, *skip, sums, sink, threads);
}

}  // extern "C"
