// Sums for four outputs at the pixels of a sub-tile, held in registers while a block's rows of z are added to them. The
// families (sparse_index.h, low_rank.h) bring what is added.
#pragma once

#include "cpu/tile/simd.h"
#include "cpu/tile/tiled_conv.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Where the sums of four outputs start and go. In the first block they start at the bias; in between they are kept in
// scratch memory; from the last block they may go to the output itself.
struct Accumulators {
  float* y[4];      // their rows in scratch memory
  float* final[4];  // their pixels in the output, or null: not the last block, or the output is written otherwise
  float bias[4];    // zero in all blocks but the first
  bool first;       // block: nothing is in scratch memory yet
  int tail;         // pixels that exist in the last vector, for `final`
};

// Calls add(acc) between loading and storing the sums; P: vectors of the sub-tile.
template <int P, class Add>
EXPLAINFIX_INLINE void accumulate(const Accumulators& a, Add&& add) {
  V acc[4][P];
  if (a.final[0]) {
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      EXPLAINFIX_UNROLL for (int p = 0; p < P * kLanes; p += 16) __builtin_prefetch(a.final[o] + p, 1, 3);
    }
  }
  EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
    const V start = splat(a.bias[o]);
    EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] = start;
  }
  add(acc);
  // Earlier blocks are added only now: one long chain of additions would round sqrt(blocks) times as much.
  if (!a.first) {
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] += load(a.y[o] + p * kLanes);
    }
  }
  if (!a.final[0]) {
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) store(a.y[o] + p * kLanes, acc[o][p]);
    }
    return;
  }
  EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
    EXPLAINFIX_UNROLL for (int p = 0; p < P - 1; ++p) store(a.final[o] + p * kLanes, acc[o][p]);
    if (a.tail == kLanes) {
      store(a.final[o] + (P - 1) * kLanes, acc[o][P - 1]);
    } else {
      store((1u << a.tail) - 1, a.final[o] + (P - 1) * kLanes, acc[o][P - 1]);
    }
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
