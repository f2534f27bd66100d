// The kernel families that fixed_conv2d.cu chooses from. Each function runs a call, or returns nullopt if its kernels
// are not for such a call, which the dense plan then does.
#pragma once

#include <optional>

#include "shared/conv_params.h"
#include "torch_api/stable_abi.h"

namespace explainfix {

// A call: y = conv(x, W) + bias, or with input_grad the gradient for the input, where x is the gradient for the output.
// `shape` is what the kernel computes, as ConvShape says. For a gradient with stride 2, which is no forward pass, it
// has the forward convolution's stride and padding, and `in` is still what is read.
struct CudaConv {
  const Tensor& x;                      // any strides; kernels read it contiguous, in the format of shape.channels_last
  const Tensor& basis;                  // (L, kh, kw) double
  const Tensor& steering;               // (O, I/groups) uint8, or (O, I/groups, L) floating
  const std::optional<Tensor>& packed;  // what the plan's packer made
  const std::optional<Tensor> bias;     // (O,), x's dtype
  double scale;
  ConvShape shape;
  bool input_grad;
};

std::optional<Tensor> run_depthwise(const CudaConv& conv);

}  // namespace explainfix
