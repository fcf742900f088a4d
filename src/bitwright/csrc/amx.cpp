// AMX-INT8 (Sapphire Rapids and later): 16 x 16 x 64 byte products, sixteen cycles each. The avx512 table does what
// these do not take: grouped convolutions, weights beyond int8, few pixels, packing and pooling.
//
// Packed bits share the layout of avx512, so which kernel runs is decided per call, by tiles_bits_pay (amx_bits.h).
// BITWRIGHT_AMX=always in the environment takes tiles wherever they give the right result: for tests.
#include <stdlib.h>

#include "amx_bits.h"
#include "amx_bytes.h"
#include "avx512_bytes.h"

namespace {

const bw_kernel_table& otherwise = bw_table_avx512;

bool always() {
  static const char* const text = getenv("BITWRIGHT_AMX");
  static const bool yes = text && !strcmp(text, "always");
  return yes;
}

int32_t bits_layout(const bw_conv& conv) { return otherwise.bits_layout(conv); }
int64_t bits_size(const bw_conv& conv) { return otherwise.bits_size(conv); }
void bits_weights(const bw_conv& conv, const uint8_t* bits, void* body) { otherwise.bits_weights(conv, bits, body); }

int conv_bits(const bw_conv& conv, const uint32_t* x, int32_t layout, const void* body, const bw_sink& sink,
              int threads) {
  const bool words = layout == BW_LAYOUT_LANES_BITS && conv.groups == 1 && !lanes_paired(conv);  // a word belongs to one tap
  if (words && plain_words(sink, conv.o) && tiles_bits_fit(conv)) {
    const Window<uint8_t> window = tiles_bits_window(conv);
    if (always() || tiles_bits_pay(conv, choose_lines(conv, window), window))
      return tiles_conv_bits(conv, x, body, sink, threads);
  }
  return otherwise.conv_bits(conv, x, layout, body, sink, threads);
}

int32_t bytes_layout(const bw_conv& conv, const int16_t* values) {
  if (conv.groups != 1 || !tiles_bytes_fit(conv, values)) return otherwise.bytes_layout(conv, values);
  return BW_LAYOUT_TILES_BYTES | (tiles_taps(conv) ? TILES_TAPS : 0);
}
int64_t bytes_size(const bw_conv& conv) {  // one size that fits every layout the values may need
  const int64_t lanes = otherwise.bytes_size(conv), tiles = conv.groups == 1 ? tiles_bytes_size(conv) : 0;
  return lanes > tiles ? lanes : tiles;
}
void bytes_weights(const bw_conv& conv, const int16_t* values, int32_t layout, void* body) {
  if ((layout & ~TILES_TAPS) == BW_LAYOUT_TILES_BYTES) tiles_bytes_weights(conv, values, body);
  else otherwise.bytes_weights(conv, values, layout, body);
}

int conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body, const bw_sink& sink,
               int threads) {
  if ((layout & ~TILES_TAPS) != BW_LAYOUT_TILES_BYTES) return otherwise.conv_bytes(conv, x, layout, body, sink, threads);
  if (((layout & TILES_TAPS) != 0) != tiles_taps(conv))
    return bw_fail(BW_BAD_LAYOUT, "weights were packed for another dilation; pack them again");
  if (conv.n * conv.oh * conv.ow == 1 && tiles_run(conv) % 64 == 0 && !always()) {
    // With one pixel the weights are only streamed, which avx512 does faster; without padded runs both layouts are the same.
    const int32_t same = BW_LAYOUT_LANES_BYTES | (tiles_taps(conv) ? BYTES_TAPS : 0);
    return otherwise.conv_bytes(conv, x, same, body, sink, threads);
  }
  const auto run = [&](const bw_sink& to, int nt) { return tiles_conv_bytes(conv, x, body, to, nt); };
  return plain_words(sink, conv.o) ? run(sink, threads) : emit_in_two_steps(conv, sink, threads, run);
}

int pack_bits(const bw_pack& pack, const float* x, uint32_t* out, int threads) {
  return otherwise.pack_bits(pack, x, out, threads);
}
int pack_bytes(const bw_pack& pack, const float* x, uint8_t* out, int threads) {
  return otherwise.pack_bytes(pack, x, out, threads);
}
int maxpool_bits(const bw_pool& pool, const uint32_t* x, uint32_t* out, int threads) {
  return otherwise.maxpool_bits(pool, x, out, threads);
}
int maxpool_bytes(const bw_pool& pool, const uint8_t* x, uint8_t* out, int threads) {
  return otherwise.maxpool_bytes(pool, x, out, threads);
}

const bw_train_table* train() { return otherwise.train(); }
const bw_skip_table* skip() { return otherwise.skip(); }

int conv_lists(const bw_conv& conv, const uint8_t* x, const void* body, const bw_sink& sink, int threads) {
  return otherwise.conv_lists(conv, x, body, sink, threads);
}
bool sliced_pays(const bw_conv& conv, const void* body) { return otherwise.sliced_pays(conv, body); }
int conv_sliced(const bw_conv& conv, const uint32_t* x, const void* body, const bw_sink& sink, int threads) {
  return otherwise.conv_sliced(conv, x, body, sink, threads);
}
int conv_gated(const bw_gated& g, const float* x, const void* body, float* out, const float* residual, float* on, int threads) {
  return otherwise.conv_gated(g, x, body, out, residual, on, threads);
}
int conv_floats(const bw_floats& f, const float* x, const void* body, float* out, const float* residual, int threads) {
  return otherwise.conv_floats(f, x, body, out, residual, threads);
}
int linear_tables(const bw_tables& t, const float* x, const uint32_t* index, float* out, int threads) {
  return otherwise.linear_tables(t, x, index, out, threads);
}
int linear_connections(const bw_connections& l, const float* x, float* out, int threads) {
  return otherwise.linear_connections(l, x, out, threads);
}
int coded_connections(const bw_coded_connections& l, const uint8_t* x, const bw_sink& sink, int threads) {
  return otherwise.coded_connections(l, x, sink, threads);
}

}  // namespace

extern const bw_kernel_table bw_table_amx = {
    "amx",         bw_cpu_has_amx, bits_layout, bits_size, bits_weights, bytes_layout, bytes_size,
    bytes_weights, conv_bits,      conv_bytes,  pack_bits, pack_bytes,   maxpool_bits, maxpool_bytes,
    train,         skip,           conv_lists,  sliced_pays, conv_sliced, conv_gated,    conv_floats, linear_tables,
    linear_connections, coded_connections, 0,
};
