// Convolutions whose rest is computed only where the base exceeds a threshold: how channels, outputs and weights are cut.
//
// The input channels of a group fall into shares; the base of an output is one share, its rest the others. So it is for a channel
// gate. For a precision gate both shares are all channels: the first holds the high bits of the codes, the second the low ones.
// Shares are cut into chunks of one width, the last one filled up with zeros, so that all runs of a window have one length.
//
// Weights: base [panels of 16 outputs][chunks of the share][runs][run][16 outputs], in bytes four codes lie together; then rest
// [outputs][other chunks][runs][run, filled up with zeros to whole vectors]. Outputs with the same base begin a panel.
#pragma once
#include <string.h>

#include "kernels.h"

namespace {

// Outputs with the same base.
struct SkipOutputs {
  int64_t first, count, panel, group, base;  // base: a share
};

struct SkipShape {
  const bw_conv& conv;
  int64_t fan, outs;                // channels and outputs of a group
  int64_t splits, low_bits, shares; // shares of a group
  bool own;                         // each share of outputs has a base of its own
  int64_t parts, width;             // chunks of a share, channels of a chunk
  int64_t runs_x, runs, run;        // of a chunk in a window, elements of a run
  int64_t panels;

  // `most`: elements of a chunk in a window, if a share has more
  SkipShape(const bw_conv& conv_, const bw_skip& skip, int64_t most)
      : conv(conv_), fan(conv.c / conv.groups), outs(conv.o / conv.groups), splits(skip.splits), low_bits(skip.low_bits),
        shares(low_bits ? 2 : splits), own(!low_bits && !skip.shared) {
    const int64_t largest = low_bits ? fan : fan - (splits - 1) * (fan / splits), taps = conv.kh * conv.kw;
    const int64_t wide = most / taps < 16 ? 16 : most / taps / 16 * 16;
    parts = bw_ceil_div(largest, wide), width = bw_ceil_div(largest, parts);
    runs_x = conv.dil_w == 1 ? 1 : conv.kw, runs = conv.kh * runs_x, run = conv.kw / runs_x * width;
    const SkipOutputs last = outputs(output_groups() - 1);
    panels = last.panel + bw_ceil_div(last.count, 16);
  }

  int64_t output_groups() const { return conv.groups * (own ? splits : 1); }
  SkipOutputs outputs(int64_t i) const {
    const int64_t each = own ? splits : 1, group = i / each, j = i % each, q = outs / each, last = outs - (each - 1) * q;
    const int64_t before = group * ((each - 1) * bw_ceil_div(q, 16) + bw_ceil_div(last, 16)) + j * bw_ceil_div(q, 16);
    return {group * outs + j * q, j == each - 1 ? last : q, before, group, j};
  }

  // whether output o is lane o % 16 of panel o / 16
  bool plain() const { return output_groups() == 1 || (outputs(0).count % 16 == 0 && (outs % 16 == 0 || conv.groups == 1)); }

  int64_t share_begin(int64_t share) const { return share * (fan / splits); }
  int64_t share_end(int64_t share) const { return share == splits - 1 ? fan : (share + 1) * (fan / splits); }
  int64_t chunks() const { return conv.groups * shares * parts; }
  int64_t rest_chunks() const { return (shares - 1) * parts; }
  int64_t base_chunk(const SkipOutputs& o, int64_t i) const { return (o.group * shares + o.base) * parts + i; }
  // chunk number i of those that `o` does not have as its base
  int64_t rest_chunk(const SkipOutputs& o, int64_t i) const {
    const int64_t share = i / parts < o.base ? i / parts : i / parts + 1;
    return (o.group * shares + share) * parts + i % parts;
  }
  // its first channel, counted in its group, and how many it has (perhaps none)
  int64_t chunk_channel(int64_t chunk) const {
    const int64_t share = chunk / parts % shares;
    return (low_bits ? 0 : share * (fan / splits)) + chunk % parts * width;
  }
  int64_t chunk_count(int64_t chunk) const {
    const int64_t share = chunk / parts % shares, c = fan / splits;
    const int64_t end = low_bits || share == splits - 1 ? fan : (share + 1) * c;
    const int64_t left = end - chunk_channel(chunk);
    return left < 0 ? 0 : left < width ? left : width;
  }

  // put(run of the chunk, element of the run, weight) for what output o multiplies a chunk with
  template <class T, class Put>
  void weights(const T* values, int64_t o, int64_t chunk, const Put& put) const {
    const int64_t first = chunk_channel(chunk), count = chunk_count(chunk), taps_x = conv.kw / runs_x;
    for (int64_t r = 0; r < runs; r++)
      for (int64_t tap = 0; tap < taps_x; tap++)
        for (int64_t i = 0; i < count; i++)
          put(r, tap * width + i, values[(o * conv.kh * conv.kw + r * taps_x + tap) * fan + first + i]);
  }

  // each(panel, its first output, how many it has)
  template <class Each>
  void for_panels(const Each& each) const {
    for (int64_t i = 0; i < output_groups(); i++) {
      const SkipOutputs o = outputs(i);
      for (int64_t j = 0; j < o.count; j += 16) each(o.panel + j / 16, o.first + j, o.count - j < 16 ? o.count - j : 16);
    }
  }

  // each(outputs with the same base, output, panel, lane) for all outputs
  template <class Each>
  void for_outputs(const Each& each) const {
    for (int64_t i = 0; i < output_groups(); i++) {
      const SkipOutputs o = outputs(i);
      for (int64_t j = 0; j < o.count; j++) each(o, o.first + j, o.panel + j / 16, j % 16);
    }
  }
};

}  // namespace
