// AMX: convolution of packed bits as a product of bytes. Input and weights stay packed in memory (the layout is the
// one of avx512_bits.h); the input is unpacked once per call, each weight tile just before its first use, hidden
// behind the products. X = sum_p x_mult[p] bit_p must fit an unsigned, W a signed byte. Zero padding is zero bytes.
#pragma once
#include "amx_tiles.h"
#include "avx512_bits.h"

namespace {

// Multipliers of one sign can be made positive: X W = (-X)(-W).
inline bool tiles_negate(const bw_conv& conv) { return conv.x_mult[0] < 0; }

inline bool tiles_bits_fit(const bw_conv& conv) {
  int64_t x = 0, low = conv.w_zero, high = conv.w_zero;
  for (int64_t p = 0; p < conv.x_planes; p++) {
    const int64_t mult = tiles_negate(conv) ? -(int64_t)conv.x_mult[p] : conv.x_mult[p];
    if (mult < 0) return false;
    x += mult;
  }
  for (int64_t q = 0; q < conv.w_planes; q++) (conv.w_mult[q] < 0 ? low : high) += conv.w_mult[q];
  return x <= 255 && low >= -127 && high <= 127;
}

// Is unpacking and multiplying bytes faster than counting bits? Both costs in nanoseconds, fitted to a Sapphire
// Rapids core; what both do (results) is left out.
//   counting  0.37 for 16 outputs x one word x one pair of planes
//   tiles     tile_cost for each, 3.5 more where the pixels of a pass overflow L1 and no taps share them (a linear
//             layer); 15 (and 8 per further plane) to unpack a weight tile; 1 per word of input; 500 to start
// A tie goes to counting, which needs no unpacked copy of the input.
inline bool tiles_bits_pay(const bw_conv& conv, const Lines& lines, const Window<uint8_t>& window) {
  const double pixels = (double)(conv.n * conv.oh * conv.ow), blocks = (double)lanes_blocks(conv);
  const double counting = pixels * blocks * (double)lanes_k(conv) * 0.37 * (double)(conv.x_planes * conv.w_planes);
  const double area = (double)(conv.n * (conv.h + 2 * conv.pad_h) * (conv.w + 2 * conv.pad_w));
  const double input = area * (double)(bw_ceil_div(conv.c, 32) * conv.x_planes);
  const int64_t steps = tile_steps(window), pass = tiles_per_pass(steps), tiles = lines.tiles();
  const bool shared = conv.kh * conv.kw > 1 && (conv.stride_h < conv.kh || conv.stride_w < conv.kw);
  const bool overflow = !shared && (tiles < pass ? tiles : pass) * 1024 * steps > 32 << 10;
  const double one = tile_cost(lines.height) + (overflow ? 3.5 : 0.0);
  const double unpack = (double)bw_ceil_div(tiles, CHUNK_TILES) * (15.0 + 8.0 * (double)(conv.w_planes - 1));
  const double bytes = blocks * (double)steps * ((double)tiles * one + unpack) + input + 500;
  return bytes * 1.15 < counting;
}

// ---- input ----------------------------------------------------------------------------------------------------

// `count` words of each plane, planes `plane_step` words apart, to 32 bytes per word.
inline void unpack_words(const bw_conv& conv, const uint32_t* x, int64_t count, int64_t plane_step, uint8_t* out) {
  __m512i mult[BW_MAX_PLANES];
  for (int64_t p = 0; p < conv.x_planes; p++)
    mult[p] = _mm512_set1_epi8((char)(tiles_negate(conv) ? -conv.x_mult[p] : conv.x_mult[p]));
  for (int64_t j = 0; j < count; j += 2) {
    const bool both = j + 2 <= count;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t p = 0; p < conv.x_planes; p++) {
      uint64_t bits = 0;
      memcpy(&bits, x + p * plane_step + j, both ? 8 : 4);
      sum = _mm512_mask_add_epi8(sum, bits, sum, mult[p]);
    }
    if (both) _mm512_storeu_si512(out + j * 32, sum);
    else _mm256_storeu_si256((__m256i*)(out + j * 32), _mm512_castsi512_si256(sum));
  }
}

inline const uint8_t* unpack_image(const bw_conv& conv, const uint32_t* x, int threads) {
  const int64_t words = bw_ceil_div(conv.c, 32), planes = conv.x_planes;
  return bordered<uint8_t>(conv, words * 32, threads, [&](uint8_t* to, int64_t y) {
    const uint32_t* row = x + y * conv.w * planes * words;
    if (planes == 1) return unpack_words(conv, row, conv.w * words, 0, to);  // pixels touch
    for (int64_t i = 0; i < conv.w; i++) unpack_words(conv, row + i * planes * words, words, words, to + i * words * 32);
  });
}

// ---- weights --------------------------------------------------------------------------------------------------

// Row r of a tile takes bits 4r..4r+3 of each output's word; a 64-bit lane holds the words of two outputs.
struct Picks {
  alignas(64) uint8_t at[8][64] = {};
  constexpr Picks() {
    for (int r = 0; r < 8; r++)
      for (int i = 0; i < 64; i++) at[r][i] = (uint8_t)(i % 8 / 4 * 32 + r * 4 + i % 4);
  }
};
constexpr Picks picks;

// Unpacks the weight tiles of sixteen outputs in order, one per call, up to two words of K each: a run of an odd
// number of words ends with half a tile of zeros.
struct BitPanel {
  uint8_t* panel;
  uint8_t* to;
  const uint32_t* words;      // [w_planes][K][16]
  int64_t k, planes, run, left, tiles;
  int32_t zero;
  int32_t mult[BW_MAX_PLANES];

  BW_INLINE void half(const uint32_t* from, uint8_t* out) const {
    __m512i rows[8];
    BW_UNROLL for (int r = 0; r < 8; r++) rows[r] = _mm512_set1_epi8((char)zero);
    for (int64_t q = 0; q < planes; q++) {
      const __m512i bits = _mm512_load_si512(from + q * k * 16), value = _mm512_set1_epi8((char)mult[q]);
      BW_UNROLL for (int r = 0; r < 8; r++) {
        const __mmask64 ones = _mm512_bitshuffle_epi64_mask(bits, _mm512_load_si512(picks.at[r]));
        rows[r] = _mm512_mask_add_epi8(rows[r], ones, rows[r], value);
      }
    }
    BW_UNROLL for (int r = 0; r < 8; r++) _mm512_store_si512(out + r * 64, rows[r]);
  }
  BW_INLINE void next() {
    if (!tiles) return;
    tiles--;
    half(words, to);
    if (left > 1) {
      half(words + 16, to + 512), words += 32, left -= 2;
    } else {
      BW_UNROLL for (int r = 8; r < 16; r++) _mm512_store_si512(to + r * 64, _mm512_setzero_si512());
      words += 16, left = 0;
    }
    if (!left) left = run;
    to += TILE_BYTES;
  }
};

struct BitWeights {
  const bw_conv& conv;
  const uint32_t* words;
  int64_t run, tiles;
  size_t panel_bytes() const { return (size_t)tiles * TILE_BYTES; }
  BitPanel make(int64_t block, uint8_t* panel) const {
    const int64_t k = lanes_k(conv), sign = tiles_negate(conv) ? -1 : 1;
    const uint32_t* from = words + block * conv.w_planes * k * 16;
    BitPanel made = {panel, panel, from, k, conv.w_planes, run, run, tiles, (int32_t)(sign * conv.w_zero), {}};
    for (int64_t q = 0; q < conv.w_planes; q++) made.mult[q] = (int32_t)(sign * conv.w_mult[q]);
    return made;
  }
};

inline Window<uint8_t> tiles_bits_window(const bw_conv& conv) {  // without the image
  const int64_t pixel = bw_ceil_div(conv.c, 32) * 32;
  Window<uint8_t> window;
  set_window<uint8_t>(conv, nullptr, pixel, pixel, true, &window);
  return window;
}

inline int tiles_conv_bits(const bw_conv& conv, const uint32_t* x, const void* body, const bw_sink& sink, int threads) {
  Window<uint8_t> window = tiles_bits_window(conv);
  window.image = unpack_image(conv, x, threads);
  if (!window.image) return bw_fail(BW_NO_MEMORY, "out of memory for the unpacked input");
  const uint32_t* words = (const uint32_t*)body + lanes_blocks(conv) * conv.w_planes * 16;
  const BitWeights weights = {conv, words, window.run / 32, tile_steps(window)};
  return run_amx(conv, window, sink, weights, threads);
}

}  // namespace
