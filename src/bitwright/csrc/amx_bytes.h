// AMX: convolution of byte codes whose weights fit int8. Weight tiles are laid out once, [blocks][tiles][1024].
#pragma once
#include "amx_tiles.h"

namespace {

enum { TILES_TAPS = 1 };  // bit of the layout number: a run is one tap (dilated) and not kw of them

inline bool tiles_taps(const bw_conv& conv) { return conv.dil_w != 1 && conv.kw > 1; }
inline int64_t tiles_run(const bw_conv& conv) { return tiles_taps(conv) ? conv.c : conv.kw * conv.c; }
inline int64_t tiles_bytes_panel(const bw_conv& conv) {
  return conv.kh * (tiles_taps(conv) ? conv.kw : 1) * bw_ceil_div(tiles_run(conv), 64) * TILE_BYTES;
}
inline int64_t tiles_bytes_size(const bw_conv& conv) { return bw_ceil_div(conv.o, 16) * tiles_bytes_panel(conv); }

inline bool tiles_bytes_fit(const bw_conv& conv, const int16_t* values) {
  const int64_t count = conv.o * conv.kh * conv.kw * conv.c;
  for (int64_t i = 0; i < count; i++)
    if (values[i] < -128 || values[i] > 127) return false;
  return true;
}

inline void tiles_bytes_weights(const bw_conv& conv, const int16_t* values, void* body) {
  const int64_t run = tiles_run(conv), runs = conv.kh * conv.kw * conv.c / run, steps = bw_ceil_div(run, 64);
  memset(body, 0, (size_t)tiles_bytes_size(conv));
  for (int64_t o = 0; o < conv.o; o++) {
    int8_t* panel = (int8_t*)body + o / 16 * tiles_bytes_panel(conv) + o % 16 * 4;
    for (int64_t r = 0; r < runs; r++)
      for (int64_t i = 0; i < run; i++)
        panel[(r * steps + i / 64) * TILE_BYTES + i % 64 / 4 * 64 + i % 4] = (int8_t)*values++;
  }
}

struct BytePanel {
  const uint8_t* panel;
  BW_INLINE void next() {}
};

struct ByteWeights {
  const uint8_t* body;
  int64_t panel;
  size_t panel_bytes() const { return 64; }  // of scratch: none is needed, but it must not be null
  BytePanel make(int64_t block, uint8_t*) const { return {body + block * panel}; }
};

inline int tiles_conv_bytes(const bw_conv& conv, const uint8_t* x, const void* body, const bw_sink& sink, int threads) {
  // The last tile of a run may read up to 63 bytes more (its weights are zero): a copy has room for that.
  Window<uint8_t> window;
  if (!make_window(conv, x, conv.c, conv.c, tiles_run(conv) % 64 != 0, false, threads, &window))
    return bw_fail(BW_NO_MEMORY, "out of memory for the padded input");
  return run_amx(conv, window, sink, ByteWeights{(const uint8_t*)body, tiles_bytes_panel(conv)}, threads);
}

}  // namespace
