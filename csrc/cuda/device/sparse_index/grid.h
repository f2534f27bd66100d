// How the sparse index kernel is launched: the width of panels, the threads of a block and how they read, the sizes
// that it can take. Plain C++, for the launcher and the emulation's tests; tile.h explains the words.
#pragma once

#include <algorithm>
#include <optional>

#include "cuda/device/sparse_index/tile.h"

namespace explainfix {

inline int64_t bands_of_image(const ConvShape& s) { return (s.out_height + 1) / 2; }

// Tiles of a panel.
template <class V>
int64_t sparse_tiles(const ConvShape& s, int width) {
  return (s.images * bands_of_image(s) * width + V::pairs - 1) / V::pairs;
}

// How many bands, and images, a tile has at most beyond its first one.
template <class V>
int64_t more_bands(const ConvShape& s, int width) {
  const int skip = V::pairs % width == 0 ? 0 : width - 1;
  return std::min<int64_t>((skip + V::pairs - 1) / width, s.images * bands_of_image(s) - 1);
}
template <class V>
int64_t more_images(const ConvShape& s, int width) {
  return std::min((more_bands<V>(s, width) + bands_of_image(s) - 1) / bands_of_image(s), s.images - 1);
}

// Pairs in the largest halo.
template <class V>
int largest_halo(const ConvShape& s, int width) {
  const int64_t rows = more_bands<V>(s, width) * V::stride + more_images<V>(s, width) * (V::window - V::stride);
  return int(rows + V::window) * ((width - 1) * V::stride + V::kernel);
}

// The width of panels that makes the least work; 0 if none fits. Pixels beyond the right edge are computed for nothing,
// and a wider halo is more to read: a pair of it costs about 1/600 of what a tile does with a channel.
template <class V>
int choose_width(const ConvShape& s) {
  int best = 0;
  int64_t least = INT64_MAX;
  for (int width = 1; width <= std::min<int64_t>(V::pairs, s.out_width); ++width) {
    const int halo = largest_halo<V>(s, width);
    const int64_t tiles = (s.out_width + width - 1) / width * sparse_tiles<V>(s, width);
    if (tiles * (600 + halo) >= least || halo > V::ahead * kSparseThreads / 2) continue;
    best = width;
    least = tiles * (600 + halo);
  }
  return best;
}

// How a block of `threads` reads a halo: as many channels as they can load in V::ahead turns.
template <class V>
SparseStaging sparse_staging(int halo, int threads) {
  int log2 = V::channels_last ? 0 : 5;
  if constexpr (V::channels_last) {
    const int largest_team = V::most_channels / V::channels, reads = threads * V::ahead;
    while (2 << log2 <= largest_team && halo << (log2 + 1) <= reads) ++log2;
    const int teams = threads >> log2, turns = (halo + teams - 1) / teams;
    return {turns * teams, V::channels << log2, log2, teams, turns};
  } else {
    while (halo > V::ahead << log2) ++log2;
    const int teams = threads >> log2, turns = ((halo - 1) >> log2) + 1;
    return {turns << log2, std::min(V::ahead / turns * teams, V::most_channels), log2, teams, turns};
  }
}

// What a launch depends on of the device: its multiprocessors, and the bytes of shared memory of a block and of a
// multiprocessor.
struct SparseDevice {
  int processors, of_block, of_processor;
};

// The words of `packed` that the kernel counts on, whatever they say: those of the head, of the row numbers of a
// direction, of a block's bounds, and of the step that is read ahead.
template <class V>
int64_t sparse_words(const ConvShape& s) {
  const int64_t lists = (s.out_channels / s.groups + kSparseListOutputs - 1) / kSparseListOutputs;
  return 2 * (s.groups + 1) + 2 * kSparseBlockWords * s.groups + s.in_channels * V::numbers + lists + 1 +
         kSparseStepWords;
}

struct SparseGrid {
  int width, tiles_of_panel;  // of a panel
  int channels, lists;        // of a group: its input channels, the lists of its outputs
  SparseStaging staging;
  int shared_bytes;
  unsigned tiles, output_blocks, groups, threads;
};

// The launch; nullopt if the kernel is not for it: channels that it cannot read V::channels at a time, or sizes that do
// not fit in 32 bits, where it counts in those, or in shared memory.
//
// A block of 512 threads computes twice the outputs from the same z. But a multiprocessor has room for two of 256,
// which hide each other's latencies, and which make more blocks where tiles are few.
template <class V>
std::optional<SparseGrid> sparse_grid(const ConvShape& s, const SparseDevice& device) {
  const int64_t limit = int64_t(1) << 30, outputs = s.out_channels / s.groups;
  const int64_t largest = std::max({s.in_channels, outputs, s.height, s.width, s.out_height, s.out_width});
  if (largest >= limit || s.in_channels / s.groups % V::channels != 0) return std::nullopt;
  const int width = choose_width<V>(s);
  if (width == 0 || s.images * bands_of_image(s) * width >= limit) return std::nullopt;
  if ((more_images<V>(s, width) + 1) * s.in_channels * s.height * s.width >= 4 * limit - 1) return std::nullopt;
  const int64_t tiles_of_panel = sparse_tiles<V>(s, width), tiles = (s.out_width + width - 1) / width * tiles_of_panel;

  const auto grid_of = [&](int threads) {
    const SparseStaging staging = sparse_staging<V>(largest_halo<V>(s, width), threads);
    const int64_t output_blocks = (outputs + V::outputs(threads) - 1) / V::outputs(threads);
    const int lists = int(outputs + kSparseListOutputs - 1) / kSparseListOutputs;
    return SparseGrid{width,
                      int(tiles_of_panel),
                      int(s.in_channels / s.groups),
                      lists,
                      staging,
                      SparseShared<V>(threads).bytes(staging.pairs),
                      unsigned(tiles),
                      unsigned(output_blocks),
                      unsigned(s.groups),
                      unsigned(threads)};
  };
  const SparseGrid small = grid_of(kSparseThreads / 2), large = grid_of(kSparseThreads);
  const bool pays = small.output_blocks > 1 && tiles * s.groups >= device.processors;
  const int reserved = 1024;  // by the system, for each block
  const bool alone = 2 * (small.shared_bytes + reserved) > device.of_processor;
  const SparseGrid& grid = (pays || alone) && large.shared_bytes <= device.of_block ? large : small;
  if (grid.shared_bytes > device.of_block) return std::nullopt;
  if (tiles >= 2 * limit || small.output_blocks > 65535 || s.groups > 65535) return std::nullopt;
  return grid;
}

}  // namespace explainfix
