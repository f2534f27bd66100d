// Blocks of input channels: read from what Python packed (index family), or made on the spot (low-rank family).
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/tile/tiled_conv.h"

namespace explainfix {

struct Blocks {
  std::vector<Block> blocks;
  std::vector<int32_t> begin;
  int per_group = 1;  // 0: all groups have the same
  std::vector<QuadList> lists;
  std::vector<Segment> segments;
  std::vector<TransformOp> ops;
  int max_rows = 1, max_channels = 1;
  double work = 0;  // vector operations for each vector of pixels, in one group
};

constexpr int kSectionHeader = 6, kBlockWords = 7, kAdjointHeader = 7, kAdjointWords = 4;

// Reads what packing.py wrote.
inline Blocks read_index_blocks(const int32_t* words, bool transposed) {
  Blocks b;
  const int32_t* section = words + words[transposed ? 1 : 0];
  const int groups = section[0], count = section[1], chunks = section[2];
  b.max_rows = section[3];
  b.max_channels = section[4];
  b.work = double(section[5]) / std::max(groups, 1);
  b.begin.assign(section + kSectionHeader, section + kSectionHeader + groups + 1);
  const int32_t* row = section + kSectionHeader + groups + 1;
  b.lists.reserve(size_t(count) * chunks);
  for (int i = 0; i < count; ++i, row += kBlockWords) {
    b.blocks.push_back({row[0], row[1], row[2], row[3], reinterpret_cast<const Segment*>(words + row[4]),
                        reinterpret_cast<const TransformOp*>(words + row[5]), b.lists.data() + b.lists.size()});
    for (const int32_t* list = words + row[6]; list < words + row[6] + 3 * chunks; list += 3) {
      b.lists.push_back({list[0], reinterpret_cast<const Quad*>(words + list[1]),
                         reinterpret_cast<const uint16_t*>(words + list[2])});
    }
  }
  return b;
}

struct AdjointBlocks {
  std::vector<AdjointBlock> blocks;
  std::vector<QuadList> lists;
  std::vector<int32_t> rows;
  int per_group = 0, out_blocks = 1, functions = 0, max_rows = 1, max_channels = 1;
  bool group_blocks = false;
  double work = 0;
};

// Reads what packing.py wrote.
inline AdjointBlocks read_adjoint_blocks(const int32_t* words) {
  AdjointBlocks b;
  const int32_t* section = words + words[1];
  const int groups = section[0];
  b.per_group = section[1];
  b.out_blocks = section[2];
  b.functions = section[3];
  b.max_rows = section[4];
  b.max_channels = section[5];
  b.work = double(section[6]) / std::max(groups, 1);
  b.group_blocks = true;
  b.lists.reserve(size_t(groups) * b.per_group * b.out_blocks);
  const int32_t* row = section + kAdjointHeader;
  for (int i = 0; i < groups * b.per_group; ++i, row += kAdjointWords) {
    b.blocks.push_back({row[0], row[1], words + row[2], b.lists.data() + b.lists.size()});
    for (const int32_t* list = words + row[3]; list < words + row[3] + 3 * b.out_blocks; list += 3) {
      b.lists.push_back({list[0], reinterpret_cast<const Quad*>(words + list[1]),
                         reinterpret_cast<const uint16_t*>(words + list[2])});
    }
  }
  return b;
}

constexpr int kAdjointRows = 128;     // of g in a block
constexpr int kAdjointOutputs = 128;  // of z that are read together, as packing.py

// All channels have all functions.
inline AdjointBlocks make_low_rank_adjoint_blocks(const TransposedConv& c, const std::vector<int>& names) {
  AdjointBlocks b;
  const int channels = c.rows[0].out_channels, rank = c.grid.rank;
  b.max_channels = std::min(channels, std::max(1, std::min(16, kAdjointRows / rank)));
  b.per_group = (channels + b.max_channels - 1) / b.max_channels;
  b.out_blocks = (c.grid.in_channels + kAdjointOutputs - 1) / kAdjointOutputs;
  b.functions = std::max(rank, c.grid.kernel * c.grid.kernel);
  b.max_rows = b.max_channels * rank;
  b.work = double(channels) * c.grid.in_channels * rank;
  b.rows.assign(size_t(b.max_channels) * b.functions, 0);
  for (int i = 0; i < b.max_channels; ++i) {
    for (int l = 0; l < rank; ++l) b.rows[i * b.functions + names[l]] = 1 + i * rank + l;
  }
  for (int first = 0; first < channels; first += b.max_channels) {
    b.blocks.push_back({first, std::min(first + b.max_channels, channels), b.rows.data(), nullptr});
  }
  return b;
}

constexpr int kLowRankRows = 72;  // rows of z in a block: 27 KB with AVX-512

// All channels need the same functions: runs of names with the same u and rising v are one op.
inline Blocks make_low_rank_blocks(const TiledConv& c, const std::vector<int>& names) {
  Blocks b;
  const int K = c.kernel, per_block = std::max(1, kLowRankRows / c.rank);
  struct Run {
    int u, columns, first;
  };
  std::vector<Run> runs;
  for (int l = 0; l < c.rank; ++l) {
    const int u = names[l] / K, bit = 1 << names[l] % K;
    if (runs.empty() || runs.back().u != u || runs.back().columns >= bit) runs.push_back({u, 0, l});
    runs.back().columns |= bit;
  }
  const int count = (c.in_channels + per_block - 1) / per_block, n_runs = int(runs.size());
  b.segments.reserve(size_t(count) * n_runs);
  b.ops.reserve(size_t(c.in_channels) * n_runs);
  for (int i = 0; i < count; ++i) {
    const int first = i * per_block, channels = std::min(per_block, c.in_channels - first);
    const size_t segment0 = b.segments.size(), op0 = b.ops.size();
    for (const Run& run : runs) {
      const int32_t at = int32_t(b.ops.size() - op0);
      b.segments.push_back({run.u, run.columns, at, at + channels});
      for (int k = 0; k < channels; ++k) {
        const bool ahead = &run == &runs[0] && first + k + 2 < c.in_channels;
        b.ops.push_back({first + k, 1 + k * c.rank + run.first, run.columns, ahead ? first + k + 2 : -1});
      }
    }
    b.blocks.push_back({first, first + channels, channels * c.rank + 1, n_runs, b.segments.data() + segment0,
                        b.ops.data() + op0, nullptr});
  }
  b.begin = {0, count};
  b.per_group = 0;
  b.max_rows = per_block * c.rank + 1;
  b.max_channels = per_block;
  b.work = double(c.out_channels) * c.in_channels * c.rank;
  return b;
}

}  // namespace explainfix
