// Weights that are nearly all zero, as lists of the others. The body: uint32 begin[3 O + 1] of the inputs with weight 1, -1 and any
// other, for each output; uint16 index[E] into the codes under the kernel (K = KH KW C of them); int16 value[E].
#pragma once
#include "kernels.h"

namespace {

const int64_t LISTED_SHARE = 256;  // lists pay where at most this part of the weights is not zero: bench/sparsity.py

// The kinds of weights that have a list of their own, in order.
[[maybe_unused]] inline int list_kind(int value) { return value == 1 ? 0 : value == -1 ? 1 : 2; }

[[maybe_unused]] inline bool lists_fit(const bw_conv& conv, const int16_t* values, int64_t room) {
  const int64_t k = conv.kh * conv.kw * conv.c;
  if (conv.groups != 1 || k > 65536) return false;
  int64_t entries = 0;
  for (int64_t i = 0; i < k * conv.o; i++) entries += values[i] != 0;
  return entries * LISTED_SHARE <= k * conv.o && (3 * conv.o + 1 + entries) * 4 <= room;
}

[[maybe_unused]] inline void lists_weights(const bw_conv& conv, const int16_t* values, void* body) {
  const int64_t k = conv.kh * conv.kw * conv.c;
  uint32_t* begin = (uint32_t*)body;
  uint32_t entries = 0;
  for (int64_t o = 0; o < conv.o; o++)
    for (int kind = 0; kind < 3; kind++) {
      begin[3 * o + kind] = entries;
      for (int64_t i = 0; i < k; i++) entries += values[o * k + i] && list_kind(values[o * k + i]) == kind;
    }
  begin[3 * conv.o] = entries;
  uint16_t* index = (uint16_t*)(begin + 3 * conv.o + 1);
  int16_t* value = (int16_t*)(index + entries);
  for (int64_t o = 0; o < conv.o; o++)
    for (int kind = 0; kind < 3; kind++)
      for (int64_t i = 0; i < k; i++)
        if (values[o * k + i] && list_kind(values[o * k + i]) == kind) *index++ = (uint16_t)i, *value++ = values[o * k + i];
}

}  // namespace
