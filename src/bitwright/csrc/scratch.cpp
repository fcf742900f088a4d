// Per-thread scratch memory: a convolution at batch 1 takes a few microseconds, malloc would show.
#include <stdlib.h>

#include "kernels.h"

namespace {

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { free(data); }
};

thread_local Buffer buffers[BW_SCRATCH_SLOTS];

}  // namespace

void* bw_scratch(bw_scratch_slot slot, size_t bytes) {
  Buffer& buffer = buffers[slot];
#if defined(BITWRIGHT_EXACT_SCRATCH)  // for the sanitizers: no slack behind which an overrun could hide
  const bool fits = bytes == buffer.bytes;
#else
  const bool fits = bytes <= buffer.bytes;
  bytes = (bytes + 4095) / 4096 * 4096;
#endif
  if (!fits) {
    free(buffer.data);
    buffer.data = nullptr;
    buffer.bytes = posix_memalign(&buffer.data, 64, bytes) ? 0 : bytes;
  }
  return buffer.bytes ? buffer.data : nullptr;
}
