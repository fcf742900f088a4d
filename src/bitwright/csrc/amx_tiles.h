// AMX: products of int8 tiles. An activation tile is up to 16 pixels x 64 unsigned bytes of K, a weight tile 64
// signed bytes of K x 16 outputs, as 16 rows (four of K) of 16 outputs x 4 bytes: 1 KB. The sums are int32, exact.
//
// Up to five accumulators (registers 0..4: five tiles of pixels), one activation tile, one weight tile: a loaded weight
// tile serves five products, so the weights may come from L2. Two by two would read as little, but keep two panels of
// weights in the cache.
#pragma once
#include <immintrin.h>

#include "amx_lines.h"
#include "avx512_emit.h"
#include "avx512_tiles.h"

namespace {

enum { TILE_BYTES = 1024, MOST_TILES = 5, CHUNK_TILES = 40 };

// Sets this thread's tile registers up and frees them again: while they are in use, every task switch saves 8 KB.
class TileRegisters {
 public:
  explicit TileRegisters(int64_t height) {
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {};
    static_assert(sizeof config == 64, "as the processor reads it");
    config.palette = 1;
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = (uint8_t)(i == 7 ? 16 : height);
    _tile_loadconfig(&config);
  }
  TileRegisters(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }
};

// The compiler does not know that a tile load reads memory: stores before it must really be before it.
BW_INLINE void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Register numbers are part of the instruction, so no loop and no template argument can give them.
#define BW_EACH_TILE(P, DO)          \
  DO(0);                             \
  if constexpr (P > 1) { DO(1); }    \
  if constexpr (P > 2) { DO(2); }    \
  if constexpr (P > 3) { DO(3); }    \
  if constexpr (P > 4) { DO(4); }
#define BW_ZERO(i) _tile_zero(i)
#define BW_PRODUCT(i) _tile_loadd(6, x[i] + j, step); _tile_dpbusd(i, 6, 7)
#define BW_STORE(i) _tile_stored(i, sums[i], 64)

typedef int32_t TileSums[16][16];  // [row][output]

// sums[p] = activations of tile p x the panel of weight tiles (one per 64 bytes of every run, in order). source.next()
// is called before each step, to make the weight tile of the next one while this one is multiplied. The source comes
// by value: its state stays in registers.
template <int P, class Source>
BW_INLINE void multiply(const Window<uint8_t>& window, const TileSpot* spots, int64_t step, const uint8_t* panel,
                        TileSums* sums, Source source) {
  const uint8_t* x[P];
  BW_UNROLL for (int p = 0; p < P; p++) x[p] = spots[p].x;
  BW_EACH_TILE(P, BW_ZERO)
  for (int64_t ry = 0; ry < window.runs_y; ry++)
    for (int64_t rx = 0; rx < window.runs_x; rx++) {
      int64_t j = ry * window.run_y + rx * window.run_x;
      for (const int64_t end = j + window.run; j < end; j += 64, panel += TILE_BYTES) {
        source.next();
        finish_stores();
        _tile_loadd(7, panel, 64);
        BW_EACH_TILE(P, BW_PRODUCT)
      }
    }
  BW_EACH_TILE(P, BW_STORE)
}

struct NoSource {
  BW_INLINE void next() {}
};

template <class Source>
inline void multiply_any(int64_t tiles, const Window<uint8_t>& window, const TileSpot* spots, int64_t step,
                         const uint8_t* panel, TileSums* sums, Source source) {
  switch (tiles) {
    case 1: return multiply<1>(window, spots, step, panel, sums, source);
    case 2: return multiply<2>(window, spots, step, panel, sums, source);
    case 3: return multiply<3>(window, spots, step, panel, sums, source);
    case 4: return multiply<4>(window, spots, step, panel, sums, source);
    default: return multiply<5>(window, spots, step, panel, sums, source);
  }
}

inline int64_t tile_steps(const Window<uint8_t>& window) {
  return window.runs_y * window.runs_x * bw_ceil_div(window.run, 64);
}

// Tiles of pixels per pass. Measured: runs of more than about 110 products between two stores lose a third of their
// speed on Sapphire Rapids (why is not known); where three tiles do not fit that, more tiles still win.
inline int64_t tiles_per_pass(int64_t steps) {
  const int64_t fit = 110 / steps;
  return fit < 3 || fit > MOST_TILES ? (int64_t)MOST_TILES : fit;
}

// ---- results --------------------------------------------------------------------------------------------------

// One threshold, one plane: the constant moves into the threshold, [border classes][blocks * 16] of them, and the
// result is one comparison. Outputs beyond conv.o get a threshold no sum reaches. cuts null: no such table.
struct Cuts {
  const int32_t* cuts;
  const uint16_t* flips;
};

inline bool make_tile_cuts(const bw_conv& conv, const bw_sink& sink, Cuts* result) {
  *result = {nullptr, nullptr};
  const int64_t classes = conv.row_classes * conv.col_classes, lanes = bw_ceil_div(conv.o, 16) * 16;
  if (sink.mode != BW_WORDS || sink.levels != 1 || sink.out_planes != 1) return true;
  if (classes > conv.n * conv.oh * conv.ow) return true;  // the table would cost more than it saves
  int32_t* cuts = (int32_t*)bw_scratch(BW_SCRATCH_CUTS, (size_t)((classes * 4 + 2) * lanes));
  if (!cuts) return false;
  uint16_t* flips = (uint16_t*)(cuts + classes * lanes);
  for (int64_t i = 0; i < classes; i++) {
    for (int64_t o = 0; o < conv.o; o++) {
      const int64_t cut = (int64_t)sink.thresholds[o] - conv.corr[i * conv.o + o];
      cuts[i * lanes + o] = (int32_t)(cut < INT32_MIN ? INT32_MIN : cut > INT32_MAX ? INT32_MAX : cut);
    }
    for (int64_t o = conv.o; o < lanes; o++) cuts[i * lanes + o] = INT32_MAX;
  }
  for (int64_t b = 0; b * 16 < lanes; b++) flips[b] = flips_of(sink, b, lanes_of(conv.o, b));
  *result = {cuts, flips};
  return true;
}

inline void emit_tile(const bw_conv& conv, const bw_sink& sink, const Cuts& cuts, EmitTile emit, const TileRow* rows,
                      int64_t count, const TileSums& sums, int64_t block) {
  if (cuts.cuts) {
    const int64_t lanes = bw_ceil_div(conv.o, 16) * 16, words = bw_ceil_div(conv.o, 32);
    const bool clear = block % 2 == 0 && (block + 1) * 16 >= conv.o;  // the unused half of the last word is ours
    for (int64_t i = 0; i < count; i++) {
      const __m512i cut = _mm512_loadu_si512(cuts.cuts + rows[i].border * lanes + block * 16);
      uint16_t* out = (uint16_t*)((uint32_t*)sink.out + rows[i].pixel * words) + block;
      out[0] = (uint16_t)(_mm512_cmpge_epi32_mask(_mm512_load_si512(sums[rows[i].at]), cut) ^ cuts.flips[block]);
      if (clear) out[1] = 0;
    }
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    const int32_t* corr = conv.corr + rows[i].border * conv.o;
    emit(sink, conv.o, {rows[i].pixel, block, 1, 1, &corr, (const __m512i*)sums[rows[i].at]});
  }
}

// ---- the loop -------------------------------------------------------------------------------------------------

// A Weights has make(block): an object with `panel`, the weight tiles of sixteen outputs, and next(), which fills the
// panel tile by tile while the first pixels are multiplied (or does nothing, where it lies in memory already).
template <class Weights>
int run_amx(const bw_conv& conv, const Window<uint8_t>& window, const bw_sink& sink, const Weights& weights,
            int threads) {
  const Lines lines = choose_lines(conv, window);
  const EmitTile emit = emitter_of(sink);
  const int64_t tiles = lines.tiles(), blocks = bw_ceil_div(conv.o, 16);
  Cuts cuts;
  if (!make_tile_cuts(conv, sink, &cuts)) return bw_fail(BW_NO_MEMORY, "out of memory for the thresholds");
  // A task: some tiles of pixels, whose input stays in L2, times some blocks of outputs.
  int64_t chunk = CHUNK_TILES, share = blocks;
  if (threads > 1) {
    const int64_t wanted = 4 * threads;
    if (bw_ceil_div(tiles, chunk) < wanted) chunk = bw_ceil_div(bw_ceil_div(tiles, wanted), MOST_TILES) * MOST_TILES;
    const int64_t splits = bw_ceil_div(wanted, bw_ceil_div(tiles, chunk));
    share = bw_ceil_div(blocks, splits < blocks ? splits : blocks);
  }
  if (chunk > tiles) chunk = tiles;
  const int64_t shares = bw_ceil_div(blocks, share);
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(tiles, chunk) * shares, [&](int64_t task) {
    const int64_t first = task / shares * chunk, count = tiles - first < chunk ? tiles - first : chunk;
    TileRow* rows = (TileRow*)bw_scratch(BW_SCRATCH_ROWS, (size_t)chunk * (16 * sizeof(TileRow) + sizeof(TileSpot)));
    uint8_t* panel = (uint8_t*)bw_scratch(BW_SCRATCH_PANEL, weights.panel_bytes());
    if (!rows || !panel) return __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
    TileSpot* spots = (TileSpot*)(rows + chunk * 16);
    for (int64_t t = 0; t < count; t++) spots[t] = place_tile(conv, window, lines, first + t, rows + t * 16);
    const TileRegisters registers(lines.height);
    const int64_t passes = bw_ceil_div(count, tiles_per_pass(tile_steps(window))), last = task % shares * share + share;
    alignas(64) TileSums sums[MOST_TILES];
    for (int64_t block = task % shares * share; block < (last < blocks ? last : blocks); block++) {
      auto source = weights.make(block, panel);
      source.next();
      for (int64_t pass = 0; pass < passes; pass++) {  // passes of even size: 13 tiles are 4 + 4 + 5
        const int64_t from = pass * count / passes, to = (pass + 1) * count / passes;
        if (pass == 0) multiply_any(to - from, window, spots + from, lines.step, source.panel, sums, source);
        else multiply_any(to - from, window, spots + from, lines.step, source.panel, sums, NoSource{});
        for (int64_t t = from; t < to; t++)
          emit_tile(conv, sink, cuts, emit, rows + t * 16, spots[t].count, sums[t - from], block);
      }
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for a panel of weights") : BW_OK;
}

}  // namespace
