// One-bit weights that are mostly zero, for one-bit codes: dense weights of the instruction set, then lists of the inputs that count.
// The body: bw_sliced, the dense body, then at `lists`: uint32 order[O], begin[O + 1], uint16 index[E], in order of the number of
// inputs, so that neighbors take the same branches. An index is a bit of the words of a pixel. Which of both runs is decided per
// call, by the number of pixels.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

struct bw_sliced {
  int64_t dense_layout, lists, entries, most;  // most: entries of one output
};

namespace {

const int64_t SLICED_SHARE = 8;  // lists are kept where at most this part of the weights is not zero: bench/sparsity.py
const int64_t SLICED_HEAD = 64;  // bytes of bw_sliced, so that what follows stays aligned

[[maybe_unused]] inline int64_t sliced_words(const bw_conv& conv) { return conv.kh * conv.kw * bw_ceil_div(conv.c, 32); }

[[maybe_unused]] inline bool sliced_may(const bw_conv& conv) {
  const bool plain = conv.groups == 1 && conv.x_planes == 1 && conv.w_planes == 1 && conv.w_zero == 0;
  return plain && conv.x_mult[0] && conv.w_mult[0] && sliced_words(conv) * 32 <= 65536 && conv.o < (1 << 24);
}

// Bytes after the dense body, whatever the weights turn out to be.
[[maybe_unused]] inline int64_t sliced_room(const bw_conv& conv) {
  if (!sliced_may(conv)) return 0;
  const int64_t entries = conv.kh * conv.kw * conv.c * conv.o / SLICED_SHARE;
  return SLICED_HEAD + 64 + (2 * conv.o + 1) * 4 + entries * 2;
}

[[maybe_unused]] inline bool sliced_fit(const bw_conv& conv, const uint8_t* bits) {
  if (!sliced_may(conv)) return false;
  const int64_t all = conv.kh * conv.kw * conv.c * conv.o;
  int64_t entries = 0;
  for (int64_t i = 0; i < all; i++) entries += bits[i] != 0;
  return entries * SLICED_SHARE <= all;
}

// bits [o][c][kh][kw]
[[maybe_unused]] inline void sliced_weights(const bw_conv& conv, const uint8_t* bits, int32_t dense_layout, int64_t dense_size,
                                            void* body) {
  const int64_t taps = conv.kh * conv.kw, row = conv.c * taps;
  bw_sliced head = {dense_layout, (SLICED_HEAD + dense_size + 63) / 64 * 64, 0, 0};
  uint32_t *order = (uint32_t*)((uint8_t*)body + head.lists), *begin = order + conv.o;
  uint16_t* index = (uint16_t*)(begin + conv.o + 1);
  // sorted by counting: how many outputs have fewer inputs
  uint32_t* places = (uint32_t*)calloc((size_t)row + 2, 4);
  const auto count_of = [&](int64_t o) {
    int64_t count = 0;
    for (int64_t i = 0; i < row; i++) count += bits[o * row + i] != 0;
    return count;
  };
  for (int64_t o = 0; places && o < conv.o; o++) places[count_of(o) + 1]++;
  for (int64_t i = 0; places && i <= row; i++) places[i + 1] += places[i];
  for (int64_t o = 0; o < conv.o; o++) order[places ? places[count_of(o)]++ : (uint32_t)o] = (uint32_t)o;
  free(places);
  for (int64_t i = 0; i < conv.o; i++) {
    begin[i] = (uint32_t)head.entries;
    for (int64_t j = 0; j < row; j++)  // bit j is channel j / taps at tap j % taps
      if (bits[order[i] * row + j])
        index[head.entries++] = (uint16_t)((j % taps * bw_ceil_div(conv.c, 32) + j / taps / 32) * 32 + j / taps % 32);
    const int64_t mine = head.entries - begin[i];
    head.most = mine > head.most ? mine : head.most;
  }
  begin[conv.o] = (uint32_t)head.entries;
  memcpy(body, &head, sizeof head);
}

}  // namespace
