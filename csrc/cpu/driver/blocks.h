// The blocks of input channels that a tile is computed in, as structs of pointers. Those of the sparse index family are
// read from what Python packed (packed_blocks.h), those of the low-rank family are made here (low_rank_blocks.h). Used
// by cpu/driver/tiling.cpp and cpu/driver/stride2_grad.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/tile/tiled_conv.h"

namespace explainfix {

struct Blocks {
  std::vector<Block> blocks;
  std::vector<int32_t> begin;  // the first block of each group, and where the last group's end
  bool group_blocks = true;    // each group has its own; else all share the same
  std::vector<QuadList> lists;
  std::vector<Segment> segments;
  std::vector<TransformOp> ops;
  int max_rows = 1, max_channels = 1;  // of the largest block
  double work = 0;                     // vector operations for each vector of pixels, in one group
};

// Blocks of the input gradient with stride 2.
struct Stride2Blocks {
  std::vector<Stride2Block> blocks;
  std::vector<QuadList> lists;
  std::vector<int32_t> rows;
  int per_group = 0, out_blocks = 1, functions = 0, max_rows = 1, max_channels = 1;
  bool group_blocks = false;  // each group has its own
  double work = 0;            // as that of Blocks
};

}  // namespace explainfix
