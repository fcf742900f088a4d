// Layers of sliced.h. The bits of up to 512 pixels lie side by side, one row per input, so that one operation works on all of them:
// each output adds up the rows of its list in bit-sliced counters (plane p holds the bits of 2^p of all counts). A counter begins
// at 2^P minus the threshold: its top plane then is the answer. Few pixels are counted one by one, or by the dense kernel.
#pragma once
#include <string.h>

#include "generic_emit.h"
#include "parallel.h"
#include "sliced.h"

namespace {

const int64_t SLICED_LEAST = 16;   // pixels below which rows of bits are mostly empty
const int64_t SLICED_WIDE = 1024;  // outputs up to which the counts of 512 pixels are kept

struct SlicedLists {
  const uint32_t *order, *begin;
  const uint16_t* index;
  SlicedLists(const bw_sliced& head, const void* body, int64_t o)
      : order((const uint32_t*)((const uint8_t*)body + head.lists)), begin(order + o), index((const uint16_t*)(begin + o + 1)) {}
};

// Bits of 64 LANES pixels. Lane g of a row holds pixels 64 g to 64 g + 63.
template <int LANES>
struct Sliced {
  typedef uint64_t Row __attribute__((vector_size(8 * LANES)));

  static BW_INLINE Row all(bool on) {
    Row row;
    memset(&row, on ? 0xff : 0, sizeof row);
    return row;
  }

  // 64 rows of 64 bits each, in every lane: bit i of row r becomes bit r of row i.
  static BW_INLINE void turn(Row* rows) {
    uint64_t mask = 0x00000000ffffffffu;
    for (int width = 32; width; width >>= 1, mask ^= mask << width)
      for (int first = 0; first < 64; first += 2 * width)
        for (int r = first; r < first + width; r++) {
          const Row differ = ((rows[r] >> width) ^ rows[r + width]) & mask;
          rows[r] ^= differ << width, rows[r + width] ^= differ;
        }
  }

  // [count][words] -> [words * 32] rows, filled up with zeros to an even number of words
  static void rows_of(const uint32_t* x, int64_t words, int64_t count, Row* rows) {
    for (int64_t w = 0; w < words; w += 2, rows += 64) {
      memset(rows, 0, 64 * sizeof(Row));
      for (int64_t p = 0; p < count; p++) {
        uint64_t two = 0;
        memcpy(&two, x + p * words + w, words - w < 2 ? 4 : 8);
        memcpy((uint8_t*)(rows + p % 64) + p / 64 * 8, &two, 8);
      }
      turn(rows);
    }
  }

  // the other way round; rows are changed
  static void words_of(Row* rows, int64_t words, int64_t count, uint32_t* out) {
    for (int64_t w = 0; w < words; w += 2, rows += 64) {
      turn(rows);
      for (int64_t p = 0; p < count; p++)
        memcpy(out + p * words + w, (const uint8_t*)(rows + p % 64) + p / 64 * 8, words - w < 2 ? 4 : 8);
    }
  }

  static BW_INLINE Row add(Row& sum, Row a, Row b) {  // the carry
    const Row differ = sum ^ a, carry = (sum & a) | (differ & b);
    sum = differ ^ b;
    return carry;
  }

  // planes [top + 1], that begin with a number: plus how many of the listed rows are on
  static BW_INLINE void count(const Row* rows, const uint16_t* index, int64_t entries, Row* planes, int top) {
    Row ones = planes[0], twos = planes[1];
    const Row none = all(false);
    for (int64_t i = 0; i < entries; i += 4) {
      const int64_t left = entries - i;
      const Row a = rows[index[i]], b = left > 1 ? rows[index[i + 1]] : none, c = left > 2 ? rows[index[i + 2]] : none;
      const Row d = left > 3 ? rows[index[i + 3]] : none;
      const Row first = add(ones, a, b), second = add(ones, c, d);
      Row carry = add(twos, first, second);
      for (int p = 2; p <= top; p++) {
        const Row both = planes[p] & carry;
        planes[p] ^= carry, carry = both;
      }
    }
    planes[0] = ones, planes[1] = twos;
  }
};

// The least count, of `most` at all, at which the integer mult * count + base is at least `threshold`; `below` instead: at which it
// is not any more.
inline int64_t least_count(int64_t mult, int64_t base, int64_t threshold, bool& below) {
  int64_t need = threshold - base;
  below = mult < 0;
  if (mult == 1) return need;
  if (below) mult = -mult, need = 1 - need;  // not (mult * count <= -need)
  return need >= 0 ? (need + mult - 1) / mult : -(-need / mult);
}

inline int bits_of(int64_t number) {
  int bits = 0;
  while (number >> bits) bits++;
  return bits;
}

// Codes 0 and 1 of `count` pixels as words.
template <int LANES>
void sliced_codes(const bw_conv& conv, const typename Sliced<LANES>::Row* rows, const SlicedLists& lists, const bw_sink& sink,
                  typename Sliced<LANES>::Row* made) {
  typedef typename Sliced<LANES>::Row Row;
  const int64_t mult = (int64_t)conv.x_mult[0] * conv.w_mult[0];
  for (int64_t i = 0; i < conv.o; i++) {
    const int64_t o = lists.order[i], entries = lists.begin[i + 1] - lists.begin[i];
    bool turned;
    const int64_t least = least_count(mult, conv.corr[o], sink.thresholds[o], turned);
    turned ^= sink.flip && sink.flip[o];
    Row on = Sliced<LANES>::all(least <= 0);
    if (least > 0 && least <= entries) {
      const int top = bits_of(entries) < 1 ? 1 : bits_of(entries);
      const int64_t start = ((int64_t)1 << top) - least;
      Row planes[18];
      for (int p = 0; p <= top; p++) planes[p] = Sliced<LANES>::all(start >> p & 1);
      Sliced<LANES>::count(rows, lists.index + lists.begin[i], entries, planes, top);
      on = planes[top];
    }
    made[o] = turned ? ~on : on;
  }
}

// Integers [count][o].
template <int LANES>
void sliced_sums(const bw_conv& conv, const typename Sliced<LANES>::Row* rows, const SlicedLists& lists, int64_t count, int32_t* sums) {
  typedef typename Sliced<LANES>::Row Row;
  const int32_t mult = conv.x_mult[0] * conv.w_mult[0];
  for (int64_t i = 0; i < conv.o; i++) {
    const int64_t o = lists.order[i], entries = lists.begin[i + 1] - lists.begin[i];
    const int top = bits_of(entries) < 2 ? 1 : bits_of(entries) - 1;
    Row planes[18];
    for (int p = 0; p <= top; p++) planes[p] = Sliced<LANES>::all(false);
    Sliced<LANES>::count(rows, lists.index + lists.begin[i], entries, planes, top);
    for (int64_t p = 0; p < count; p += 8) {
      uint32_t wide[8] = {};
      for (int q = 0; q <= top; q++) {  // eight bits become eight numbers
        const uint64_t eight = (planes[q][p / 64] >> (p % 64) & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
        const uint64_t ones = (eight + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
        for (int j = 0; j < 8; j++) wide[j] += (uint32_t)(ones >> (8 * j) & 1) << q;
      }
      for (int64_t j = 0; j < 8 && p + j < count; j++) sums[(p + j) * conv.o + o] = (int32_t)wide[j] * mult + conv.corr[o];
    }
  }
}

inline bool sliced_to_words(const bw_sink& sink) {
  return sink.mode == BW_WORDS && sink.levels == 1 && sink.out_planes == 1 && sink.out_groups == 1;
}

// Pixels first .. first + count - 1, count <= 64 LANES. False: no memory.
template <int LANES>
bool sliced_task(const bw_conv& conv, const uint32_t* x, const SlicedLists& lists, const bw_sink& sink, int64_t first, int64_t count) {
  typedef typename Sliced<LANES>::Row Row;
  const int64_t words = sliced_words(conv), out_words = bw_words(conv.o, 1);
  Row* rows = (Row*)bw_scratch(BW_SCRATCH_PANEL, (size_t)((words + words % 2) * 32) * sizeof(Row));
  if (!rows) return false;
  Sliced<LANES>::rows_of(x + first * words, words, count, rows);
  if (sliced_to_words(sink)) {
    const int64_t all = (out_words + out_words % 2) * 32;
    Row* made = (Row*)bw_scratch(BW_SCRATCH_ROWS, (size_t)all * sizeof(Row));
    if (!made) return false;
    sliced_codes<LANES>(conv, rows, lists, sink, made);
    memset(made + conv.o, 0, (size_t)(all - conv.o) * sizeof(Row));
    Sliced<LANES>::words_of(made, out_words, count, (uint32_t*)sink.out + first * out_words);
    return true;
  }
  int32_t* sums = (int32_t*)bw_scratch(BW_SCRATCH_SUMS, (size_t)(count * conv.o) * 4);
  uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
  if (!sums || !codes) return false;
  sliced_sums<LANES>(conv, rows, lists, count, sums);
  for (int64_t p = 0; p < count; p++) emit_pixel(sink, conv.o, first + p, sums + p * conv.o, codes);
  return true;
}

// The window of a pixel lies as it is needed, and all pixels have the same constants.
inline bool sliced_lies(const bw_conv& conv) {
  const bool one = conv.kh == 1 && conv.kw == 1 && conv.stride_h == 1 && conv.stride_w == 1;
  const bool whole = conv.kh == conv.h && conv.kw == conv.w && conv.dil_h == 1 && conv.dil_w == 1;
  return !conv.pad_h && !conv.pad_w && (one || whole) && conv.row_classes == 1 && conv.col_classes == 1;
}

// Whether counting in slices takes less time than dense words: estimates in nanoseconds of a Zen 4, of one block of pixels.
inline bool generic_sliced_pays(const bw_conv& conv, const void* body) {
  bw_sliced head;
  memcpy(&head, body, sizeof head);
  const int64_t pixels = conv.n * conv.oh * conv.ow, block = pixels < 512 ? pixels : 512, k = conv.kh * conv.kw * conv.c;
  if (pixels < SLICED_LEAST || !sliced_lies(conv)) return false;
  return 8 * (k + conv.o) + head.entries < block * k * conv.o / 1024;
}

inline int generic_conv_sliced(const bw_conv& conv, const uint32_t* x, const void* body, const bw_sink& sink, int threads) {
  bw_sliced head;
  memcpy(&head, body, sizeof head);
  const SlicedLists lists(head, body, conv.o);
  const int64_t pixels = conv.n * conv.oh * conv.ow;
  const int64_t most = threads > 1 || (!sliced_to_words(sink) && conv.o > SLICED_WIDE) ? 64 : 512;
  const int64_t share = pixels < most ? pixels : most;
  int no_memory = 0;
  for_tasks(threads, bw_ceil_div(pixels, share), [&](int64_t task) {
    const int64_t first = task * share, count = pixels - first < share ? pixels - first : share;
    const bool done = count <= 64    ? sliced_task<1>(conv, x, lists, sink, first, count)
                      : count <= 128 ? sliced_task<2>(conv, x, lists, sink, first, count)
                      : count <= 256 ? sliced_task<4>(conv, x, lists, sink, first, count)
                                     : sliced_task<8>(conv, x, lists, sink, first, count);
    if (!done) __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for rows of bits") : BW_OK;
}

}  // namespace
