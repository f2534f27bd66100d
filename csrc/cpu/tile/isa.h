// The tile kernels of one instruction set, as the driver calls them.
#include "cpu/tile/depthwise.h"
#include "cpu/tile/passes.h"
#include "cpu/tile/stride2_grad.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kIndexVectors = kLanes == 16 ? 7 : 3;    // with four outputs: 28 of 32 registers, 12 of 16
constexpr int kLowRankVectors = kLanes == 16 ? 6 : 3;  // leaves registers for the rows: 24 + 6, 12 + 3

extern const TileKernels kernels;  // not of this file alone
const TileKernels kernels = {kLanes,
                             kIndexVectors,
                             kLowRankVectors,
                             index_tile<kIndexVectors>,
                             low_rank_tile<kLowRankVectors>,
                             depthwise_plane,
                             index_transposed_tile<kIndexVectors>,
                             low_rank_transposed_tile<kLowRankVectors>,
                             run_pass};

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
