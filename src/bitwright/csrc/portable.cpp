// The generic kernels with baseline flags: runs everywhere, and is what the other tables are checked against.
#include "generic_table.h"

namespace {
bool runs_here() { return true; }
}  // namespace

BW_GENERIC_TABLE(bw_table_portable, "portable", runs_here);
