// AVX-512 (VPOPCNTDQ): convolution of packed bits.
//
// Lanes are output channels: a vector holds one word of K for sixteen of them, the input word is broadcast, so
// there is no horizontal sum and the epilogue is one vector. A word holds up to 32 channels of a tap, or up to 16 of
// two taps (avx512_pairs.h). XOR instead of AND: from
//     2 popcount(w & x) = popcount(w) + popcount(x) - popcount(w ^ x)
// twice the result is  sum_pq k_pq (popcount(w_q) - popcount(w_q ^ x_p)) + spare * sum_p x_mult[p] popcount(x_p)
// with k_pq = x_mult[p] w_mult[q] and spare = 2 w_zero + sum_q w_mult[q]. Zero padding is zero words. Grids that
// are symmetric about zero (sign, ternary, odd levels) have spare = 0: then popcount(x) is never needed, and XOR
// allows the carry-save form below.
#pragma once
#include "avx512_pairs.h"
#include "avx512_tiles.h"

namespace {

// ---- weights: popcounts [blocks][w_planes][16] int32, then words [blocks][w_planes][K][16] --------------------

inline int64_t lanes_k(const bw_conv& conv) {
  return lanes_paired(conv) ? lanes_pairs(conv) : conv.kh * conv.kw * bw_ceil_div(conv.c, 32);
}
inline int64_t lanes_blocks(const bw_conv& conv) { return bw_ceil_div(conv.o, 16); }

inline int64_t lanes_bits_size(const bw_conv& conv) {
  return lanes_blocks(conv) * conv.w_planes * (lanes_k(conv) + 1) * 64;
}

inline void lanes_bits_weights(const bw_conv& conv, const uint8_t* bits, void* body) {
  const int64_t taps = conv.kh * conv.kw, words = bw_ceil_div(conv.c, 32), k = lanes_k(conv);
  const bool paired = lanes_paired(conv);
  int32_t* counts = (int32_t*)body;
  uint32_t* packed = (uint32_t*)body + lanes_blocks(conv) * conv.w_planes * 16;
  memset(body, 0, (size_t)lanes_bits_size(conv));
  for (int64_t q = 0; q < conv.w_planes; q++)
    for (int64_t o = 0; o < conv.o; o++) {
      const int64_t row = o / 16 * conv.w_planes + q;
      for (int64_t c = 0; c < conv.c; c++)
        for (int64_t tap = 0; tap < taps; tap++)
          if (*bits++) {
            const PairedTap at = paired ? paired_tap(conv, tap) : PairedTap{tap * words + c / 32, 0};
            packed[(row * k + at.word) * 16 + o % 16] |= 1u << (at.shift + c % 32);
            counts[row * 16 + o % 16]++;
          }
    }
}

// The doubled result must fit int32 whatever the data.
inline bool lanes_bits_fit(const bw_conv& conv) {
  double w = 0, x = 0, zero = (double)conv.w_zero;
  for (int64_t q = 0; q < conv.w_planes; q++) w += conv.w_mult[q] < 0 ? -(double)conv.w_mult[q] : conv.w_mult[q];
  for (int64_t p = 0; p < conv.x_planes; p++) x += conv.x_mult[p] < 0 ? -(double)conv.x_mult[p] : conv.x_mult[p];
  return 2 * x * (w + (zero < 0 ? -zero : zero)) * (double)lanes_k(conv) * 32 < 2147483647.0;
}

// ---- popcount(w ^ x) for P pixels and C vectors of channels ---------------------------------------------------

// maj(a, b, c) of a = s0, b = s0 ^ s1, c = s1 ^ s2, as a ternary-logic table
constexpr int carry_table() {
  int table = 0;
  for (int i = 0; i < 8; i++) {
    const int s0 = i >> 2 & 1, s1 = i >> 1 & 1, s2 = i & 1;
    if (s0 + (s0 ^ s1) + (s1 ^ s2) >= 2) table |= 1 << i;
  }
  return table;
}

// Written down, because the compiler copies accumulators and reads weights again, which takes one cycle in 24.
BW_INLINE void add_differing(__m512i& count, __m512i x, __m512i w) {
  __m512i bits;
  asm("vpxord %3, %2, %1\n\tvpopcntd %1, %1\n\tvpaddd %1, %0, %0" : "+v"(count), "=&v"(bits) : "v"(x), "v"(w));
}

// first: the counts are written, not added to.
template <int P, int C>
BW_INLINE void xor_counts(const Places& words, const uint32_t* const (&x)[P], const uint32_t* w, int64_t w_step,
                          __m512i (&count)[P][C], bool first = true) {
  const int32_t *at = words.place, *const end = at + words.count;
  __m512i wv[C];
  if (first) {
    BW_UNROLL for (int c = 0; c < C; c++) wv[c] = _mm512_load_si512(w + c * w_step);
    BW_UNROLL for (int p = 0; p < P; p++) {
      const __m512i xv = _mm512_set1_epi32((int)x[p][*at]);
      BW_UNROLL for (int c = 0; c < C; c++) count[p][c] = _mm512_popcnt_epi32(_mm512_xor_si512(xv, wv[c]));
    }
    at++, w += 16;
  }
  for (; at < end; at++, w += 16) {
    const int64_t j = *at;
    BW_UNROLL for (int c = 0; c < C; c++) wv[c] = _mm512_load_si512(w + c * w_step);
    BW_UNROLL for (int p = 0; p < P; p++) {
      const __m512i xv = _mm512_set1_epi32((int)x[p][j]);
      BW_UNROLL for (int c = 0; c < C; c++) add_differing(count[p][c], xv, wv[c]);
    }
  }
}

// Carry-save form: `odd` holds the parity of the bits so far, and two words at a time make one carry word worth 2.
// With the running parities s0, s1 = s0 ^ x0 ^ w0, s2 = s1 ^ x1 ^ w1 the carry is a function of the three: four
// instructions and one popcount for two words instead of six with two. Pays where popcount has one port (Intel).
template <int P, int C>
BW_INLINE void xor_counts_carry(const Places& words, const uint32_t* const (&x)[P], const uint32_t* w, int64_t w_step,
                                __m512i (&count)[P][C]) {
  __m512i odd[P][C];
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) count[p][c] = odd[p][c] = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 2 <= words.count; i += 2, w += 32) {
    const int64_t j0 = words.place[i], j1 = words.place[i + 1];
    __m512i w0[C], w1[C];
    BW_UNROLL for (int c = 0; c < C; c++)
      w0[c] = _mm512_load_si512(w + c * w_step), w1[c] = _mm512_load_si512(w + c * w_step + 16);
    BW_UNROLL for (int p = 0; p < P; p++) {
      const __m512i x0 = _mm512_set1_epi32((int)x[p][j0]), x1 = _mm512_set1_epi32((int)x[p][j1]);
      BW_UNROLL for (int c = 0; c < C; c++) {
        const __m512i s0 = odd[p][c], s1 = _mm512_ternarylogic_epi32(s0, x0, w0[c], 0x96);
        const __m512i s2 = _mm512_ternarylogic_epi32(s1, x1, w1[c], 0x96);
        const __m512i carry = _mm512_ternarylogic_epi32(s0, s1, s2, carry_table());
        odd[p][c] = s2;
        count[p][c] = _mm512_add_epi32(count[p][c], _mm512_popcnt_epi32(carry));
      }
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) count[p][c] = _mm512_slli_epi32(count[p][c], 1);
  if (i < words.count) {  // an odd word: the parities and this word are counted together
    const int64_t j = words.place[i];
    BW_UNROLL for (int c = 0; c < C; c++) {
      const __m512i wv = _mm512_load_si512(w + c * w_step);
      BW_UNROLL for (int p = 0; p < P; p++)
        count[p][c] = _mm512_add_epi32(count[p][c], _mm512_popcnt_epi32(_mm512_xor_si512(_mm512_set1_epi32((int)x[p][j]), wv)));
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) count[p][c] = _mm512_add_epi32(count[p][c], _mm512_popcnt_epi32(odd[p][c]));
}

inline int64_t window_popcount(const Places& words, const uint32_t* x) {
  int64_t total = 0;
  for (int64_t i = 0; i < words.count; i++) total += __builtin_popcount(x[words.place[i]]);
  return total;
}

// ---- one tile: P pixels x 16 C channels ----------------------------------------------------------------------

struct BitsCall {
  const bw_conv& conv;
  const bw_sink& sink;
  Window<uint32_t> window;
  Places window_words;
  const int32_t* counts;
  const uint32_t* words;
  int64_t spare;
  const int32_t* cuts;    // see make_cuts; null: the general epilogue
  const uint16_t* flips;
  int shift;              // of half a product of the lowest planes, see doubling_tile; -1: the general sum
};

template <class Emit>
struct BitsJob : BitsCall {
  typedef uint32_t element;
  Emit emit;
  BitsJob(const BitsCall& call, Emit emit) : BitsCall(call), emit(emit) {}
  template <int P, int C, bool CARRY>
  BW_INLINE void tile(Walk<uint32_t>& walk, int64_t pixel, int64_t block) const;
};

// One plane each and one threshold, the body of a binary network: the threshold is moved to the popcount, so the
// epilogue is one comparison. With factor = 2**shift,
//   (factor (all - count)) / 2 + corr >= t   <=>   count <= all - ceil(2 (t - corr) / factor) = cut.
// cuts [border classes][blocks * 16]; lanes beyond the channels get -1, which no count reaches: bit 0.
inline bool make_cuts(BitsCall& job) {
  const bw_conv& conv = job.conv;
  const bw_sink& sink = job.sink;
  const int64_t factor = (int64_t)conv.x_mult[0] * conv.w_mult[0];
  if (sink.mode != BW_WORDS || sink.levels != 1 || sink.out_planes != 1 || conv.x_planes != 1 ||
      conv.w_planes != 1 || job.spare || factor <= 0 || (factor & (factor - 1)))
    return true;
  const int64_t classes = conv.row_classes * conv.col_classes, lanes = lanes_blocks(conv) * 16;
  if (classes > conv.n * conv.oh * conv.ow) return true;  // the table would cost more than it saves
  int32_t* cuts = (int32_t*)bw_scratch(BW_SCRATCH_CUTS, (size_t)((classes * 4 + 2) * lanes));
  if (!cuts) return false;
  uint16_t* flips = (uint16_t*)(cuts + classes * lanes);
  const int shift = __builtin_ctzll((uint64_t)factor);
  const int64_t most = (int64_t)1 << 30;
  for (int64_t i = 0; i < classes; i++) {
    const int32_t* corr = conv.corr + i * conv.o;
    int32_t* row = cuts + i * lanes;
    for (int64_t o = 0; o < conv.o; o++) {
      const int64_t twice = 2 * ((int64_t)sink.thresholds[o] - corr[o]);
      const int64_t cut = job.counts[o] - ((twice + factor - 1) >> shift);
      row[o] = (int32_t)(cut < -1 ? -1 : cut > most ? most : cut);
    }
    for (int64_t o = conv.o; o < lanes; o++) row[o] = -1;
  }
  for (int64_t b = 0; b * 16 < lanes; b++) flips[b] = flips_of(sink, b, lanes_of(conv.o, b));
  job.cuts = cuts, job.flips = flips;
  return true;
}

template <int P, int C, bool CARRY>
BW_INLINE void sign_tile(const BitsCall& job, Walk<uint32_t>& walk, int64_t pixel, int64_t block) {
  const int64_t k = lanes_k(job.conv), lanes = lanes_blocks(job.conv) * 16, words = bw_ceil_div(job.conv.o, 32);
  const uint32_t* x[P];
  const int32_t* cut[P];
  BW_UNROLL for (int p = 0; p < P; p++)
    x[p] = walk.address(), cut[p] = job.cuts + walk.border() * lanes + block * 16, walk.next();
  __m512i count[P][C];
  const uint32_t* w = job.words + block * k * 16;
  if (CARRY) xor_counts_carry<P, C>(job.window_words, x, w, k * 16, count);
  else xor_counts<P, C>(job.window_words, x, w, k * 16, count);
  uint64_t flips = 0;
  BW_UNROLL for (int c = 0; c < C; c++) flips |= (uint64_t)job.flips[block + c] << 16 * c;
  uint32_t* out = (uint32_t*)job.sink.out + pixel * words;
  BW_UNROLL for (int p = 0; p < P; p++, out += words) {
    __mmask16 low[C];
    BW_UNROLL for (int c = 0; c < C; c++) low[c] = _mm512_cmple_epi32_mask(count[p][c], _mm512_loadu_si512(cut[p] + c * 16));
    store_halves(out, job.conv.o, block, C, joined_masks(low) ^ flips);
  }
}

// One plane of weights, and planes of the input each worth twice the one before: their counts are added by Horner's rule, and the
// sum is (2^planes - 1) all - count, shifted.
template <int P, int C, bool CARRY, class Emit>
BW_INLINE void doubling_tile(const BitsJob<Emit>& job, Walk<uint32_t>& walk, int64_t pixel, int64_t block) {
  const int64_t k = lanes_k(job.conv), planes = job.conv.x_planes, plane_words = bw_ceil_div(job.conv.c, 32);
  const uint32_t* x[P];
  const int32_t* corr[P];
  BW_UNROLL for (int p = 0; p < P; p++)
    x[p] = walk.address() + (planes - 1) * plane_words, corr[p] = walk.corr(), walk.next();
  __m512i count[P][C];
  const uint32_t* w = job.words + block * k * 16;
  if (CARRY) xor_counts_carry<P, C>(job.window_words, x, w, k * 16, count);
  else xor_counts<P, C>(job.window_words, x, w, k * 16, count);
  for (int64_t plane = planes - 1; plane > 0; plane--) {
    BW_UNROLL for (int p = 0; p < P; p++) x[p] -= plane_words;
    BW_UNROLL for (int p = 0; p < P; p++)
      BW_UNROLL for (int c = 0; c < C; c++) count[p][c] = _mm512_slli_epi32(count[p][c], 1);
    if (CARRY) {
      __m512i more[P][C];
      xor_counts_carry<P, C>(job.window_words, x, w, k * 16, more);
      BW_UNROLL for (int p = 0; p < P; p++)
        BW_UNROLL for (int c = 0; c < C; c++) count[p][c] = _mm512_add_epi32(count[p][c], more[p][c]);
    } else {
      xor_counts<P, C>(job.window_words, x, w, k * 16, count, false);
    }
  }
  const __m128i shift = _mm_cvtsi32_si128(job.shift), doubled = _mm_cvtsi64_si128(planes);
  BW_UNROLL for (int c = 0; c < C; c++) {
    const __m512i one = _mm512_loadu_si512(job.counts + (block + c) * 16);
    const __m512i all = _mm512_sub_epi32(_mm512_sll_epi32(one, doubled), one);
    BW_UNROLL for (int p = 0; p < P; p++) count[p][c] = _mm512_sll_epi32(_mm512_sub_epi32(all, count[p][c]), shift);
  }
  job.emit(SumsOfTile<P, C>{job.sink, job.conv.o, pixel, block, corr, count});
}

template <class Emit>
template <int P, int C, bool CARRY>
BW_INLINE void BitsJob<Emit>::tile(Walk<uint32_t>& walk, int64_t pixel, int64_t block) const {
  const int64_t k = lanes_k(conv), w_step = conv.w_planes * k * 16, plane_words = bw_ceil_div(conv.c, 32);
  if constexpr (Emit::DIRECT) return doubling_tile<P, C, CARRY>(*this, walk, pixel, block);
  if (cuts) return sign_tile<P, C, CARRY>(*this, walk, pixel, block);
  if (shift >= 0) return doubling_tile<P, C, CARRY>(*this, walk, pixel, block);
  const uint32_t* x[P];
  const int32_t* corr[P];
  BW_UNROLL for (int p = 0; p < P; p++) x[p] = walk.address(), corr[p] = walk.corr(), walk.next();
  __m512i total[P][C], count[P][C];
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) total[p][c] = _mm512_setzero_si512();
  for (int64_t q = 0; q < conv.w_planes; q++) {
    const uint32_t* w = words + block * w_step + q * k * 16;
    for (int64_t a = 0; a < conv.x_planes; a++) {
      const uint32_t* plane[P];
      BW_UNROLL for (int p = 0; p < P; p++) plane[p] = x[p] + a * plane_words;
      if (CARRY) xor_counts_carry<P, C>(window_words, plane, w, w_step, count);
      else xor_counts<P, C>(window_words, plane, w, w_step, count);
      const __m512i factor = _mm512_set1_epi32(conv.x_mult[a] * conv.w_mult[q]);
      BW_UNROLL for (int c = 0; c < C; c++) {
        const __m512i all = _mm512_loadu_si512(counts + ((block + c) * conv.w_planes + q) * 16);
        BW_UNROLL for (int p = 0; p < P; p++)
          total[p][c] = _mm512_add_epi32(total[p][c], _mm512_mullo_epi32(factor, _mm512_sub_epi32(all, count[p][c])));
      }
    }
  }
  BW_UNROLL for (int p = 0; p < P; p++) {
    int64_t extra = 0;
    if (spare)
      for (int64_t a = 0; a < conv.x_planes; a++)
        extra += conv.x_mult[a] * window_popcount(window_words, x[p] + a * plane_words);
    const __m512i shared = _mm512_set1_epi32((int)(extra * spare));
    BW_UNROLL for (int c = 0; c < C; c++) total[p][c] = _mm512_srai_epi32(_mm512_add_epi32(total[p][c], shared), 1);
  }
  emit(SumsOfTile<P, C>{sink, conv.o, pixel, block, corr, total});
}

// Measured, here and on Sapphire Rapids: Zen counts bits on two ports and is best with the plain 4 x 4
// tile; Intel has one such port and wins with carry-save, which takes a second register per accumulator.
// Weights of 4 x 16 outputs that outgrow the first cache are taken by 2 x 16.
template <class Job>
TileChoice<Job> choose_tile(int64_t pixels, int64_t words) {
  if (pixels < 4) return {strip<Job, 1, 4, false>, nullptr, strip<Job, 1, 1, false>, 4, 1};
  if (bw_cpu_is_amd() && words > 112) return {strip<Job, 8, 2, false>, nullptr, strip<Job, 8, 1, false>, 2, 8};
  if (bw_cpu_is_amd()) return {strip<Job, 4, 4, false>, strip<Job, 8, 2, false>, strip<Job, 8, 1, false>, 4, 4};
  return {strip<Job, 4, 2, true>, nullptr, strip<Job, 7, 1, true>, 2, 4};
}

inline int doubling_shift(const bw_conv& conv, int64_t spare) {
  if (conv.w_planes != 1 || spare) return -1;
  for (int64_t a = 1; a < conv.x_planes; a++)
    if (conv.x_mult[a] != conv.x_mult[a - 1] * 2) return -1;
  const int64_t factor = (int64_t)conv.x_mult[0] * conv.w_mult[0];
  return factor < 2 || (factor & (factor - 1)) ? -1 : __builtin_ctzll((uint64_t)factor) - 1;
}

// The window of `images` and the places of its words. False: no memory.
inline bool bits_window(const bw_conv& images, const uint32_t* x, int threads, Window<uint32_t>* window, Places* places) {
  const int64_t words = bw_ceil_div(images.c, 32);
  if (lanes_paired(images)) return make_pairs(images, x, threads, window, places);
  return make_window(images, x, images.x_planes * words, words, false, true, threads, window) &&
         make_places(*window, 1, lanes_k(images), places);
}

// Images whose copies stay in the second cache while they are read.
inline int64_t bits_images(const bw_conv& conv) {
  const int64_t words = bw_ceil_div(conv.c, 32) * conv.x_planes * (lanes_paired(conv) ? 3 : 1);
  const int64_t bytes = (conv.h + 2 * conv.pad_h) * (conv.w + 2 * conv.pad_w) * words * 4, room = 256 << 10;
  return bytes < room ? room / bytes : 1;
}

inline int lanes_conv_bits(const bw_conv& conv, const uint32_t* x, const void* body, const bw_sink& sink, int threads) {
  const int64_t image = conv.h * conv.w * conv.x_planes * bw_ceil_div(conv.c, 32), pixels = conv.oh * conv.ow;
  int64_t spare = 2 * conv.w_zero;
  for (int64_t q = 0; q < conv.w_planes; q++) spare += conv.w_mult[q];
  const int32_t* counts = (const int32_t*)body;
  const uint32_t* packed = (const uint32_t*)body + lanes_blocks(conv) * conv.w_planes * 16;
  const auto run = [&](const bw_sink& to, int nt) {
    BitsCall call = {conv, to, {}, {}, counts, packed, spare, nullptr, nullptr, doubling_shift(conv, spare)};
    if (!make_cuts(call)) return bw_fail(BW_NO_MEMORY, "out of memory for the thresholds");
    bw_conv some = conv;
    for (int64_t first = 0; first < conv.n; first += some.n) {
      const int64_t most = bits_images(conv), left = conv.n - first;
      some.n = left < most ? left : most;
      if (!bits_window(some, x + first * image, nt, &call.window, &call.window_words))
        return bw_fail(BW_NO_MEMORY, "out of memory for the padded input");
      call.window.image -= first * call.window.step_n;  // tiles count the pixels of all images
      const auto tiles = [&](auto emit) {
        typedef BitsJob<decltype(emit)> Job;
        run_tiles(Job(call, emit), choose_tile<Job>(some.n * pixels, lanes_k(conv)), nt, first * pixels, (first + some.n) * pixels);
      };
      call.cuts || call.shift < 0 ? tiles(EmitAny{emitter_of(to)}) : with_emitter_of_bits(to, tiles);
    }
    return (int)BW_OK;
  };
  if (!plain_words(sink, conv.o)) return emit_in_two_steps(conv, sink, threads, run);
  return run(sink, threads);
}

}  // namespace
