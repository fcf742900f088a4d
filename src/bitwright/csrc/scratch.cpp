// What a thread has of its own. Scratch memory: a convolution at batch 1 takes a few microseconds, of which malloc would be a part.
#include <stdlib.h>

#include "kernels.h"
#include "parallel.h"

namespace {

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { free(data); }
};

thread_local Buffer buffers[BW_SCRATCH_SLOTS];
thread_local const bw_runner* current_runner = nullptr;

}  // namespace

const bw_runner* bw_current_runner() { return current_runner; }
void bw_set_runner(const bw_runner* runner) { current_runner = runner; }

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
