// The ops explainfix::fixed_conv2d and fixed_conv2d_input_grad on CUDA: hands a call to the kernels of its plan
// (conv_kernels.h), or composes the weight and calls torch's convolution (torch_api/dense_plan.h).
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "cuda/launch/conv_kernels.h"
#include "cuda/launch/materialize.h"
#include "torch_api/dense_plan.h"

namespace explainfix {
namespace {

Tensor materialize_cuda(const Bank& bank, const Tensor& like, MemoryFormat format) {
  Tensor weight = empty_in(like, bank.shape(), format);
  const Tensor basis = dense_in(bank.basis);
  const Tensor steering = dense_in(bank.steering);
  switch_floating(like.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_materialize(weight_layout(bank.shape(), bank.basis.size(0), format), steering,
                       basis.const_data_ptr<double>(), bank.scale, weight.mutable_data_ptr<T>());
  });
  return weight;
}

// The result of the plan's kernel, or nullopt if it is not for this call.
std::optional<Tensor> run_kernel(int64_t plan, const CudaConv& conv, const std::vector<int64_t>& dilation) {
  const ConvShape& s = conv.shape;
  const bool empty = conv.x.numel() == 0 || s.images * s.out_channels * s.out_height * s.out_width == 0;
  if (empty || dilation[0] != 1 || dilation[1] != 1) return std::nullopt;
  return plan == kDepthwise ? run_depthwise(conv) : std::nullopt;
}

ConvShape shape_of(const Tensor& in, int64_t out_channels, const std::vector<int64_t>& out_size, const Tensor& basis,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, int64_t groups) {
  ConvShape s{in.size(0), groups, in.size(1), out_channels, in.size(2), in.size(3), out_size[0], out_size[1]};
  for (int a = 0; a < 2; ++a) {
    s.kernel[a] = int(basis.size(1 + a));
    s.stride[a] = int(stride[a]);
    s.padding[a] = int(padding[a]);
  }
  s.channels_last = memory_format_of(in) == MemoryFormat::ChannelsLast;
  return s;
}

Tensor fixed_conv2d_cuda(const Tensor& x, const Tensor& basis, const Tensor& steering,
                         const std::optional<Tensor>& packed, const std::optional<Tensor>& bias,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups, double scale, int64_t plan) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Bank bank{basis, steering, scale};
  const ConvParams params{stride, padding, dilation, groups};
  plan &= ~kAuto;
  const std::vector<int64_t> out = check_forward(x, bank, packed, bias, params, plan);
  const ConvShape shape = shape_of(x, steering.size(0), out, basis, stride, padding, groups);
  const CudaConv conv{x, basis, steering, packed, bias, scale, shape, false};
  if (auto y = run_kernel(plan, conv, dilation)) return *y;
  return dense_forward(x, weight_of(bank, packed, x, materialize_cuda), bias, params);
}

Tensor fixed_conv2d_input_grad_cuda(const Tensor& grad, const Tensor& basis, const Tensor& steering,
                                    const std::optional<Tensor>& packed, const std::vector<int64_t>& input_size,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& dilation, int64_t groups, double scale, int64_t plan) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Bank bank{basis, steering, scale};
  const ConvParams params{stride, padding, dilation, groups};
  plan &= ~kAuto;
  check_input_grad(grad, bank, packed, input_size, params, plan);
  // With stride 1 it is a convolution of the output's gradient with the flipped filters, channels exchanged.
  std::vector<int64_t> rest = padding;
  if (stride[0] == 1 && stride[1] == 1) rest = {basis.size(1) - 1 - padding[0], basis.size(2) - 1 - padding[1]};
  const ConvShape shape = shape_of(grad, steering.size(1) * groups, input_size, basis, stride, rest, groups);
  const CudaConv conv{grad, basis, steering, packed, std::nullopt, scale, shape, true};
  if (auto dx = run_kernel(plan, conv, dilation)) return *dx;
  return dense_input_grad(grad, weight_of(bank, packed, grad, materialize_cuda), input_size, params);
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CUDA, m) {
  m.impl("fixed_conv2d", TORCH_BOX(&explainfix::fixed_conv2d_cuda));
  m.impl("fixed_conv2d_input_grad", TORCH_BOX(&explainfix::fixed_conv2d_input_grad_cuda));
}
