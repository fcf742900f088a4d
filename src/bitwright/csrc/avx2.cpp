// AVX2 with POPCNT (most x86-64 CPUs since 2013, and those of today without AVX-512): own kernels for dense convolutions and linear
// layers with codes, the generic ones, compiled with these flags, for the rest.
#include "generic_table.h"

#include "avx2_expanded.h"
#include "avx2_pack.h"

namespace {

bool takes_bytes(const bw_conv& conv) { return conv.groups == 1; }
int32_t taps_of(const bw_conv& conv) { return bytes_run(conv) == conv.c && conv.kw > 1 ? 2 : 0; }

int32_t avx2_bits_layout(const bw_conv& conv) { return lookups_fit(conv) ? BW_LAYOUT_BIT_LOOKUPS : table_bits_layout(conv); }
int64_t avx2_bits_size(const bw_conv& conv) { return lookups_fit(conv) ? lookups_size(conv) : table_bits_size(conv); }
void avx2_bits_weights(const bw_conv& conv, const uint8_t* bits, void* body) {
  lookups_fit(conv) ? lookups_weights(conv, bits, body) : table_bits_weights(conv, bits, body);
}
int avx2_conv_bits(const bw_conv& conv, const uint32_t* x, int32_t layout, const void* body, const bw_sink& sink, int threads) {
  if (layout == BW_LAYOUT_BIT_LOOKUPS && lookups_fit(conv)) {
    const PlanesAsKept kept(conv);
    if (expands(conv)) return expanded_conv_bits(kept.conv, x, body, sink, threads);
    return folds(conv) ? folded_conv_bits(conv, x, body, sink, threads) : lookups_conv_bits(kept.conv, x, body, sink, threads);
  }
  return table_conv_bits(conv, x, layout, body, sink, threads);
}

int32_t avx2_bytes_layout(const bw_conv& conv, const int16_t* values) {
  return takes_bytes(conv) ? bytes_layout(conv, values) : table_bytes_layout(conv, values);
}
int64_t avx2_bytes_size(const bw_conv& conv) { return takes_bytes(conv) ? bytes_size(conv) : table_bytes_size(conv); }
void avx2_bytes_weights(const bw_conv& conv, const int16_t* values, int32_t layout, void* body) {
  takes_bytes(conv) ? lanes_bytes_weights(conv, values, layout, body) : table_bytes_weights(conv, values, layout, body);
}
int avx2_conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body, const bw_sink& sink, int threads) {
  const bool winograd = layout == BW_LAYOUT_WINOGRAD_PAIRS, phases = layout == BW_LAYOUT_PHASE_PAIRS, direct = (layout & ~3) == BW_LAYOUT_QUADS;
  if (!(winograd || phases || direct) || !takes_bytes(conv)) return table_conv_bytes(conv, x, layout, body, sink, threads);
  if (winograd && !winograd_shape(conv)) return bw_fail(BW_BAD_LAYOUT, "weights were packed for a stride and dilation of 1; pack them again");
  if (phases && !phases_shape(conv)) return bw_fail(BW_BAD_LAYOUT, "weights were packed for a stride of 2 and no dilation; pack them again");
  if (direct && (layout & 2) != taps_of(conv)) return bw_fail(BW_BAD_LAYOUT, "weights were packed for another dilation; pack them again");
  return lanes_conv_bytes(conv, x, layout, body, sink, threads);
}

}  // namespace

extern const bw_kernel_table bw_table_avx2 = {
    "avx2",           bw_cpu_has_avx2,    avx2_bits_layout,  avx2_bits_size,    avx2_bits_weights,  avx2_bytes_layout, avx2_bytes_size,
    avx2_bytes_weights, avx2_conv_bits,   avx2_conv_bytes,   lanes_pack_bits,   lanes_pack_bytes, generic_maxpool_bits,
    generic_maxpool_bytes, train_table,   skip_table,        generic_conv_lists, generic_sliced_pays, generic_conv_sliced,
    generic_conv_gated, conv_floats,      linear_tables,     linear_connections,
    coded_connections, BW_LAYOUT_QUADS,
};
