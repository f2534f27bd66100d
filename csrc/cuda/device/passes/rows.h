// How a block of threads walks over channels, for sums and for ranges of int8. Plain C++: the launchers use it too.
//
// A block has some channels, its tile. Its threads stand in rows: with channels_last, a thread of a row has eight
// channels, and rows take turns with pixels; else a block has one channel, a row is one thread, and rows take turns
// with vectors of eight pixels. A unit is such a pixel or vector, counted over the images.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shared/passes.h"

namespace explainfix {

struct Rows {
  int threads, lanes, rows;         // lanes: threads of a row
  int64_t tiles, per_image, units;  // units of one image, and those that are shared out
  int64_t parts, per_part;          // blocks that a tile's units are shared out to

  EXPLAINFIX_BOTH int width(bool channels_last) const { return channels_last ? 8 * lanes : 1; }  // channels of a tile
};

// Lanes: 8 fill a cache line of 16-bit numbers.
inline Rows rows_of(const Pass& p, int threads, int64_t most_lanes, int64_t images) {
  Rows r{};
  r.threads = threads;
  const int64_t groups = (p.channels + 7) / 8;
  r.lanes = p.channels_last ? int(std::min(groups, most_lanes)) : 1;
  r.rows = threads / r.lanes;
  r.tiles = p.channels_last ? (groups + r.lanes - 1) / r.lanes : p.channels;
  r.per_image = p.channels_last ? p.pixels : (p.pixels + 7) / 8;
  r.units = images * r.per_image;
  r.parts = 1;
  r.per_part = r.units;
  return r;
}

// Sums: about 1024 blocks, and 4 to 128 units a thread, which are added in float.
inline Rows rows_of_sums(const Pass& p, int threads) {
  Rows r = rows_of(p, threads, 32, p.images);
  const int64_t each = std::clamp<int64_t>(r.units * r.tiles / (int64_t(r.rows) * 1024), 4, 128);
  r.per_part = each * r.rows;
  r.parts = (r.units + r.per_part - 1) / r.per_part;
  return r;
}

}  // namespace explainfix
