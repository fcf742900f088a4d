// AVX2: look-ups of avx2_bits.h for inputs of one bit, for two pixels at once. The sum of four such inputs is 4 at most, so a byte of a
// table holds those of two places of the image: in its lower half that of a row, in its upper half that of the row which lies half the
// outputs below. So the image is folded: half as many tables, and a look-up stands for 2 x 4 x 32 products.
//
// Three look-ups are added before a half of a byte can overflow. `all` adds such bytes, `high` adds them moved down by four bits, both
// modulo 256. The move is one of 16 bits, so the lower half of the odd byte comes along into the even one; what it added there is known
// from the odd byte's own sums, and is taken away at the end (split_sums). 8 operations so do 3 look-ups.
//
// Where weights lie evenly about 0, a table holds how many bits are equal, and not how many are common: then the sum of the inputs
// need not be known.
//
// A tile is 4 pairs of pixels x 16 outputs; per three units (6,144 products) 27 loads, 9 operations for the indices, 24 look-ups, 40
// additions and moves. Sums, by their multipliers, must fit 16 bits, of a layer of one bit those of 16,383 products.
#pragma once
#include "avx2_bits.h"

namespace {

const int64_t FOLDED_FLUSH = 30;  // units: 60 look-ups of 4 fit a byte
const int64_t TOGETHER = 24 << 10;  // bytes of the weights that one tile after the other is multiplied by: they stay in the first cache

inline bool rows_of_layer(const bw_conv& conv) { return conv.h == 1 && conv.w == 1 && conv.oh == 1 && conv.ow == 1 && !conv.pad_h && !conv.pad_w; }
inline bool folds(const bw_conv& conv) {
  return conv.x_planes == 1 && (conv.oh > 1 || (conv.n > 1 && rows_of_layer(conv))) && fits_16_bits(conv);
}

struct FoldedJob {
  const bw_conv& conv;
  Window<uint8_t> window;
  Places units;
  const uint8_t* weights;
  const int16_t* rest;   // of each output, where equal bits are counted; else null
  const int32_t* total;  // as in LookupJob; null: not needed
  int64_t below;          // pixels from one of a pair to the other
  static constexpr int64_t width = 16;

  // For blocks block..end - 1: pair 0 is `pixel` and the one below; sums of the pixels below lie `apart` farther on.
  template <int P>
  BW_INLINE void tile(Walk<uint8_t>& walk, int64_t pixel, int64_t block, int64_t end, int16_t* sums, int64_t stride, int64_t apart) const;
};

// Sums of a byte's halves of all look-ups, in 16 bits, the two lanes added: [lower, upper], outputs in order.
BW_INLINE void split_sums(__m256i all, __m256i high, __m256i (&sums)[2]) {
  const __m256i byte = _mm256_set1_epi16(255);
  const auto without = [&](__m256i x, __m256i sixteenth) {
    return _mm256_and_si256(_mm256_sub_epi16(x, _mm256_slli_epi16(sixteenth, 4)), byte);
  };
  const __m256i upper_odd = _mm256_srli_epi16(high, 8), lower_odd = without(_mm256_srli_epi16(all, 8), upper_odd);
  const __m256i upper_even = without(high, lower_odd), lower_even = without(all, upper_even);
  sums[0] = both_lanes(lower_even, lower_odd), sums[1] = both_lanes(upper_even, upper_odd);
}

BW_INLINE void add_halves(__m256i& all, __m256i& high, __m256i sum) { add_bytes(all, sum), add_bytes(high, _mm256_srli_epi16(sum, 4)); }

// sums [P][2]: of 16 outputs, for both pixels of a pair. A function of its own, else registers are missing here, too.
template <int P>
__attribute__((noinline)) void folded_plane(const Places& units, const uint8_t* const (&x)[P], const uint8_t* w, __m256i (&sums)[P][2]) {
  const __m256i low = _mm256_set1_epi8(15);
  const auto load = [](const uint8_t* from) { return _mm256_loadu_si256((const __m256i*)from); };
  const auto first = [&](int64_t unit) { return _mm256_and_si256(load(w + unit * 32), low); };
  const auto second = [&](int64_t unit) { return _mm256_and_si256(_mm256_srli_epi16(load(w + unit * 32), 4), low); };
  const int32_t *at = units.place, *const end = at + units.count;
  BW_UNROLL for (int p = 0; p < P; p++) sums[p][0] = sums[p][1] = _mm256_setzero_si256();
  while (at < end) {
    const int32_t* const stop = end - at < FOLDED_FLUSH ? end : at + FOLDED_FLUSH;
    __m256i all[P], high[P];
    BW_UNROLL for (int p = 0; p < P; p++) all[p] = high[p] = _mm256_setzero_si256();
    for (; at + 3 <= stop; at += 3, w += 96) {
      __m256i a = first(0), b = second(0), c = first(1);
      BW_UNROLL for (int p = 0; p < P; p++) {
        const __m256i two = _mm256_add_epi8(_mm256_shuffle_epi8(load(x[p] + at[0]), a), _mm256_shuffle_epi8(load(x[p] + at[0] + 32), b));
        add_halves(all[p], high[p], _mm256_add_epi8(two, _mm256_shuffle_epi8(load(x[p] + at[1]), c)));
      }
      a = second(1), b = first(2), c = second(2);
      BW_UNROLL for (int p = 0; p < P; p++) {
        const __m256i two = _mm256_add_epi8(_mm256_shuffle_epi8(load(x[p] + at[1] + 32), a), _mm256_shuffle_epi8(load(x[p] + at[2]), b));
        add_halves(all[p], high[p], _mm256_add_epi8(two, _mm256_shuffle_epi8(load(x[p] + at[2] + 32), c)));
      }
    }
    for (; at < stop; at++, w += 32)
      BW_UNROLL for (int p = 0; p < P; p++)
        add_halves(all[p], high[p], _mm256_add_epi8(_mm256_shuffle_epi8(load(x[p] + *at), first(0)), _mm256_shuffle_epi8(load(x[p] + *at + 32), second(0))));
    BW_UNROLL for (int p = 0; p < P; p++) {
      __asm__("" : "+x"(all[p]), "+x"(high[p])::"memory");  // as in lookup_plane
      __m256i more[2];
      split_sums(all[p], high[p], more);
      sums[p][0] = _mm256_add_epi16(sums[p][0], more[0]), sums[p][1] = _mm256_add_epi16(sums[p][1], more[1]);
    }
  }
}

template <int P>
BW_INLINE void FoldedJob::tile(Walk<uint8_t>& walk, int64_t pixel, int64_t block, int64_t end, int16_t* sums, int64_t stride, int64_t apart) const {
  const uint8_t* x[P];
  int16_t others[P][2] = {};
  for (int p = 0; p < P; p++) {
    x[p] = walk.address(), walk.next();
    for (int half = 0; total && half < 2; half++) others[p][half] = (int16_t)(conv.w_zero * conv.x_mult[0] * total[pixel + p + half * below]);
  }
  for (sums += block * width; block < end; block++, sums += width)
    for (int64_t q = 0; q < conv.w_planes; q++) {
      __m256i found[P][2];
      folded_plane<P>(units, x, weights + (block * conv.w_planes + q) * units.count * 32, found);
      const __m256i mult = _mm256_set1_epi16((int16_t)(conv.w_mult[q] * conv.x_mult[0] / (rest ? 2 : 1)));
      const __m256i start = rest ? _mm256_loadu_si256((const __m256i*)(rest + block * width)) : _mm256_setzero_si256();
      BW_UNROLL for (int i = 0; i < 2 * P; i++) {
        const int p = i / 2, half = i % 2;
        __m256i* const to = (__m256i*)(sums + p * stride + half * apart);
        add_product(to, q ? _mm256_load_si256(to) : rest ? start : _mm256_set1_epi16(others[p][half]), found[p][half], mult);
      }
    }
}

// The pixels of a chunk and those below them, for all outputs.
inline int folded_in_chunks(const FoldedJob& job, const bw_conv& whole, const bw_sink& sink, int64_t first_pixel, int threads) {
  const bw_conv& conv = job.conv;
  const int64_t area = conv.oh * conv.ow, of_image = whole.oh * whole.ow, blocks = bw_ceil_div(conv.o, job.width), stride = blocks * job.width;
  const int64_t most = stride <= 32 ? MOST_ROWS : CHUNK;  // of few outputs, what a chunk takes besides is as much as its sums
  const int64_t chunk = items_per_task(threads, area, TILE_PIXELS, most), chunks = bw_ceil_div(area, chunk), apart = chunk * stride;
  const bool many = conv.n * chunks >= 2 * threads;
  const Emission emit(sink, conv.o);
  const size_t work = emit.room((int16_t*)nullptr, apart);
  int no_memory = 0;
  for_tasks(many ? threads : 1, conv.n * chunks, [&](int64_t task) {
    int16_t* sums = (int16_t*)bw_scratch(BW_SCRATCH_PATCH, (size_t)(2 * apart) * 2 + 64);
    void* room = work ? bw_scratch(BW_SCRATCH_PANEL, work) : nullptr;
    uint8_t* codes = (uint8_t*)bw_scratch(BW_SCRATCH_ROW, (size_t)conv.o);
    if (!sums || (work && !room) || !codes) {
      __atomic_store_n(&no_memory, 1, __ATOMIC_RELAXED);
      return;
    }
    const int64_t image = task / chunks, first = task % chunks * chunk, count = first + chunk < area ? chunk : area - first;
    const int64_t pixel = image * of_image + first;
    const int64_t of_block = conv.w_planes * job.units.count * 32, group = of_block < TOGETHER ? TOGETHER / of_block : 1;
    for_tasks(many ? 1 : threads, bw_ceil_div(blocks, group), [&](int64_t task) {
      Walk<uint8_t> walk(conv, job.window, image * area + first);
      const int64_t block = task * group, end = block + group < blocks ? block + group : blocks;
      int64_t p = 0;
      for (; p + TILE_PIXELS <= count; p += TILE_PIXELS) job.tile<TILE_PIXELS>(walk, pixel + p, block, end, sums + p * stride, stride, apart);
      for (; p < count; p++) job.tile<1>(walk, pixel + p, block, end, sums + p * stride, stride, apart);
    });
    for (int half = 0; half < 2; half++) {
      const int64_t from = first + half * job.below, rest = of_image - from;  // an odd last row has none below it
      NarrowRows rows;
      rows.pixel = first_pixel + image * of_image + from, rows.count = count < rest ? count : rest;
      rows.sums = sums + half * apart, rows.stride = stride;
      border_rows(whole, image * of_image + from, rows.count, rows.corr);
      if (rows.count > 0) emit(rows, room, codes);
    }
  });
  return no_memory ? bw_fail(BW_NO_MEMORY, "out of memory for the sums of a convolution") : BW_OK;
}

constexpr PairCounts PAIR_COUNTS = pair_counts(16, false), PAIR_MATCHES = pair_counts(16, true);

// The totals of the windows of `conv`; null: no memory.
inline const int32_t* folded_totals(const bw_conv& conv, const uint32_t* x) {
  const int64_t words = bw_ceil_div(conv.c, 32);
  const int32_t* const padded = bordered<int32_t>(
      conv, 1, 1,
      [&](int32_t* to, int64_t y) {
        const uint32_t* from = x + y * conv.w * words;
        for (int64_t i = 0; i < conv.w; i++) {
          to[i] = 0;
          for (int64_t word = 0; word < words; word++) to[i] += __builtin_popcount(*from++);
        }
      },
      BW_SCRATCH_RING);
  return padded ? window_totals(conv, padded) : nullptr;
}

inline int folded_conv_bits(bw_conv all, const uint32_t* x, const void* body, const bw_sink& sink, int threads) {
  if (all.oh == 1) {  // rows of a linear layer are those of one image
    int32_t* const classes = (int32_t*)bw_scratch(BW_SCRATCH_CUTS, (size_t)all.n * 4);
    if (!classes) return bw_fail(BW_NO_MEMORY, "out of memory for the rows of a linear layer");
    for (int64_t i = 0; i < all.n; i++) classes[i] = all.row_class[0];
    all.h = all.oh = all.n, all.n = all.stride_h = 1, all.row_class = classes;
  }
  const int64_t units = bw_ceil_div(all.c, UNIT), tables = units * UNIT_TABLES, words = bw_ceil_div(all.c, 32);
  const int64_t oh = (all.oh + 1) / 2, rows = (oh - 1) * all.stride_h + all.dil_h * (all.kh - 1) + 1;
  const int64_t columns = all.w + 2 * all.pad_w, image = rows * columns * tables;
  const int64_t together = image < TABLES_ROOM ? TABLES_ROOM / image : 1;
  for (int64_t first = 0; first < all.n; first += together) {
    bw_conv whole = all;
    whole.n = all.n - first < together ? all.n - first : together;
    bw_conv conv = whole;
    conv.h = rows, conv.pad_h = 0, conv.oh = oh;
    const uint32_t* const from = x + first * all.h * all.w * words;
    uint8_t* const made = (uint8_t*)bw_scratch(BW_SCRATCH_IMAGE, (size_t)(conv.n * image) + 64);
    FoldedJob job = {conv, {}, {}, (const uint8_t*)body, nullptr, nullptr, oh * all.ow};
    const bool matched = lookups_match(conv);
    if (matched) job.rest = (const int16_t*)((const uint8_t*)body + lookups_planes(conv));
    if (!made || (!matched && conv.w_zero && !(job.total = folded_totals(whole, from))))
      return bw_fail(BW_NO_MEMORY, "out of memory for the tables of a convolution");
    image_tables(matched ? PAIR_MATCHES : PAIR_COUNTS, conv, words, conv.n * rows, threads, made, [&](int64_t task) {
      const int64_t y = task % rows - all.pad_h, below = y + oh * all.stride_h;
      const uint32_t* const rows_of_image = from + task / rows * all.h * all.w * words;
      const auto row = [&](int64_t at) { return at >= 0 && at < all.h ? rows_of_image + at * all.w * words : nullptr; };
      return RowPair{row(y), row(below)};
    });
    set_window(conv, (const uint8_t*)made, tables, tables, true, &job.window);
    if (!make_places(job.window, UNIT_TABLES, lookup_units(conv), &job.units)) return bw_fail(BW_NO_MEMORY, "out of memory for the places of a window");
    if (int error = folded_in_chunks(job, whole, sink, first * all.oh * all.ow, threads)) return error;
  }
  return BW_OK;
}

}  // namespace
