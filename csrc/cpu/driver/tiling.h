// Driver of the tile kernels: works out grid, masks, blocks and scratch once a call, then runs tiles on torch's
// threads.
#pragma once

#include "shared/conv_params.h"
#include "torch_api/stable_abi.h"

namespace explainfix {

// A correlation that tile kernels can do: y = conv(x) or, with the basis flipped and channels exchanged, dx =
// conv'(dy).
struct Correlation {
  const Tensor& x;
  Tensor& y;
  std::optional<Tensor> bias;
  const Tensor& basis;  // (L, K, K) double
  bool flipped;         // use the basis upside down and mirrored
  double scale;
  int64_t groups;
  std::vector<int64_t> stride, padding;
};

// Can tile kernels do this geometry in this dtype?
bool tiles_fit(const Tensor& x, const Tensor& basis, const std::vector<int64_t>& stride,
               const std::vector<int64_t>& dilation);

void run_index(const Correlation& conv, const Tensor& packed, bool transposed);
// x (N, groups, H, W) in planes; index (O, 1). False where the basis is not the DCT.
bool run_depthwise(const Correlation& conv, const Tensor& index);
void run_low_rank(const Correlation& conv, const Tensor& coeff, bool transposed);

// The input gradient with stride 2: conv.x is dy, conv.y is dx, the rest is the forward convolution's.
void run_index_transposed(const Correlation& conv, const Tensor& packed);
void run_low_rank_transposed(const Correlation& conv, const Tensor& coeff);

// The instruction set in use, as plan.py numbers them; `level` >= 0 lowers it for this process (tests, benchmarks).
int64_t cpu_isa(int64_t level);

}  // namespace explainfix
