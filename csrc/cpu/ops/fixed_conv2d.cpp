// The ops explainfix::fixed_conv2d and fixed_conv2d_input_grad on the CPU: hands a call to the tile kernels of its plan
// (cpu/driver/tiling.h), or composes the weight and calls torch's convolution (torch_api/dense_plan.h).
#include <algorithm>

#include "cpu/driver/tiling.h"
#include "shared/conv_params.h"
#include "torch_api/dense_plan.h"

namespace explainfix {
namespace {

// Filters that each thread composes at least: below about 20 microseconds of work a second thread does not pay.
constexpr int64_t kGrain = 4096;

template <class T>
void expand_index(const WeightLayout& w, const uint8_t* index, const double* basis, double scale, T* weight) {
  // Each basis function, scaled and rounded once. The last row of the table is the zero filter.
  std::vector<T> table((w.rank + 1) * w.k2, T(0.0));
  for (int64_t i = 0; i < w.rank * w.k2; ++i) table[i] = static_cast<T>(scale * basis[i]);
  torch::stable::parallel_for(0, w.filters, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
      const T* function = &table[std::min<int64_t>(index[f], w.rank) * w.k2];
      T* filter = weight + f / w.per_group * w.per_group * w.k2 + f % w.per_group * w.i_stride;
      for (int64_t k = 0; k < w.k2; ++k) filter[k * w.k_stride] = function[k];
    }
  });
}

template <class T, class S>
void expand_coeff(const WeightLayout& w, const S* coeff, const double* basis, double scale, T* weight) {
  torch::stable::parallel_for(0, w.filters, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<double> sum(w.k2);
    for (int64_t f = begin; f < end; ++f) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t l = 0; l < w.rank; ++l) {
        const double c = static_cast<double>(coeff[f * w.rank + l]);
        for (int64_t k = 0; k < w.k2; ++k) sum[k] += c * basis[l * w.k2 + k];
      }
      T* filter = weight + f / w.per_group * w.per_group * w.k2 + f % w.per_group * w.i_stride;
      for (int64_t k = 0; k < w.k2; ++k) filter[k * w.k_stride] = static_cast<T>(scale * sum[k]);
    }
  });
}

Tensor materialize_cpu(const Bank& bank, const Tensor& like, MemoryFormat format) {
  Tensor weight = empty_in(like, bank.shape(), format);
  const WeightLayout layout = weight_layout(bank.shape(), bank.basis.size(0), format);
  const Tensor basis = dense_in(bank.basis);
  const Tensor steering = dense_in(bank.steering);
  const double* b = basis.const_data_ptr<double>();
  switch_floating(like.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* out = weight.mutable_data_ptr<T>();
    if (steering.scalar_type() == ScalarType::Byte) {
      expand_index(layout, steering.const_data_ptr<uint8_t>(), b, bank.scale, out);
    } else {
      switch_floating(steering.scalar_type(), "steering", [&](auto steering_tag) {
        using S = typename decltype(steering_tag)::type;
        expand_coeff(layout, steering.const_data_ptr<S>(), b, bank.scale, out);
      });
    }
  });
  return weight;
}

// Is torch faster with a large input like this, whose planes are copied, than the sparse index or low-rank kernel? With
// small ones its fixed cost is the larger one. Measured on a Xeon with AMX (bench/wide.py); `channels`: of a group.
bool torch_is_faster(int64_t plan, const Tensor& x, int64_t channels, int64_t kernel, int64_t stride, bool last,
                     bool input_grad) {
  if (channels == 1) return false;
  const bool strided = stride == 2 && !input_grad;
  if (x.scalar_type() == ScalarType::BFloat16) return has_amx() && x.numel() >= 1 << 17 && (last || strided);
  if (plan != kIndex || x.numel() < 1 << 20) return false;
  if (!last) return strided && kernel == 3 && channels < 16;
  if (stride == 1) return kernel == 3 && channels < 32;
  return kernel < 7 ? channels < 64 : input_grad && channels < 64;
}

// Can the plan's tile kernel do this call, and faster than torch? Otherwise the dense plan does it. `height` and
// `width` are the result's.
bool plan_fits(int64_t plan, const Tensor& x, const Tensor& basis, const Tensor& steering,
               const std::optional<Tensor>& packed, const std::vector<int64_t>& stride,
               const std::vector<int64_t>& dilation, int64_t groups, bool input_grad, int64_t height, int64_t width) {
  const bool chosen = plan & kAuto;
  plan &= ~kAuto;
  // Without input channels the result is the bias, or zero.
  if (plan == kDense || x.size(1) == 0 || !tiles_fit(x, basis, stride, dilation)) return false;
  if (!can_count(x.size(2), x.size(3)) || !can_count(height, width)) return false;
  const bool last = memory_format_of(x) == MemoryFormat::ChannelsLast;
  if (plan == kDepthwise) {
    // Torch's own depthwise convolution is as fast with channels_last. There is no kernel for a gradient that sums
    // several outputs or has stride 2. And a plane of few vectors is mostly set-up: 7x7 ran at 0.6 of torch's speed,
    // 14x14 at 1.3.
    const bool one_output = steering.size(0) == groups && stride[0] == 1;
    const bool single = steering.scalar_type() == ScalarType::Byte && steering.size(1) == 1;
    return single && !last && (!input_grad || one_output) && height * width >= 128;
  }
  // With channels_last and groups of 5 to 15 channels, lanes idle while x is transposed to planes, and torch is faster
  // (0.7 to 0.8 of its speed was measured; the gradient is not slower).
  const int64_t channels = x.size(1) / groups;
  if (!input_grad && last && groups > 1 && channels > 4 && channels < 16) return false;
  if (chosen && torch_is_faster(plan, x, channels, basis.size(1), stride[0], last, input_grad)) return false;
  return plan == kIndex ? packed.has_value() : steering.scalar_type() == ScalarType::Float;
}

// Returns false where the kernel finds only now that it cannot do the call.
bool run_plan(int64_t plan, const Correlation& conv, const Tensor& steering, const std::optional<Tensor>& packed,
              bool input_grad) {
  plan &= ~kAuto;
  if (plan == kDepthwise) return run_depthwise(conv, steering);
  plan == kIndex ? run_sparse_index(conv, *packed, input_grad) : run_low_rank(conv, steering, input_grad);
  return true;
}

Tensor fixed_conv2d_cpu(const Tensor& x, const Tensor& basis, const Tensor& steering,
                        const std::optional<Tensor>& packed, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups, double scale, int64_t plan) {
  const Bank bank{basis, steering, scale};
  const ConvParams params{stride, padding, dilation, groups};
  const std::vector<int64_t> out = check_forward(x, bank, packed, bias, params, plan & ~kAuto);
  if (plan_fits(plan, x, basis, steering, packed, stride, dilation, groups, false, out[0], out[1])) {
    Tensor y = empty_planes(x, steering.size(0), out[0], out[1]);
    const Correlation conv{x, y, bias, basis, false, scale, groups, stride, padding};
    if (run_plan(plan, conv, steering, packed, false)) return y;
  }
  return dense_forward(x, weight_of(bank, packed, x, materialize_cpu), bias, params);
}

Tensor fixed_conv2d_input_grad_cpu(const Tensor& grad, const Tensor& basis, const Tensor& steering,
                                   const std::optional<Tensor>& packed, const std::vector<int64_t>& input_size,
                                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, int64_t groups, double scale, int64_t plan) {
  const Bank bank{basis, steering, scale};
  const ConvParams params{stride, padding, dilation, groups};
  check_input_grad(grad, bank, packed, input_size, params, plan & ~kAuto);
  if (plan_fits(plan, grad, basis, steering, packed, stride, dilation, groups, true, input_size[0], input_size[1])) {
    const bool index = (plan & ~kAuto) == kIndex;
    Tensor dx = empty_planes(grad, steering.size(1) * groups, input_size[0], input_size[1]);
    if (stride[0] == 2) {
      const Correlation conv{grad, dx, std::nullopt, basis, false, scale, groups, stride, padding};
      index ? run_sparse_index_stride2_grad(conv, *packed) : run_low_rank_stride2_grad(conv, steering);
      return dx;
    }
    // With stride 1 it is a convolution of the gradient with the flipped filters, channels exchanged.
    const std::vector<int64_t> rest{basis.size(1) - 1 - padding[0], basis.size(2) - 1 - padding[1]};
    const Correlation conv{grad, dx, std::nullopt, basis, true, scale, groups, stride, rest};
    if (run_plan(plan, conv, steering, packed, true)) return dx;
  }
  return dense_input_grad(grad, weight_of(bank, packed, grad, materialize_cpu), input_size, params);
}

int64_t cpu_isa_cpu(const Tensor& /* like: an op without a tensor has no device */, int64_t level) {
  return cpu_isa(level);
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CPU, m) {
  m.impl("fixed_conv2d", TORCH_BOX(&explainfix::fixed_conv2d_cpu));
  m.impl("fixed_conv2d_input_grad", TORCH_BOX(&explainfix::fixed_conv2d_input_grad_cpu));
  m.impl("cpu_isa", TORCH_BOX(&explainfix::cpu_isa_cpu));
}
