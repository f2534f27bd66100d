// The entry to the CPU's tile kernels, called by cpu/ops/fixed_conv2d.cpp. Each function works out grid, masks, blocks
// and scratch memory once a call, then runs tiles on the host's threads.
#pragma once

#include <optional>
#include <vector>

#include "cpu/tile/tiled_conv.h"
#include "host/host.h"

namespace explainfix {

// A correlation y = correlate(x, filters) that tile kernels compute. The input gradient with stride 1 is one too: of
// dy, with the basis flipped and the channels exchanged.
struct Correlation {
  const Tensor& x;
  Tensor& y;
  std::optional<Tensor> bias;
  const Tensor& basis;  // (L, K, K) double
  bool flipped;         // use the basis upside down and mirrored
  double scale;
  int64_t groups;
  std::vector<int64_t> stride, padding;
  Finish finish{};  // of run_sparse_index and run_low_rank, for y in planes of float32
};

// Rows, columns and vectors of pixels are counted in 32 bits: are these few enough?
inline bool can_count(int64_t height, int64_t width) {
  return height < 1 << 28 && width < 1 << 28 && height * width < int64_t(1) << 32;
}

// Are there tile kernels for this geometry and dtype?
bool tiles_fit(const Tensor& x, const Tensor& basis, const std::vector<int64_t>& stride,
               const std::vector<int64_t>& dilation);

// `packed` is what Python's pack_index made, `coeff` is (O, I/groups, L).
void run_sparse_index(const Correlation& conv, const Tensor& packed, bool input_grad);
void run_low_rank(const Correlation& conv, const Tensor& coeff, bool input_grad);
// x (N, groups, H, W) in planes; index (O, 1). False where the basis is not the DCT.
bool run_depthwise(const Correlation& conv, const Tensor& index);

// The input gradient with stride 2: conv.x is dy, conv.y is dx, the rest is the forward convolution's.
void run_sparse_index_stride2_grad(const Correlation& conv, const Tensor& packed);
void run_low_rank_stride2_grad(const Correlation& conv, const Tensor& coeff);

// The instruction set in use: 0 plain, 1 AVX2, 2 AVX-512. `level` >= 0 limits it for this process (tests, benchmarks).
int64_t cpu_isa(int64_t level);
// Does torch multiply bfloat16 matrices in hardware (AMX)? Not where kernels are limited to less than AVX-512.
bool has_amx();

}  // namespace explainfix
