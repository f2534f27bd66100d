// All kernels of one instruction set, gathered in the table that the driver calls them by. Each isa_*.cpp includes this
// once, after it has said which set it is. A new one also needs its place in cpu/driver/choose_isa.cpp.
#include "cpu/tile/depthwise.h"
#include "cpu/tile/hadamard.h"
#include "cpu/tile/low_rank.h"
#include "cpu/tile/passes.h"
#include "cpu/tile/plane_conv.h"
#include "cpu/tile/pointwise.h"
#include "cpu/tile/pool.h"
#include "cpu/tile/sparse_index.h"
#include "cpu/tile/stride2_grad.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Vectors in a sub-tile, as many as registers hold of sums for four outputs.
constexpr int kSparseIndexVectors = kLanes == 16 ? 7 : 3;  // 28 of 32 registers, 12 of 16
constexpr int kLowRankVectors = kLanes == 16 ? 6 : 3;      // 24 and 6 for the rows of z, or 12 and 3

extern const TileKernels kernels;  // declared `extern` first, for a constant is otherwise its file's own
const TileKernels kernels = {kLanes,
                             kSparseIndexVectors,
                             kLowRankVectors,
                             kPointwiseVectors,
                             sparse_index_tile<kSparseIndexVectors>,
                             low_rank_tile<kLowRankVectors>,
                             depthwise_plane,
                             hadamard_tile,
                             sparse_index_stride2_grad_tile<kSparseIndexVectors>,
                             low_rank_stride2_grad_tile<kLowRankVectors>,
                             pointwise_tile,
                             plane_conv,
                             finish_planes,
                             max_pool_planes,
                             mean_planes,
                             run_pass,
                             largest};

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
