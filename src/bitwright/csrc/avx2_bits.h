// AVX2: convolutions of bits by look-ups. This instruction set cannot count bits, but it can look 32 bytes up at once. The sums of four
// inputs of one to four bits for each choice of four weight bits are a table of 16 bytes, made once for each place of the image; four
// weight bits of an output are an index into it. A look-up and an addition so stand for 4 x 32 products whatever the input's bits
// are, and a plane of the weight's bits costs one pass. Inputs of five to eight bits have two such tables, for their lower four bits
// and for the rest.
//
// A unit is 16 inputs: 4 tables, two registers. A vector of weights holds 16 outputs: half a byte for each pair of tables, the lower
// lane for the first table of a pair, the upper one for the second. Output i < 8 lies in byte 2 i of a lane, output 8 + i in 2 i + 1.
// Sums are bytes first, which `flush` units cannot overflow, then 16 bits, to the end where the layer's sums fit (avx2_narrow.h), else 32.
//
// A tile is 4 rows of tables (4 pixels, or both tables of 2 pixels) x 32 outputs; per unit (2,048 products) 12 loads, 6 operations for
// the indices, 16 look-ups, 16 additions. Zen 3 starts two look-ups a cycle. Inputs of four bits and more move their bytes on after every
// fourth look-up, in four operations for each sum.
#pragma once
#include "avx2_chunks.h"

namespace {

const int64_t UNIT = 16, UNIT_TABLES = 64;           // inputs; bytes of their tables
const int64_t LOOKUP_PLANES = 4;                     // bits of an input that a table holds: sums of four are 60 at most, a byte holds four of them
const int64_t TABLES_ROOM = 256 << 10;               // of the images that are done together: their tables stay in the second cache

inline int64_t lookup_units(const bw_conv& conv) { return conv.kh * conv.kw * bw_ceil_div(conv.c, UNIT); }
inline int64_t lookup_halves(const bw_conv& conv) { return bw_ceil_div(conv.x_planes, LOOKUP_PLANES); }
inline int64_t lookup_largest(const bw_conv& conv) { return 4 * ((1 << (conv.x_planes < LOOKUP_PLANES ? conv.x_planes : LOOKUP_PLANES)) - 1); }

inline bool lookups_fit(const bw_conv& conv) {
  if (conv.groups != 1 || conv.x_planes > 2 * LOOKUP_PLANES) return false;
  for (int64_t p = 1; p < conv.x_planes; p++)
    if (conv.x_mult[p] != conv.x_mult[0] * (1 << p)) return false;
  return true;
}

// Inputs of one or two bits, and weights that lie evenly about 0: equal bits are counted, and what is equal for any input is the same
// number for all pixels. Of two bits, those of the higher plane count twice: a weight's bit 1 adds the input, 0 what the input lacks of 3.
inline bool lookups_match(const bw_conv& conv) {
  int64_t sum = 2 * conv.w_zero, odd = 0;
  for (int64_t q = 0; q < conv.w_planes; q++) sum += conv.w_mult[q], odd |= conv.w_mult[q] * conv.x_mult[0] & 1;
  return conv.x_planes <= 2 && !sum && !odd;
}

inline int64_t largest_weight_of(const bw_conv& conv) {  // without sign
  int64_t low = conv.w_zero, high = conv.w_zero;
  for (int64_t q = 0; q < conv.w_planes; q++) (conv.w_mult[q] < 0 ? low : high) += conv.w_mult[q];
  return high > -low ? high : -low;
}
inline bool fits_16_bits(const bw_conv& conv) {  // of the sums that fit, what is on the way to them may be modulo 65536
  const int64_t input = (conv.x_mult[0] < 0 ? -conv.x_mult[0] : conv.x_mult[0]) * ((1 << conv.x_planes) - 1);
  return conv.kh * conv.kw * conv.c * largest_weight_of(conv) * input <= NARROW_MOST;
}

// Ternary weights have a plane that adds and one that subtracts as much. The second is kept the other way round: where its bit is not set
// it adds, and all weights are less by that. So both planes are looked up in a table that is loaded once, and their bytes added.
inline bool planes_alike(const bw_conv& conv) {
  return conv.w_planes == 2 && conv.x_planes >= LOOKUP_PLANES && (conv.w_mult[1] == -conv.w_mult[0] || conv.w_mult[1] == conv.w_mult[0]);
}
inline bool second_turned(const bw_conv& conv) { return planes_alike(conv) && conv.w_mult[1] != conv.w_mult[0]; }
struct PlanesAsKept {
  bw_conv conv;
  int32_t mult[2];
  explicit PlanesAsKept(const bw_conv& given) : conv(given) {
    if (!second_turned(given)) return;
    mult[0] = mult[1] = given.w_mult[0];
    conv.w_mult = mult, conv.w_zero += given.w_mult[1];
  }
};

inline int64_t lookups_planes(const bw_conv& conv) { return bw_ceil_div(conv.o, 32) * 2 * conv.w_planes * lookup_units(conv) * 32; }
inline int64_t lookups_size(const bw_conv& conv) { return lookups_planes(conv) + bw_ceil_div(conv.o, 32) * 32 * 2; }

// [16 outputs][w_planes][units][32], then what is to be added to the equal bits of each output, in 16 bits
inline void lookups_weights(const bw_conv& conv, const uint8_t* bits, void* body) {
  const int64_t taps = conv.kh * conv.kw, units = lookup_units(conv), of_tap = bw_ceil_div(conv.c, UNIT);
  uint8_t* const packed = (uint8_t*)body;
  int16_t* const rest = (int16_t*)(packed + lookups_planes(conv));
  const bool matched = lookups_match(conv);
  memset(body, 0, (size_t)lookups_size(conv));
  for (int64_t q = 0; q < conv.w_planes; q++)
    for (int64_t o = 0; o < conv.o; o++) {
      const uint8_t no = q && second_turned(conv) ? 1 : 0;
      const int64_t i = o % 16, place = i < 8 ? 2 * i : 2 * (i - 8) + 1;
      uint8_t* const to = packed + ((o / 16 * conv.w_planes + q) * units) * 32 + place;
      int64_t on = 0;
      for (int64_t c = 0; c < conv.c; c++)
        for (int64_t tap = 0; tap < taps; tap++)
          if ((*bits++ != 0) != no) to[(tap * of_tap + c / UNIT) * 32 + c / 4 % 2 * 16] |= (uint8_t)(1 << (c % 4 + c / 8 % 2 * 4)), on++;
      const int64_t largest = (1 << conv.x_planes) - 1;
      if (matched) rest[o] = (int16_t)(rest[o] + conv.w_mult[q] * conv.x_mult[0] / 2 * largest * (on - units * UNIT));
    }
}

struct alignas(64) BitCounts {  // of[e][n]: bits that e and n have in common
  uint8_t of[16][16];
};
constexpr BitCounts bit_counts() {
  BitCounts made = {};
  for (int e = 0; e < 16; e++)
    for (int n = 0; n < 16; n++)
      for (int bit = 0; bit < 4; bit++) made.of[e][n] = (uint8_t)(made.of[e][n] + (e >> bit & n >> bit & 1));
  return made;
}
constexpr BitCounts BIT_COUNTS = bit_counts();

struct alignas(64) PairCounts {  // of[16 * e + f][n]: bits that f and n have in common, and e and n times `upper`
  uint8_t of[256][16];
};
constexpr PairCounts pair_counts(int upper, bool equal) {  // and those that neither has
  PairCounts made = {};
  for (int e = 0; e < 256; e++)
    for (int n = 0; n < 16; n++) {
      const int low = BIT_COUNTS.of[e & 15][n] + (equal ? BIT_COUNTS.of[~e & 15][~n & 15] : 0);
      const int high = BIT_COUNTS.of[e >> 4][n] + (equal ? BIT_COUNTS.of[~e >> 4 & 15][~n & 15] : 0);
      made.of[e][n] = (uint8_t)(low + upper * high);
    }
  return made;
}
constexpr PairCounts CODE_COUNTS = pair_counts(2, false), CODE_MATCHES = pair_counts(2, true);

// The tables of a pixel of two rows, or of two planes; one that is not there: zeros.
template <bool FIRST, bool SECOND>
BW_INLINE void pair_tables(const PairCounts& counts, int64_t units, const uint32_t* first, const uint32_t* second, uint8_t* tables) {
  for (int64_t u = 0; u < units; u++, tables += UNIT_TABLES) {
    uint16_t a = 0, b = 0;
    if (FIRST) memcpy(&a, (const uint16_t*)first + u, 2);
    if (SECOND) memcpy(&b, (const uint16_t*)second + u, 2);
    const uint32_t even = (a & 0x0f0f) | (b & 0x0f0f) << 4, odd = (a & 0xf0f0) >> 4 | (b & 0xf0f0);
    const auto put = [&](int at, uint32_t pair) { _mm_store_si128((__m128i*)(tables + at), _mm_load_si128((const __m128i*)counts.of[pair])); };
    put(0, even & 255), put(16, odd & 255), put(32, even >> 8), put(48, odd >> 8);
  }
}

// Those of `rows` rows with the border on both sides; of(i): both rows or planes of row i, whose pixels lie `step` words apart; null: zeros.
struct RowPair {
  const uint32_t *first, *second;
};
template <class Of>
void image_tables(const PairCounts& counts, const bw_conv& conv, int64_t step, int64_t rows, int threads, uint8_t* made, const Of& of) {
  const int64_t units = bw_ceil_div(conv.c, UNIT), tables = units * UNIT_TABLES;
  for_tasks(threads, rows, [&](int64_t row) {
    const RowPair pair = of(row);
    uint8_t* to = made + row * (conv.w + 2 * conv.pad_w) * tables;
    const auto zeros = [&](int64_t pixels) {
      const __m128i table = _mm_load_si128((const __m128i*)counts.of[0]);
      for (uint8_t* const end = to + pixels * tables; to < end; to += 16) _mm_store_si128((__m128i*)to, table);
    };
    const auto bits = [&](auto first, auto second) {
      const uint32_t *const a = pair.first, *const b = pair.second;
      for (int64_t i = 0; i < conv.w; i++, to += tables) pair_tables<first, second>(counts, units, a + i * step, b + i * step, to);
    };
    zeros(conv.pad_w);
    if (pair.first && pair.second) bits(std::true_type(), std::true_type());
    else if (pair.first) bits(std::true_type(), std::false_type());
    else if (pair.second) bits(std::false_type(), std::true_type());
    else zeros(conv.w);
    zeros(conv.pad_w);
  });
}

// The codes of 32 inputs, a byte each.
BW_INLINE __m256i word_codes(const bw_conv& conv, const uint32_t* x) {
  const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201), spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const int64_t words = bw_ceil_div(conv.c, 32);
  __m256i code = _mm256_setzero_si256();
  for (int64_t p = 0; p < conv.x_planes; p++) {
    const __m256i each = _mm256_shuffle_epi8(_mm256_set1_epi32((int)x[p * words]), spread);
    const __m256i on = _mm256_cmpeq_epi8(_mm256_and_si256(each, bit), bit);
    code = _mm256_or_si256(code, _mm256_and_si256(on, _mm256_set1_epi8((char)(1 << p))));
  }
  return code;
}

// The tables of four numbers and of the four behind them.
BW_INLINE void two_tables(const uint8_t* numbers, uint8_t* to) {
  int64_t eight;
  memcpy(&eight, numbers, 8);
  const auto number = [&](int i, int64_t low, int64_t high) {  // in the entries with that bit; 0x80 there: nothing
    const __m256i first = _mm256_set1_epi8((char)i), second = _mm256_set1_epi8((char)(i + 4));
    const __m256i at = _mm256_or_si256(_mm256_blend_epi32(first, second, 0xf0), _mm256_setr_epi64x(low, high, low, high));
    return _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), at);
  };
  const int64_t even = 0x0080008000800080, pairs = 0x0000808000008080, fours = 0x80808080, none = (int64_t)0x8080808080808080;
  const __m256i first = _mm256_add_epi8(number(0, even, even), number(1, pairs, pairs));
  _mm256_storeu_si256((__m256i*)to, _mm256_add_epi8(first, _mm256_add_epi8(number(2, fours, fours), number(3, none, 0))));
}

// The tables of one pixel, those of the higher bits behind the others; returns the sum of its codes.
inline int32_t pixel_tables(const bw_conv& conv, const uint32_t* x, uint8_t* tables) {
  const int64_t words = bw_ceil_div(conv.c, 32), units = bw_ceil_div(conv.c, UNIT);
  int64_t sum = 0;
  if (conv.x_planes == 2) {
    pair_tables<true, true>(CODE_COUNTS, units, x, x + words, tables);
    for (int64_t word = 0; word < words; word++) sum += __builtin_popcount(x[word]) + 2 * __builtin_popcount(x[words + word]);
    return (int32_t)sum;
  }
  __m256i sums = _mm256_setzero_si256();
  for (int64_t word = 0; word < words; word++) {
    const __m256i code = word_codes(conv, x + word);
    sums = _mm256_add_epi64(sums, _mm256_sad_epu8(code, _mm256_setzero_si256()));
    for (int64_t half = 0; half < lookup_halves(conv); half++) {
      alignas(32) uint8_t digits[32];
      _mm256_store_si256((__m256i*)digits, _mm256_and_si256(half ? _mm256_srli_epi16(code, 4) : code, _mm256_set1_epi8(15)));
      uint8_t* to = tables + (half * units + 2 * word) * UNIT_TABLES;
      for (int64_t i = 0; i < (units - 2 * word < 2 ? 2 : 4); i++, to += 32) two_tables(digits + i * 8, to);
    }
  }
  alignas(32) int64_t parts[4];
  _mm256_store_si256((__m256i*)parts, sums);
  return (int32_t)(parts[0] + parts[1] + parts[2] + parts[3]);
}

struct Lookups {
  const bw_conv& conv;
  Window<uint8_t> window;
  Places units;
  const uint8_t* weights;
  const int16_t* rest;   // of each output, where equal bits are counted; else null
  const int32_t* total;  // of the window of each pixel, the sum of its codes; null: not needed
  int64_t halves, upper;  // tables of an input, and where the second lies
  int64_t flush, segment;  // units after which bytes, and 16 bits, could overflow
};

// int32 sums, or those of 16 bits, of inputs that have one table.
template <class Sum>
struct LookupJob : Lookups {
  typedef uint8_t element;
  static constexpr int64_t width = 32;
  static constexpr int pixels = TILE_PIXELS;
  static constexpr bool NARROW = sizeof(Sum) == 2;

  template <int P>
  BW_INLINE void tile(Walk<uint8_t>& walk, int64_t pixel, int64_t block, Sum* sums, int64_t stride) const {
    const uint8_t* x[P];
    BW_UNROLL for (int p = 0; p < P; p++) x[p] = walk.address(), walk.next();
    if (NARROW || halves == 1) return rows<P>(x, pixel, block, sums, stride);
    constexpr int PAIR = P > 1 ? 2 : 1;
    for (int p = 0; p < P; p += PAIR) {
      const uint8_t* both[2 * PAIR];
      BW_UNROLL for (int i = 0; i < 2 * PAIR; i++) both[i] = x[p + i / 2] + i % 2 * upper;
      rows<2 * PAIR>(both, pixel + p, block, sums + p * stride, stride);
    }
  }
  template <int R>
  BW_INLINE void rows(const uint8_t* const (&x)[R], int64_t pixel, int64_t block, Sum* sums, int64_t stride) const {
    if (conv.o - block * width > 16) vectors<R, 2>(x, pixel, block, sums, stride);
    else vectors<R, 1>(x, pixel, block, sums, stride);
  }
  template <int R, int C>
  BW_INLINE void vectors(const uint8_t* const (&x)[R], int64_t pixel, int64_t block, Sum* sums, int64_t stride) const;
};

BW_INLINE void add_product(__m256i* to, __m256i before, __m256i found, __m256i mult) {  // modulo 65536
  _mm256_store_si256(to, _mm256_add_epi16(before, _mm256_mullo_epi16(found, mult)));
}

// Of 16 outputs in order, what their bytes say in both lanes: even bytes are outputs 0 to 7.
BW_INLINE __m256i both_lanes(__m256i even, __m256i odd) {
  return _mm256_add_epi16(_mm256_blend_epi32(even, odd, 0xf0), _mm256_permute2x128_si256(even, odd, 0x21));
}

// sum += more, now: GCC would add what several turns add first, for which registers are missing.
BW_INLINE void add_bytes(__m256i& sum, __m256i more) {
  sum = _mm256_add_epi8(sum, more);
  __asm__("" : "+x"(sum));
}

// What Q planes of a unit add to the bytes; FIRST: nothing is there yet. The halves of the weights one after the other, else registers are
// missing.
template <int Q, bool FIRST, int P, int C>
BW_INLINE void lookup_unit(int64_t at, const uint8_t* const (&x)[P], const uint8_t*& w, int64_t w_step, int64_t w_plane, __m256i (&sum)[P][C]) {
  BW_UNROLL for (int half = 0; half < 2; half++) {
    __m256i index[Q][C];
    BW_UNROLL for (int i = 0; i < Q * C; i++) {
      const __m256i both = _mm256_loadu_si256((const __m256i*)(w + i / C * w_plane + i % C * w_step));
      index[i / C][i % C] = _mm256_and_si256(half ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
    }
    BW_UNROLL for (int p = 0; p < P; p++) {
      const __m256i table = _mm256_loadu_si256((const __m256i*)(x[p] + at + half * 32));
      BW_UNROLL for (int i = 0; i < Q * C; i++) {
        const __m256i found = _mm256_shuffle_epi8(table, index[i / C][i % C]);
        if (FIRST && !half && i < C) sum[p][i] = found;
        else add_bytes(sum[p][i % C], found);
      }
    }
    __asm__("" : "+r"(w));  // the weights are read again
  }
  w += 32;
}

// `even` gets those of even bytes, and 256 times those of odd ones, modulo 65536.
template <int P, int C>
BW_INLINE void move_bytes(__m256i (&sum)[P][C], __m256i (&even)[P][C], __m256i (&odd)[P][C]) {
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) {
      __asm__("" : "+x"(sum[p][c])::"memory");  // one after the other, for which registers suffice
      even[p][c] = _mm256_add_epi16(even[p][c], sum[p][c]);
      odd[p][c] = _mm256_add_epi16(odd[p][c], _mm256_srli_epi16(sum[p][c], 8));
    }
}

// sums: of 16 outputs, 16 bits each. A function of its own, else registers are missing. UNITS: after which bytes could overflow, 2 of a
// plane of weights or 1 of two alike; 0: after `flush` of a plane.
template <int UNITS, int P, int C>
__attribute__((noinline)) void lookup_plane(const int32_t* at, const int32_t* end, int64_t flush, const uint8_t* const (&x)[P], const uint8_t* w,
                                            int64_t w_step, int64_t w_plane, __m256i (&sums)[P][C]) {
  constexpr int Q = UNITS == 1 ? 2 : 1;
  __m256i odd[P][C];
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++) sums[p][c] = odd[p][c] = _mm256_setzero_si256();
  for (; UNITS && end - at >= UNITS; at += UNITS) {
    __m256i sum[P][C];
    lookup_unit<Q, true>(at[0], x, w, w_step, w_plane, sum);
    if (UNITS > 1) lookup_unit<Q, false>(at[1], x, w, w_step, w_plane, sum);
    move_bytes(sum, sums, odd);
  }
  while (at < end) {
    const int32_t* const stop = end - at < flush ? end : at + flush;
    __m256i sum[P][C];
    BW_UNROLL for (int p = 0; p < P; p++)
      BW_UNROLL for (int c = 0; c < C; c++) sum[p][c] = _mm256_setzero_si256();
    do lookup_unit<Q, false>(*at, x, w, w_step, w_plane, sum);
    while (++at < stop);
    move_bytes(sum, sums, odd);
  }
  BW_UNROLL for (int p = 0; p < P; p++)
    BW_UNROLL for (int c = 0; c < C; c++)
      sums[p][c] = both_lanes(_mm256_sub_epi16(sums[p][c], _mm256_slli_epi16(odd[p][c], 8)), odd[p][c]);
}

template <class Sum>
template <int R, int C>
BW_INLINE void LookupJob<Sum>::vectors(const uint8_t* const (&x)[R], int64_t pixel, int64_t block, Sum* sums, int64_t stride) const {
  const int64_t plane = units.count * 32, w_step = conv.w_planes * plane;
  int32_t others[R] = {};
  for (int r = 0; total && r < R; r++) others[r] = conv.w_zero * conv.x_mult[0] * total[pixel + r / halves];
  const bool two = planes_alike(conv);
  constexpr int any = R == 2 ? 2 : 0;  // two tables of an input are of more than four bits
  const auto lookup = two ? lookup_plane<1, R, C> : flush == 2 ? lookup_plane<2, R, C> : lookup_plane<any, R, C>;
  for (int64_t q = 0; q < conv.w_planes; q += two ? 2 : 1) {
    const uint8_t* const w = weights + block * 2 * w_step + q * plane;
    if constexpr (NARROW) {
      __m256i found[R][C];
      lookup(units.place, units.place + units.count, flush, x, w, w_step, plane, found);
      const __m256i mult = _mm256_set1_epi16((int16_t)(conv.w_mult[q] * conv.x_mult[0] / (rest ? 2 : 1)));
      BW_UNROLL for (int c = 0; c < C; c++)
        BW_UNROLL for (int r = 0; r < R; r++) {
          __m256i* const to = (__m256i*)(sums + r * stride) + c;
          const __m256i* const start = (const __m256i*)(rest + block * width) + c;
          add_product(to, q ? _mm256_load_si256(to) : rest ? _mm256_loadu_si256(start) : _mm256_set1_epi16((int16_t)others[r]), found[r][c], mult);
        }
      continue;
    }
    for (int64_t from = 0; from < units.count; from += segment) {
      const int64_t end = from + segment < units.count ? from + segment : units.count;
      __m256i found[R][C];
      lookup(units.place + from, units.place + end, flush, x, w + from * 32, w_step, plane, found);
      BW_UNROLL for (int r = 0; r < R; r++) {
        const int64_t half = r % halves;
        const __m256i mult = _mm256_set1_epi32(conv.w_mult[q] * conv.x_mult[half * LOOKUP_PLANES]);
        const bool begun = q || from || half;
        __m256i* const to = (__m256i*)(sums + r / halves * stride);
        const auto add = [&](__m256i* at, __m128i eight) {
          const __m256i before = begun ? _mm256_loadu_si256(at) : _mm256_set1_epi32(others[r]);
          _mm256_storeu_si256(at, _mm256_add_epi32(before, _mm256_mullo_epi32(_mm256_cvtepu16_epi32(eight), mult)));
        };
        BW_UNROLL for (int c = 0; c < C; c++)
          add(to + 2 * c, _mm256_castsi256_si128(found[r][c])), add(to + 2 * c + 1, _mm256_extracti128_si256(found[r][c], 1));
      }
    }
  }
}

// The sums of the codes of all windows, of those of each pixel with the border around them: rows first, then columns. A row of zeros
// follows, which the last row may take for the one below it (avx2_folded.h). Null: no memory.
inline const int32_t* window_totals(const bw_conv& conv, const int32_t* padded) {
  const int64_t height = conv.h + 2 * conv.pad_h, width = conv.w + 2 * conv.pad_w;
  int32_t* const totals = (int32_t*)bw_scratch(BW_SCRATCH_SUMS, (size_t)((conv.n * conv.oh + 1) * conv.ow) * 4);
  int32_t* const columns = (int32_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)width * 4);
  if (!totals || !columns) return nullptr;
  memset(totals + conv.n * conv.oh * conv.ow, 0, (size_t)conv.ow * 4);
  int32_t* total = totals;
  for (int64_t row = 0; row < conv.n * conv.oh; row++, total += conv.ow) {
    const int32_t* from = padded + (row / conv.oh * height + row % conv.oh * conv.stride_h) * width;
    memcpy(columns, from, (size_t)width * 4);
    for (int64_t ky = 1; ky < conv.kh; ky++) {
      from += conv.dil_h * width;
      for (int64_t i = 0; i < width; i++) columns[i] += from[i];
    }
    memset(total, 0, (size_t)conv.ow * 4);
    for (int64_t kx = 0; kx < conv.kw; kx++) {
      const int32_t* const column = columns + kx * conv.dil_w;
      if (conv.stride_w == 1)
        for (int64_t ox = 0; ox < conv.ow; ox++) total[ox] += column[ox];
      else
        for (int64_t ox = 0; ox < conv.ow; ox++) total[ox] += column[ox * conv.stride_w];
    }
  }
  return totals;
}

inline int lookups_conv_bits(const bw_conv& all, const uint32_t* x, const void* body, const bw_sink& sink, int threads) {
  const int64_t half = bw_ceil_div(all.c, UNIT) * UNIT_TABLES, halves = lookup_halves(all), tables = halves * half;
  const int64_t words = bw_ceil_div(all.c, 32) * all.x_planes;
  const int64_t largest = (planes_alike(all) ? 4 : 2) * lookup_largest(all);  // of a byte after one unit
  const int64_t image = (all.h + 2 * all.pad_h) * (all.w + 2 * all.pad_w) * tables;
  const int64_t together = image < TABLES_ROOM ? TABLES_ROOM / image : 1;
  const bool narrow = halves == 1 && fits_16_bits(all), matched = narrow && all.x_planes == 2 && lookups_match(all);
  const bool summed = all.w_zero && !matched;
  for (int64_t first = 0; first < all.n; first += together) {
    bw_conv conv = all;
    conv.n = all.n - first < together ? all.n - first : together;
    const uint32_t* const from = x + first * all.h * all.w * words;
    int32_t* const of_pixel = summed ? (int32_t*)bw_scratch(BW_SCRATCH_ROWS, (size_t)(conv.n * conv.h * conv.w) * 4) : nullptr;
    Lookups job = {conv, {}, {}, (const uint8_t*)body, nullptr, nullptr, halves, half, 255 / largest, 65535 / (2 * largest)};
    const uint8_t* made;
    if (matched) {
      job.rest = (const int16_t*)((const uint8_t*)body + lookups_planes(conv));
      uint8_t* const tables_of = (uint8_t*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)(conv.n * image) + 64);
      const int64_t rows = conv.h + 2 * conv.pad_h;
      if (tables_of) image_tables(CODE_MATCHES, conv, words, conv.n * rows, threads, tables_of, [&](int64_t row) {
        const int64_t y = row % rows - conv.pad_h;
        const uint32_t* const first = y >= 0 && y < conv.h ? from + (row / rows * conv.h + y) * conv.w * words : nullptr;
        return RowPair{first, first ? first + words / 2 : nullptr};
      });
      made = tables_of;
    } else {
      made = bordered<uint8_t>(conv, tables, threads, [&](uint8_t* to, int64_t y) {
        for (int64_t i = y * conv.w; i < (y + 1) * conv.w; i++, to += tables) {
          const int32_t sum = pixel_tables(conv, from + i * words, to);
          if (of_pixel) of_pixel[i] = sum;
        }
      });
    }
    if (!made || (summed && !of_pixel)) return bw_fail(BW_NO_MEMORY, "out of memory for the tables of a convolution");
    set_window(conv, made, tables, half, true, &job.window);
    if (summed) {
      const int32_t* const padded = bordered<int32_t>(
          conv, 1, 1, [&](int32_t* to, int64_t y) { memcpy(to, of_pixel + y * conv.w, (size_t)conv.w * 4); }, BW_SCRATCH_RING);
      if (!padded || !(job.total = window_totals(conv, padded))) return bw_fail(BW_NO_MEMORY, "out of memory for the sums of a convolution");
    }
    if (!make_places(job.window, UNIT_TABLES, lookup_units(conv), &job.units)) return bw_fail(BW_NO_MEMORY, "out of memory for the places of a window");
    const int64_t pixel = first * conv.oh * conv.ow;
    const int error = narrow ? conv_in_chunks<int16_t>(LookupJob<int16_t>{job}, sink, pixel, threads)
                             : conv_in_chunks<int32_t>(LookupJob<int32_t>{job}, sink, pixel, threads);
    if (error) return error;
  }
  return BW_OK;
}

}  // namespace
