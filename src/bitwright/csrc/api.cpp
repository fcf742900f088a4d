// The C entry points: check the arguments, then call the active table. Nothing below checks again.
#include <float.h>
#include <math.h>

#include "checks.h"
#include "generic_emit.h"
#include "lists.h"
#include "sliced.h"

namespace {

// Whether zeros may be skipped; BITWRIGHT_ZEROS=0 in the environment: not, for measurements.
bool zeros_skipped() {
  const char* text = getenv("BITWRIGHT_ZEROS");
  return !text || strcmp(text, "0");
}

// The codes of a grid that divides, and of its quick form.
int divided(const bw_grid& grid, float y) {
  const float place = y / grid.value, low = (float)(grid.low - grid.base), high = (float)(grid.high - grid.base);
  return (int)nearbyintf(place < low ? low : place > high ? high : place) + grid.base;
}

int quickly(const bw_grid& grid, float y) {
  const float inside = y < grid.bottom ? grid.bottom : y > grid.top ? grid.top : y;
  return (int)nearbyintf(fmaf(inside, grid.quick, inside * grid.rest)) + grid.base;
}

// The smallest float whose code is at least `code`; the codes never fall as y rises.
float first_of(const bw_grid& grid, int code) {
  float low = -FLT_MAX, high = FLT_MAX;
  for (;;) {
    int32_t a, b;
    memcpy(&a, &low, 4), memcpy(&b, &high, 4);
    a = a < 0 ? INT32_MIN - a : a, b = b < 0 ? INT32_MIN - b : b;  // in the order of the floats
    int32_t middle = (int32_t)(((int64_t)a + b) >> 1);
    if (middle == a) return high;
    middle = middle < 0 ? INT32_MIN - middle : middle;
    float y;
    memcpy(&y, &middle, 4);
    (divided(grid, y) >= code ? high : low) = y;
  }
}

// Where the kernel does not pool: run(sink) writes all floats of the convolution, and these are pooled.
template <class Run>
int pool_after(const bw_conv& conv, const bw_sink& sink, const Run& run) {
  float* all = (float*)bw_scratch(BW_SCRATCH_POOL, (size_t)(conv.n * conv.oh * conv.ow * conv.o) * sizeof(float));
  uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
  if (!all || !codes) return bw_fail(BW_NO_MEMORY, "out of memory for floats that are pooled");
  bw_sink plain = sink;
  plain.out = all, plain.extra = nullptr, plain.pool_kernel = 0;
  if (int error = run(plain)) return error;
  codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);  // the kernel may have grown it
  const int64_t height = pooled_size(conv.oh, sink), width = pooled_size(conv.ow, sink);
  for (int64_t pixel = 0; pixel < conv.n * height * width; pixel++) {
    const int64_t n = pixel / (height * width), top = pixel / width % height * sink.pool_stride - sink.pool_pad;
    const int64_t left = pixel % width * sink.pool_stride - sink.pool_pad;
    float* most = (float*)sink.out + pixel * conv.o;
    for (int64_t o = 0; o < conv.o; o++) most[o] = -INFINITY;
    for (int64_t y = top < 0 ? 0 : top; y < top + sink.pool_kernel && y < conv.oh; y++)
      for (int64_t x = left < 0 ? 0 : left; x < left + sink.pool_kernel && x < conv.ow; x++) {
        const float* next = all + ((n * conv.oh + y) * conv.ow + x) * conv.o;
        for (int64_t o = 0; o < conv.o; o++) most[o] = most[o] > next[o] ? most[o] : next[o];
      }
    if (sink.extra) emit_beside(sink, conv.o, pixel, most, codes);
  }
  return BW_OK;
}

}  // namespace

extern "C" {

int bw_grid_prepare(bw_grid* grid) {
  BW_REQUIRE(grid, "grid is null");
  grid->quick = grid->rest = grid->bottom = grid->top = 0;
  if (int error = check_grid(grid)) return error;
  if (grid->kind != BW_GRID_DIVIDE || grid->low == grid->high) return BW_OK;
  bw_grid tried = *grid;
  tried.quick = 1.0f / grid->value;
  tried.rest = (float)((1.0 - (double)tried.quick * grid->value) / grid->value);
  tried.bottom = nextafterf(first_of(*grid, grid->low + 1), -FLT_MAX), tried.top = first_of(*grid, grid->high);
  if (!(fabsf(tried.bottom) < 1e30f && fabsf(tried.top) < 1e30f && tried.quick < 1e30f)) return BW_OK;
  for (int code = grid->low + 1; code <= grid->high; code++) {
    const float first = first_of(*grid, code), before = nextafterf(first, -FLT_MAX);
    if (quickly(tried, first) != code || quickly(tried, before) != code - 1) return BW_OK;
  }
  *grid = tried;
  return BW_OK;
}

int64_t bw_weights_size(const bw_conv* conv) {
  if (check_shape(conv, true)) return -1;
  BW_TABLE_OR_FAIL(-1);
  return (int64_t)sizeof(bw_weights_header) + table->bits_size(*conv) + sliced_room(*conv);
}

int64_t bw_byte_weights_size(const bw_conv* conv) {
  if (check_shape(conv, false)) return -1;
  BW_TABLE_OR_FAIL(-1);
  return (int64_t)sizeof(bw_weights_header) + table->bytes_size(*conv);
}

int bw_weights_pack(const bw_conv* conv, const uint8_t* bits, void* dst) {
  if (int error = check_shape(conv, true)) return error;
  BW_REQUIRE(bits && dst && (uintptr_t)dst % 64 == 0, "bits is null, or dst null or not 64-byte aligned");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  const bool sliced = zeros_skipped() && sliced_fit(*conv, bits);
  const int32_t dense = table->bits_layout(*conv);
  uint8_t* body = (uint8_t*)dst + sizeof(bw_weights_header);
  write_header(*conv, sliced ? BW_LAYOUT_SLICED : dense, conv->w_planes, dst);
  table->bits_weights(*conv, bits, body + (sliced ? SLICED_HEAD : 0));
  if (sliced) sliced_weights(*conv, bits, dense, table->bits_size(*conv), body);
  return BW_OK;
}

int bw_byte_weights_pack(const bw_conv* conv, const int16_t* values, void* dst) {
  if (int error = check_shape(conv, false)) return error;
  if (int error = check_byte_weights(*conv, values, dst)) return error;
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  void* body = (uint8_t*)dst + sizeof(bw_weights_header);
  if (zeros_skipped() && lists_fit(*conv, values, table->bytes_size(*conv))) {
    write_header(*conv, BW_LAYOUT_LISTS, 0, dst);
    lists_weights(*conv, values, body);
    return BW_OK;
  }
  const int32_t layout = table->bytes_layout(*conv, values);
  write_header(*conv, layout, 0, dst);
  table->bytes_weights(*conv, values, layout, body);
  return BW_OK;
}

int bw_conv_bits(const bw_conv* conv, const uint32_t* x, const void* weights, const bw_output* output, void* out,
                 const float* residual, void* extra, int threads) {
  int32_t layout = 0;
  if (int error = check_shape(conv, true)) return error;
  if (int error = check_run(*conv)) return error;
  if (int error = check_output(*conv, output, out)) return error;
  if (int error = check_header(*conv, weights, conv->w_planes, &layout)) return error;
  if (conv->n == 0) return BW_OK;
  BW_REQUIRE(x, "x is null");
  BW_REQUIRE(!output->pool_kernel || !residual, "floats that are pooled take no residual");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  const uint8_t* body = body_of(weights);
  const bool lists = layout == BW_LAYOUT_SLICED, sliced = lists && sliced_may(*conv) && table->sliced_pays(*conv, body);
  if (lists) {
    bw_sliced head;
    memcpy(&head, body, sizeof head);
    layout = (int32_t)head.dense_layout;
  }
  const auto run = [&](const bw_sink& sink) {
    return sliced ? table->conv_sliced(*conv, x, body, sink, threads)
                  : table->conv_bits(*conv, x, layout, body + (lists ? SLICED_HEAD : 0), sink, threads);
  };
  const bw_sink sink = {*output, out, residual, extra};
  return output->pool_kernel ? pool_after(*conv, sink, run) : run(sink);
}

int bw_conv_bytes(const bw_conv* conv, const uint8_t* x, const void* weights, const bw_output* output, void* out,
                 const float* residual, void* extra, int threads) {
  int32_t layout = 0;
  if (int error = check_shape(conv, false)) return error;
  if (int error = check_run(*conv)) return error;
  if (int error = check_output(*conv, output, out)) return error;
  if (int error = check_header(*conv, weights, 0, &layout)) return error;
  if (conv->n == 0) return BW_OK;
  BW_REQUIRE(x, "x is null");
  BW_REQUIRE(!output->pool_kernel || !residual, "floats that are pooled take no residual");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  const auto run = [&](const bw_sink& sink) {
    return layout == BW_LAYOUT_LISTS ? table->conv_lists(*conv, x, body_of(weights), sink, threads)
                                     : table->conv_bytes(*conv, x, layout, body_of(weights), sink, threads);
  };
  const bw_sink sink = {*output, out, residual, extra};
  const bool phases = layout == BW_LAYOUT_PHASE_PAIRS;
  const bool pools = table->pooling_layout && (phases || (layout & ~3) == table->pooling_layout);  // not by Winograd's in steps of 1
  return output->pool_kernel && !pools ? pool_after(*conv, sink, run) : run(sink);
}

int bw_coded_linear_connections(const bw_coded_connections* layer, const uint8_t* x, const bw_output* output, void* out,
                                const float* residual, void* extra, int threads) {
  BW_REQUIRE(layer && layer->list && layer->conv, "connections: the layer is null");
  const bw_connections& l = *layer->list;
  const bw_conv& conv = *layer->conv;
  if (int error = check_shape(&conv, false)) return error;
  if (int error = check_run(conv)) return error;
  if (int error = check_output(conv, output, out)) return error;
  if (conv.n == 0) return BW_OK;
  BW_REQUIRE(x && l.begin && l.index && l.value, "connections: a tensor is null");
  BW_REQUIRE(l.n == conv.n * conv.oh * conv.ow && l.k == conv.c && l.o == conv.o && conv.kh == 1 && conv.kw == 1,
             "connections: n, k and o are not those of the layer");
  BW_REQUIRE(conv.row_classes == 1 && conv.col_classes == 1 && !output->pool_kernel, "connections: one class, and no pooling");
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  return table->coded_connections(*layer, x, bw_sink{*output, out, residual, extra}, threads < 1 ? 1 : threads);
}

int bw_pack_bits(const bw_pack* pack, const float* x, uint32_t* out, int threads) {
  if (int error = check_pack(pack, x, out, true)) return error;
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  return pack->n ? table->pack_bits(*pack, x, out, threads) : BW_OK;
}

int bw_pack_bytes(const bw_pack* pack, const float* x, uint8_t* out, int threads) {
  if (int error = check_pack(pack, x, out, false)) return error;
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  return pack->n ? table->pack_bytes(*pack, x, out, threads) : BW_OK;
}

int bw_maxpool_bits(const bw_pool* pool, const uint32_t* x, uint32_t* out, int threads) {
  if (int error = check_pool(pool, x, out)) return error;
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  return pool->n ? table->maxpool_bits(*pool, x, out, threads) : BW_OK;
}

int bw_maxpool_bytes(const bw_pool* pool, const uint8_t* x, uint8_t* out, int threads) {
  if (int error = check_pool(pool, x, out)) return error;
  BW_TABLE_OR_FAIL(BW_BAD_ISA);
  return pool->n ? table->maxpool_bytes(*pool, x, out, threads) : BW_OK;
}

int bw_unpack_bits(const uint32_t* x, int64_t pixels, int64_t planes, int64_t channels, int64_t groups, uint8_t* out) {
  if (int error = check_codes(x, pixels, planes, channels, groups, out)) return error;
  const int64_t words = planes * bw_words(channels, groups);
  for (int64_t i = 0; i < pixels; i++) words_to_codes(x + i * words, channels, groups, planes, out + i * channels);
  return BW_OK;
}

int bw_bytes_to_bits(const uint8_t* x, int64_t pixels, int64_t planes, int64_t channels, int64_t groups, uint32_t* out) {
  if (int error = check_codes(x, pixels, planes, channels, groups, out)) return error;
  const int64_t words = planes * bw_words(channels, groups);
  for (int64_t i = 0; i < pixels; i++) codes_to_words(x + i * channels, channels, groups, planes, out + i * words);
  return BW_OK;
}

}  // extern "C"
