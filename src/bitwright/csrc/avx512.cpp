// AVX-512 with VPOPCNTDQ and VNNI (Ice Lake, Zen 4 and later): own kernels where they pay, the generic ones,
// compiled with these flags, for the rest (grouped convolutions, sums too large for the doubled form).
#include "generic_table.h"

#include "avx512_bits.h"
#include "avx512_bytes.h"
#include "avx512_gated.h"
#include "avx512_pack.h"

namespace {

bool takes_bits(const bw_conv& conv) { return conv.groups == 1 && lanes_bits_fit(conv); }
bool takes_bytes(const bw_conv& conv) { return conv.groups == 1; }

int32_t bits_layout(const bw_conv& conv) { return takes_bits(conv) ? BW_LAYOUT_LANES_BITS : table_bits_layout(conv); }
int64_t bits_size(const bw_conv& conv) { return takes_bits(conv) ? lanes_bits_size(conv) : table_bits_size(conv); }
void bits_weights(const bw_conv& conv, const uint8_t* bits, void* body) {
  takes_bits(conv) ? lanes_bits_weights(conv, bits, body) : table_bits_weights(conv, bits, body);
}

int32_t bytes_layout(const bw_conv& conv, const int16_t* values) {
  return takes_bytes(conv) ? lanes_bytes_layout(conv, values) : table_bytes_layout(conv, values);
}
int64_t bytes_size(const bw_conv& conv) { return takes_bytes(conv) ? lanes_bytes_room(conv) : table_bytes_size(conv); }
void bytes_weights(const bw_conv& conv, const int16_t* values, int32_t layout, void* body) {
  takes_bytes(conv) ? lanes_bytes_weights(conv, values, layout, body) : table_bytes_weights(conv, values, layout, body);
}

int conv_bits(const bw_conv& conv, const uint32_t* x, int32_t layout, const void* body, const bw_sink& sink,
              int threads) {
  if (layout == BW_LAYOUT_LANES_BITS && takes_bits(conv)) return lanes_conv_bits(conv, x, body, sink, threads);
  return table_conv_bits(conv, x, layout, body, sink, threads);
}

int conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body, const bw_sink& sink,
               int threads) {
  if ((layout & ~7) != BW_LAYOUT_LANES_BYTES || !takes_bytes(conv))
    return table_conv_bytes(conv, x, layout, body, sink, threads);
  if (layout & BYTES_WINOGRAD && (conv.stride_h != 1 || conv.stride_w != 1 || conv.dil_h != 1 || conv.dil_w != 1))
    return bw_fail(BW_BAD_LAYOUT, "weights were packed for a stride and dilation of 1; pack them again");
  if (((layout & BYTES_TAPS) != 0) != (conv.dil_w != 1 && conv.kw > 1))
    return bw_fail(BW_BAD_LAYOUT, "weights were packed for another dilation; pack them again");
  return lanes_conv_bytes(conv, x, layout, body, sink, threads);
}

}  // namespace

extern const bw_kernel_table bw_table_avx512 = {
    "avx512",        bw_cpu_has_avx512, bits_layout, bits_size,  bits_weights,    bytes_layout,     bytes_size,
    bytes_weights,   conv_bits,         conv_bytes,  lanes_pack_bits, lanes_pack_bytes,
    lanes_maxpool_bits, generic_maxpool_bytes, train_table, skip_table, generic_conv_lists,
    generic_sliced_pays, generic_conv_sliced, lanes_conv_gated, conv_floats, linear_tables, linear_connections, coded_connections, BW_LAYOUT_LANES_BYTES,
};
