// What the C entry points check before they call the active table, and the header of prepared weights. Nothing below them checks again.
#pragma once
#include <string.h>

#include "kernels.h"

#define BW_REQUIRE(condition, ...) \
  if (!(condition)) return bw_fail(BW_BAD_ARGUMENT, __VA_ARGS__)
#define BW_TABLE_OR_FAIL(failure)                       \
  const bw_kernel_table* table = bw_active_table();     \
  if (!table) return failure

namespace {

const int64_t LIMIT = (int64_t)1 << 31;  // of any one size: products of two stay far inside int64
[[maybe_unused]] inline bool size_ok(int64_t value) { return value > 0 && value < LIMIT; }

[[maybe_unused]] inline int check_shape(const bw_conv* conv, bool bits) {
  BW_REQUIRE(conv, "conv is null");
  BW_REQUIRE(size_ok(conv->c) && size_ok(conv->o) && size_ok(conv->kh) && size_ok(conv->kw) && size_ok(conv->groups),
             "c, o, kh, kw and groups must be positive, got %lld %lld %lld %lld %lld", (long long)conv->c,
             (long long)conv->o, (long long)conv->kh, (long long)conv->kw, (long long)conv->groups);
  BW_REQUIRE(conv->c % conv->groups == 0 && conv->o % conv->groups == 0,
             "c = %lld and o = %lld must be multiples of groups = %lld", (long long)conv->c, (long long)conv->o,
             (long long)conv->groups);
  if (!bits) return BW_OK;
  BW_REQUIRE(conv->x_planes >= 1 && conv->x_planes <= BW_MAX_PLANES && conv->w_planes >= 1 &&
                 conv->w_planes <= BW_MAX_PLANES,
             "x_planes and w_planes must be 1..%d, got %lld and %lld", BW_MAX_PLANES, (long long)conv->x_planes,
             (long long)conv->w_planes);
  BW_REQUIRE(conv->x_mult && conv->w_mult, "x_mult or w_mult is null");
  return BW_OK;
}

[[maybe_unused]] inline int check_window(int64_t h, int64_t w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                 int64_t dil_h, int64_t dil_w, int64_t oh, int64_t ow) {
  BW_REQUIRE(size_ok(h) && size_ok(w) && size_ok(oh) && size_ok(ow), "h, w, oh and ow must be positive, got %lld %lld %lld %lld",
             (long long)h, (long long)w, (long long)oh, (long long)ow);
  BW_REQUIRE(size_ok(stride_h) && size_ok(stride_w) && size_ok(dil_h) && size_ok(dil_w), "stride and dilation must be positive");
  BW_REQUIRE(pad_h >= 0 && pad_h < LIMIT && pad_w >= 0 && pad_w < LIMIT, "padding must not be negative");
  return BW_OK;
}

[[maybe_unused]] inline int check_geometry(const bw_conv& conv) {
  BW_REQUIRE(conv.n >= 0 && conv.n < LIMIT, "n must not be negative");
  if (int error = check_window(conv.h, conv.w, conv.stride_h, conv.stride_w, conv.pad_h, conv.pad_w, conv.dil_h,
                               conv.dil_w, conv.oh, conv.ow))
    return error;
  BW_REQUIRE(conv.oh == bw_windows(conv.h, conv.kh, conv.stride_h, conv.pad_h, conv.dil_h) &&
                 conv.ow == bw_windows(conv.w, conv.kw, conv.stride_w, conv.pad_w, conv.dil_w),
             "oh, ow = %lld, %lld do not follow from the geometry", (long long)conv.oh, (long long)conv.ow);
  return BW_OK;
}

[[maybe_unused]] inline int check_run(const bw_conv& conv) {
  if (int error = check_geometry(conv)) return error;
  BW_REQUIRE(conv.row_class && conv.col_class && conv.corr, "row_class, col_class or corr is null");
  BW_REQUIRE(conv.row_classes > 0 && conv.col_classes > 0, "row_classes and col_classes must be positive");
  for (int64_t i = 0; i < conv.oh; i++)
    BW_REQUIRE(conv.row_class[i] >= 0 && conv.row_class[i] < conv.row_classes, "row_class[%lld] is out of range", (long long)i);
  for (int64_t i = 0; i < conv.ow; i++)
    BW_REQUIRE(conv.col_class[i] >= 0 && conv.col_class[i] < conv.col_classes, "col_class[%lld] is out of range", (long long)i);
  return BW_OK;
}

[[maybe_unused]] inline int check_levels(int64_t levels, const void* thresholds, int64_t planes) {
  BW_REQUIRE(levels >= 1 && levels <= 255, "levels must be 1..255, got %lld", (long long)levels);
  BW_REQUIRE(thresholds, "thresholds is null");
  BW_REQUIRE(planes >= 1 && planes <= BW_MAX_PLANES, "planes must be 1..%d, got %lld", BW_MAX_PLANES, (long long)planes);
  BW_REQUIRE(levels < (1 << planes), "%lld levels do not fit %lld planes", (long long)levels, (long long)planes);
  return BW_OK;
}

[[maybe_unused]] inline int check_grid(const bw_grid* grid) {
  if (!grid) return BW_OK;
  BW_REQUIRE(grid->kind >= BW_GRID_MULTIPLY && grid->kind <= BW_GRID_STEP, "unknown kind of grid %d", grid->kind);
  BW_REQUIRE(grid->kind == BW_GRID_STEP || (grid->value > 0 && grid->value < 1e30f), "a grid's value must be positive");
  BW_REQUIRE(grid->low >= 0 && grid->low <= grid->high && grid->high <= 255, "a grid's codes lie in 0..255");
  BW_REQUIRE(grid->base >= -255 && grid->base <= 255, "a grid's base lies in -255..255");
  BW_REQUIRE(grid->quick >= 0, "a grid's quick must not be negative");
  return BW_OK;
}

[[maybe_unused]] inline int64_t pooled_size(int64_t size, const bw_output& output) {
  return bw_windows(size, output.pool_kernel, output.pool_stride, output.pool_pad, 1);
}

[[maybe_unused]] inline int check_output(const bw_conv& conv, const bw_output* output, const void* out) {
  BW_REQUIRE(output, "output is null");
  BW_REQUIRE(!output->pool_kernel || output->mode == BW_FLOAT32, "only floats are pooled");
  BW_REQUIRE(out || conv.n == 0, "out is null");
  switch (output->mode) {
    case BW_INT32:
      return BW_OK;
    case BW_FLOAT32:
      BW_REQUIRE(output->scale && output->add, "scale or add is null");
      BW_REQUIRE(output->pool_kernel >= 0 && output->pool_kernel <= BW_MAX_POOL, "pool_kernel must be 0..%d", BW_MAX_POOL);
      BW_REQUIRE(!output->pool_kernel || (output->pool_stride > 0 && output->pool_stride < LIMIT && output->pool_pad >= 0 &&
                                          output->pool_pad < output->pool_kernel && pooled_size(conv.oh, *output) &&
                                          pooled_size(conv.ow, *output)),
                 "pool_stride must be positive, pool_pad smaller than the window, and a window fit");
      if (output->levels > 1 && !output->grid) {
        BW_REQUIRE(!output->pool_kernel && !output->flip && !output->extra_bytes, "a ladder of floats takes no pooling, flip or bytes");
        return check_levels(output->levels, output->cuts, output->out_planes);
      }
      return check_grid(output->grid);
    case BW_WORDS:
      BW_REQUIRE(output->out_groups > 0 && conv.o % output->out_groups == 0, "o = %lld is not a multiple of out_groups = %lld",
                 (long long)conv.o, (long long)output->out_groups);
      return check_levels(output->levels, output->thresholds, output->out_planes);
    case BW_BYTES:
      if (!output->grid) return check_levels(output->levels, output->thresholds, BW_MAX_PLANES);
      BW_REQUIRE(output->scale && output->add, "scale or add is null");
      return check_grid(output->grid);
    default:
      return bw_fail(BW_BAD_ARGUMENT, "unknown output mode %lld", (long long)output->mode);
  }
}

[[maybe_unused]] inline int check_pack(const bw_pack* pack, const void* x, const void* out, bool bits) {
  BW_REQUIRE(pack, "pack is null");
  BW_REQUIRE(pack->n >= 0 && pack->n < LIMIT && size_ok(pack->h) && size_ok(pack->w) && size_ok(pack->c),
             "n, h, w and c must be positive");
  BW_REQUIRE((x && out) || pack->n == 0, "x or out is null");
  if (int error = check_grid(pack->grid)) return error;
  if (!bits) {
    if (pack->grid && !pack->flip && !pack->per_channel) return BW_OK;
    return check_levels(pack->levels, pack->thresholds, BW_MAX_PLANES);
  }
  BW_REQUIRE(pack->groups > 0 && pack->c % pack->groups == 0, "c = %lld is not a multiple of groups = %lld",
             (long long)pack->c, (long long)pack->groups);
  return check_levels(pack->levels, pack->thresholds, pack->planes);
}

[[maybe_unused]] inline int check_pool(const bw_pool* pool, const void* x, const void* out) {
  BW_REQUIRE(pool, "pool is null");
  BW_REQUIRE(pool->n >= 0 && pool->n < LIMIT && size_ok(pool->channels) && size_ok(pool->kh) && size_ok(pool->kw),
             "n, channels, kh and kw must be positive");
  BW_REQUIRE(pool->planes >= 1 && pool->planes <= BW_MAX_PLANES, "planes must be 1..%d, got %lld", BW_MAX_PLANES,
             (long long)pool->planes);
  BW_REQUIRE((x && out) || pool->n == 0, "x or out is null");
  return check_window(pool->h, pool->w, pool->stride_h, pool->stride_w, pool->pad_h, pool->pad_w, pool->dil_h,
                      pool->dil_w, pool->oh, pool->ow);
}

[[maybe_unused]] inline int check_codes(const void* x, int64_t pixels, int64_t planes, int64_t channels, int64_t groups, const void* out) {
  BW_REQUIRE(pixels >= 0 && size_ok(channels) && size_ok(groups) && channels % groups == 0,
             "pixels, channels and groups must be positive, channels a multiple of groups");
  BW_REQUIRE(planes >= 1 && planes <= BW_MAX_PLANES, "planes must be 1..%d, got %lld", BW_MAX_PLANES, (long long)planes);
  BW_REQUIRE((x && out) || pixels == 0, "x or out is null");
  return BW_OK;
}

[[maybe_unused]] inline int check_byte_weights(const bw_conv& conv, const int16_t* values, const void* dst) {
  BW_REQUIRE(values && dst && (uintptr_t)dst % 64 == 0, "values is null, or dst null or not 64-byte aligned");
  const int64_t count = conv.o * conv.kh * conv.kw * (conv.c / conv.groups);
  for (int64_t i = 0; i < count; i++)
    BW_REQUIRE(values[i] >= -255 && values[i] <= 255, "a weight is %d, outside -255..255", values[i]);
  return BW_OK;
}

[[maybe_unused]] inline void write_header(const bw_conv& conv, int32_t layout, int64_t w_planes, void* dst) {
  const bw_weights_header header = {BW_WEIGHTS_MAGIC, layout,      conv.c,   conv.o, conv.kh,
                                    conv.kw,          conv.groups, w_planes, 0};
  memcpy(dst, &header, sizeof header);
}

[[maybe_unused]] inline int check_header(const bw_conv& conv, const void* weights, int64_t w_planes, int32_t* layout) {
  BW_REQUIRE(weights && (uintptr_t)weights % 64 == 0, "weights must be 64-byte aligned and not null");
  bw_weights_header header;
  memcpy(&header, weights, sizeof header);
  if (header.magic != BW_WEIGHTS_MAGIC) return bw_fail(BW_BAD_LAYOUT, "weights were not made by bw_weights_pack");
  if (header.c != conv.c || header.o != conv.o || header.kh != conv.kh || header.kw != conv.kw ||
      header.groups != conv.groups || header.w_planes != w_planes)
    return bw_fail(BW_BAD_LAYOUT, "weights were packed for another shape (c %lld, o %lld, kernel %lldx%lld)",
                   (long long)header.c, (long long)header.o, (long long)header.kh, (long long)header.kw);
  *layout = header.layout;
  return BW_OK;
}

[[maybe_unused]] inline const uint8_t* body_of(const void* weights) { return (const uint8_t*)weights + sizeof(bw_weights_header); }

}  // namespace
