// The kernels that fixed_conv2d.cu chooses from: each takes a call, or nullopt: it is not for such a one.
#pragma once

#include <optional>

#include "shared/conv_params.h"
#include "torch_api/stable_abi.h"

namespace explainfix {

// y = conv(x, W) + bias, or (input_grad) its input gradient: x is then the output's gradient. `stride` is the
// convolution's; `shape` is as ConvShape says if that is 1, else (input_grad) with in and out as they are.
struct CudaConv {
  const Tensor& x;                      // any layout: contiguous in shape.channels_last' format
  const Tensor& basis;                  // (L, kh, kw) double
  const Tensor& steering;               // (O, I/groups) uint8, or (O, I/groups, L) floating
  const std::optional<Tensor>& packed;  // the plan's
  const std::optional<Tensor> bias;     // (O,), x's dtype
  double scale;
  ConvShape shape;
  bool input_grad;
};

std::optional<Tensor> run_depthwise(const CudaConv& conv);
std::optional<Tensor> run_sparse_index(const CudaConv& conv);
std::optional<Tensor> run_low_rank(const CudaConv& conv, bool tf32);

}  // namespace explainfix
