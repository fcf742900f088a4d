// The generic kernels as table entries.
#pragma once
#include "connections.h"
#include "conv_floats.h"
#include "float_tables.h"
#include "generic_conv.h"
#include "generic_gated.h"
#include "generic_lists.h"
#include "generic_sliced.h"
#include "generic_pack.h"
#include "skip_table.h"
#include "train_table.h"

namespace {

inline int32_t table_bits_layout(const bw_conv&) { return BW_LAYOUT_GENERIC_BITS; }
inline int64_t table_bits_size(const bw_conv& conv) { return generic_bits_size(conv); }
inline void table_bits_weights(const bw_conv& conv, const uint8_t* bits, void* body) { generic_bits_weights(conv, bits, body); }
inline int32_t table_bytes_layout(const bw_conv&, const int16_t*) { return BW_LAYOUT_GENERIC_BYTES; }
inline int64_t table_bytes_size(const bw_conv& conv) { return generic_bytes_size(conv); }
inline void table_bytes_weights(const bw_conv& conv, const int16_t* values, int32_t, void* body) {
  memcpy(body, values, (size_t)generic_bytes_size(conv));
}

int table_conv_bits(const bw_conv& conv, const uint32_t* x, int32_t layout, const void* body,
                    const bw_sink& output, int threads) {
  if (layout != BW_LAYOUT_GENERIC_BITS)
    return bw_fail(BW_BAD_LAYOUT, "weights were packed for another instruction set (layout %d); pack them again", layout);
  return generic_conv_bits(conv, x, body, output, threads);
}

int table_conv_bytes(const bw_conv& conv, const uint8_t* x, int32_t layout, const void* body,
                     const bw_sink& output, int threads) {
  if (layout != BW_LAYOUT_GENERIC_BYTES)
    return bw_fail(BW_BAD_LAYOUT, "weights were packed for another instruction set (layout %d); pack them again", layout);
  return generic_conv_bytes(conv, x, body, output, threads);
}

}  // namespace

#define BW_GENERIC_TABLE(name, isa, runs_here)                                                       \
  extern const bw_kernel_table name = {                                                              \
      isa,                 runs_here,        table_bits_layout,   table_bits_size,                   \
      table_bits_weights,  table_bytes_layout, table_bytes_size,  table_bytes_weights,               \
      table_conv_bits,     table_conv_bytes, generic_pack_bits,   generic_pack_bytes,                \
      generic_maxpool_bits, generic_maxpool_bytes, train_table, skip_table,      \
      generic_conv_lists,  generic_sliced_pays, generic_conv_sliced, generic_conv_gated, conv_floats, \
      linear_tables,       linear_connections, coded_connections, 0}
