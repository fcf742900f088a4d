// AMX: which output pixels share a tile. A tile's rows must lie one stride apart in memory, so pixels are taken from
// "lines" of evenly spaced windows: rows of the output, whole images, or the whole batch.
//
//   rows   one output row per line; merged into longer lines where rows touch (1x1 kernels, linear layers)
//   flat   a whole image per line, in steps of one input pixel: the few positions between the end of a row and the
//          start of the next are computed and dropped. Better for narrow maps, where a row does not fill 16 rows.
#pragma once
#include "window.h"

namespace {

struct Lines {
  int64_t count, line;          // lines, and elements from one to the next (unless `rows`)
  int64_t length, step;         // positions in a line, elements from one to the next
  int64_t pitch, valid;         // of every `pitch` positions the first `valid` are output pixels
  int64_t chunks, height;       // tiles per line and their rows
  bool rows;                    // a line is one output row: two strides lead to it
  int64_t tiles() const { return count * chunks; }
};

// Nanoseconds of one tile product (measured): loads and the start cost as much as four rows.
inline double tile_cost(int64_t height) { return 3.7 + 0.115 * (double)height; }

inline void cut_lines(Lines* lines) {
  lines->chunks = bw_ceil_div(lines->length, 16);
  lines->height = bw_ceil_div(lines->length, lines->chunks);
}

template <class T>
Lines choose_lines(const bw_conv& conv, const Window<T>& window) {
  Lines rows = {conv.n * conv.oh, 0, conv.ow, window.step_x, 0, 0, 0, 0, true};
  if (conv.ow == 1) rows.step = window.step_y;
  if (conv.ow == 1 || conv.oh == 1 || window.step_y == conv.ow * window.step_x) {  // an image is one line
    if (conv.oh == 1 && conv.ow == 1) rows.step = window.step_n;
    rows.count = conv.n, rows.line = window.step_n, rows.length = conv.ow * conv.oh, rows.rows = false;
    if (conv.n == 1 || window.step_n == rows.length * rows.step)  // and so is the batch
      rows.count = 1, rows.length *= conv.n;
  }
  rows.pitch = rows.valid = rows.length;
  cut_lines(&rows);
  if (!rows.rows || window.step_y % window.step_x) return rows;
  Lines flat = {conv.n, window.step_n, 0, window.step_x, window.step_y / window.step_x, conv.ow, 0, 0, false};
  flat.length = (conv.oh - 1) * flat.pitch + conv.ow;
  cut_lines(&flat);
  const double cost_rows = (double)rows.tiles() * tile_cost(rows.height);
  return (double)flat.tiles() * tile_cost(flat.height) < cost_rows ? flat : rows;
}

// One row of a tile that is an output pixel, and where its result goes.
struct TileRow {
  int64_t pixel;
  int32_t border, at;  // border class; row of the tile
};

struct TileSpot {
  const uint8_t* x;    // the window of its first row
  int64_t count;       // of its TileRows, of which there are at most 16
};

// Tile number `tile` of the whole convolution. The last tile of a line ends with it and repeats some positions of
// the one before; those are left to that one.
inline TileSpot place_tile(const bw_conv& conv, const Window<uint8_t>& window, const Lines& lines, int64_t tile,
                           TileRow* out) {
  const int64_t line = tile / lines.chunks, chunk = tile % lines.chunks, last = lines.length - lines.height;
  const int64_t begin = chunk * lines.height, start = begin < last ? begin : last;
  const int64_t line_at = lines.rows ? line / conv.oh * window.step_n + line % conv.oh * window.step_y : line * lines.line;
  const int64_t line_pixels = lines.rows ? conv.ow : conv.n * conv.oh * conv.ow / lines.count;
  int64_t column = begin % lines.pitch, pixel = line * line_pixels + begin / lines.pitch * lines.valid + column;
  if (column > lines.valid) pixel -= column - lines.valid;
  int64_t ox = pixel % conv.ow, oy = pixel / conv.ow % conv.oh, count = 0;
  for (int64_t at = begin - start; at < lines.height; at++) {
    if (column < lines.valid) {
      out[count++] = {pixel++, (int32_t)(conv.row_class[oy] * conv.col_classes + conv.col_class[ox]), (int32_t)at};
      if (++ox == conv.ow) ox = 0, oy = oy + 1 == conv.oh ? 0 : oy + 1;
    }
    if (++column == lines.pitch) column = 0;
  }
  return {window.image + line_at + start * lines.step, count};
}

}  // namespace
