// The generic kernels compiled with -mavx2 -mpopcnt: hardware popcount and 256-bit integer products.
#include "generic_table.h"

BW_GENERIC_TABLE(bw_table_avx2, "avx2", bw_cpu_has_avx2);
