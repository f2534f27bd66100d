// The blocks of input channels that a tile is computed in, as structs of pointers. Those of the sparse index family are
// read from what Python packed (shared/packed_layout.h); those of the low-rank family are made here, for all of its
// filters use all functions. Called by cpu/driver/tiling.cpp and cpu/driver/stride2_grad.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/tile/tiled_conv.h"

namespace explainfix {

struct Blocks {
  std::vector<Block> blocks;
  std::vector<int32_t> begin;  // the first block of each group, and where the last group's end
  int per_group = 1;           // 0: all groups share the same blocks
  std::vector<QuadList> lists;
  std::vector<Segment> segments;
  std::vector<TransformOp> ops;
  int max_rows = 1, max_channels = 1;  // of the largest block
  double work = 0;                     // vector operations for each vector of pixels, in one group
};

// What lies `offset` words from the start of `packed`.
template <class T>
const T* at_word(const int32_t* packed, int32_t offset) {
  return reinterpret_cast<const T*>(packed + offset);
}

inline void add_lists(const int32_t* packed, int32_t lists_at, int count, std::vector<QuadList>& lists) {
  const PackedQuadList* list = at_word<PackedQuadList>(packed, lists_at);
  for (int i = 0; i < count; ++i) {
    lists.push_back(
        {list[i].quads, at_word<Quad>(packed, list[i].quads_at), at_word<uint16_t>(packed, list[i].rows_at)});
  }
}

inline Blocks read_sparse_index_blocks(const int32_t* packed, bool input_grad) {
  Blocks b;
  const IndexHeader& header = *at_word<IndexHeader>(packed, 0);
  const IndexSection& section = *at_word<IndexSection>(packed, input_grad ? header.input_grad : header.forward);
  b.max_rows = section.max_rows;
  b.max_channels = section.max_channels;
  b.work = double(section.nonzero) / std::max(section.groups, 1);
  const int32_t* begin = reinterpret_cast<const int32_t*>(&section + 1);
  b.begin.assign(begin, begin + section.groups + 1);
  const IndexBlock* block = reinterpret_cast<const IndexBlock*>(begin + section.groups + 1);
  b.lists.reserve(size_t(section.blocks) * section.chunks);  // blocks point into it: it must not move
  for (int i = 0; i < section.blocks; ++i, ++block) {
    b.blocks.push_back({block->channel_begin, block->channel_end, block->rows, block->segments,
                        at_word<Segment>(packed, block->segments_at), at_word<TransformOp>(packed, block->ops_at),
                        b.lists.data() + b.lists.size()});
    add_lists(packed, block->lists_at, section.chunks, b.lists);
  }
  return b;
}

constexpr int kLowRankRows = 72;  // rows of z in a block: 27 KB with AVX-512

// All channels need the same functions. `names` tells which DCT function each of them is (Basis::names); functions that
// follow each other with the same vertical frequency u and rising horizontal frequencies v are one op.
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

// Blocks of the input gradient with stride 2.
struct Stride2Blocks {
  std::vector<Stride2Block> blocks;
  std::vector<QuadList> lists;
  std::vector<int32_t> rows;
  int per_group = 0, out_blocks = 1, functions = 0, max_rows = 1, max_channels = 1;
  bool group_blocks = false;  // each group has its own
  double work = 0;            // as that of Blocks
};

inline Stride2Blocks read_sparse_index_stride2_blocks(const int32_t* packed) {
  Stride2Blocks b;
  const Stride2Section& section = *at_word<Stride2Section>(packed, at_word<IndexHeader>(packed, 0)->input_grad);
  b.per_group = section.blocks;
  b.out_blocks = section.out_blocks;
  b.functions = section.functions;
  b.max_rows = section.max_rows;
  b.max_channels = section.max_channels;
  b.work = double(section.nonzero) / std::max(section.groups, 1);
  b.group_blocks = true;
  b.lists.reserve(size_t(section.groups) * b.per_group * b.out_blocks);
  const PackedStride2Block* block = reinterpret_cast<const PackedStride2Block*>(&section + 1);
  for (int i = 0; i < section.groups * b.per_group; ++i, ++block) {
    b.blocks.push_back({block->channel_begin, block->channel_end, at_word<int32_t>(packed, block->rows_at),
                        b.lists.data() + b.lists.size()});
    add_lists(packed, block->lists_at, b.out_blocks, b.lists);
  }
  return b;
}

constexpr int kLowRankStride2Rows = 128;     // rows of g in a block
constexpr int kLowRankStride2Channels = 16;  // input channels of a block, at most

inline Stride2Blocks make_low_rank_stride2_blocks(const Stride2Grad& c, const std::vector<int>& names) {
  Stride2Blocks b;
  const int channels = c.parities[0].out_channels, rank = c.grid.rank;
  b.max_channels = std::min(channels, std::max(1, std::min(kLowRankStride2Channels, kLowRankStride2Rows / rank)));
  b.per_group = (channels + b.max_channels - 1) / b.max_channels;
  b.out_blocks = (c.grid.in_channels + kStride2Outputs - 1) / kStride2Outputs;
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

}  // namespace explainfix
