// The blocks of the low-rank family. They are made here, not packed by Python: all of its filters use all functions.
#pragma once

#include "cpu/driver/blocks.h"

namespace explainfix {

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
  b.group_blocks = false;
  b.max_rows = per_block * c.rank + 1;
  b.max_channels = per_block;
  b.work = double(c.out_channels) * c.in_channels * c.rank;
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
