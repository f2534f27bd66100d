// explainfix::fixed_conv2d and its input gradient on CUDA.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "dense_plan.h"
#include "kernels/materialize.cuh"
#include "launch.h"

namespace explainfix {
namespace {

template <class T>
void launch_materialize(const WeightLayout& layout, const Tensor& steering, const double* basis, double scale,
                        T* weight) {
  const int64_t elements = layout.filters * layout.k2;
  if (steering.scalar_type() == ScalarType::Byte) {
    launch(steering, elements, materialize_index_kernel<T>, layout, steering.const_data_ptr<uint8_t>(), basis, scale,
           weight);
  } else {
    switch_floating(steering.scalar_type(), "steering", [&](auto tag) {
      using S = typename decltype(tag)::type;
      using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
      launch(steering, elements, materialize_coeff_kernel<T, S, Acc>, layout, steering.const_data_ptr<S>(), basis,
             scale, weight);
    });
  }
}

Tensor materialize_cuda(const Bank& bank, const Tensor& like, MemoryFormat format) {
  Tensor weight = empty_weight(bank, like, format);
  const Tensor basis = torch::stable::contiguous(bank.basis);
  const Tensor steering = torch::stable::contiguous(bank.steering);
  switch_floating(like.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_materialize(weight_layout(bank, format), steering, basis.const_data_ptr<double>(), bank.scale,
                       weight.mutable_data_ptr<T>());
  });
  return weight;
}

Tensor fixed_conv2d_cuda(const Tensor& x, const Tensor& basis, const Tensor& steering,
                         const std::optional<Tensor>& packed, const std::optional<Tensor>& bias,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups, double scale, int64_t plan) {
  STD_TORCH_CHECK(plan == kDense, "plan must be ", int64_t(kDense), ", got ", plan);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  return dense_forward(x, {basis, steering, scale}, packed, bias, {stride, padding, dilation, groups},
                       materialize_cuda);
}

Tensor fixed_conv2d_input_grad_cuda(const Tensor& grad, const Tensor& basis, const Tensor& steering,
                                    const std::optional<Tensor>& packed, const std::vector<int64_t>& input_size,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& dilation, int64_t groups, double scale, int64_t plan) {
  STD_TORCH_CHECK(plan == kDense, "plan must be ", int64_t(kDense), ", got ", plan);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  return dense_input_grad(grad, {basis, steering, scale}, packed, input_size, {stride, padding, dilation, groups},
                          materialize_cuda);
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CUDA, m) {
  m.impl("fixed_conv2d", TORCH_BOX(&explainfix::fixed_conv2d_cuda));
  m.impl("fixed_conv2d_input_grad", TORCH_BOX(&explainfix::fixed_conv2d_input_grad_cuda));
}
