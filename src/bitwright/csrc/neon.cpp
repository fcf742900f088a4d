// 64-bit ARM: its vector unit is part of every such CPU.
#include "neon.h"

namespace {
bool runs_here() { return true; }
}  // namespace

BW_GENERIC_TABLE(bw_table_neon_base, "neon", runs_here);

extern const bw_kernel_table bw_table_neon = [] {
  bw_kernel_table table = bw_table_neon_base;
  table.conv_bits = neon_conv_bits;
  table.conv_bytes = neon_conv_bytes;
  return table;
}();
