// The ops explainfix::hadamard_conv2d and hadamard_conv2d_input_grad on the CPU: hands a call to the tile kernel
// (cpu/driver/hadamard.h), or composes the weight and calls torch's convolution (torch_api/dense_plan.h).
#include <algorithm>

#include "cpu/driver/hadamard.h"
#include "cpu/driver/tiling.h"
#include "torch_api/dense_plan.h"

namespace explainfix {
namespace {

// The filters (O, I/groups, kh, kw), in x's dtype.
Tensor compose(const HadamardFilters& f, const Tensor& x) {
  Tensor weight = torch::stable::new_empty(x, {f.outputs, f.per_group, f.kh, f.kw});
  switch_floating(x.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* to = weight.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, f.outputs, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> filter(f.kh * f.kw);
      for (int64_t o = begin; o < end; ++o) {
        for (int64_t i = 0; i < f.per_group; ++i) {
          f.filter(o, i, filter.data());
          for (int64_t k = 0; k < f.kh * f.kw; ++k) {
            to[(o * f.per_group + i) * f.kh * f.kw + k] = static_cast<T>(filter[k]);
          }
        }
      }
    });
  });
  return weight;
}

Tensor weight_of(const HadamardFilters& f, const std::optional<Tensor>& packed, const Tensor& x) {
  const std::optional<Tensor> kept = kept_weight(packed, x, {f.outputs, f.per_group, f.kh, f.kw});
  return kept ? *kept : compose(f, x);
}

// With AMX, torch multiplies bfloat16 matrices faster than x can be read: the transform pays from 128 channels on.
bool torch_is_faster(const Tensor& x, const HadamardFilters& f) {
  return x.scalar_type() == ScalarType::BFloat16 && has_amx() && std::min(f.outputs / f.groups, f.per_group) < 128;
}

bool kernel_fits(int64_t plan, const Tensor& x, const HadamardFilters& f, const ConvParams& conv) {
  if ((plan & kAuto) && torch_is_faster(x, f)) return false;
  return (plan & ~kAuto) == kHadamard && hadamard_fits(x, f, conv);
}

Tensor hadamard_conv2d_cpu(const Tensor& x, const Tensor& columns, const Tensor& rows, const Tensor& outputs,
                           const Tensor& inputs, const std::optional<Tensor>& packed, const std::optional<Tensor>& bias,
                           const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                           const std::vector<int64_t>& dilation, int64_t groups, int64_t order, int64_t stages,
                           double scale, int64_t plan) {
  const HadamardBank bank{columns, rows, outputs, inputs, order, stages, scale};
  const ConvParams conv{stride, padding, dilation, groups};
  const std::vector<int64_t> out = check_hadamard_forward(x, bank, packed, bias, conv, plan);
  const HadamardFilters f(bank);
  if (!kernel_fits(plan, x, f, conv)) return dense_forward(x, weight_of(f, packed, x), bias, conv);
  Tensor y = empty_planes(x, f.outputs, out[0], out[1]);
  run_hadamard(x, y, bias, f, conv, false);
  return y;
}

Tensor hadamard_conv2d_input_grad_cpu(const Tensor& grad, const Tensor& columns, const Tensor& rows,
                                      const Tensor& outputs, const Tensor& inputs, const std::optional<Tensor>& packed,
                                      const std::vector<int64_t>& input_size, const std::vector<int64_t>& stride,
                                      const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                      int64_t groups, int64_t order, int64_t stages, double scale, int64_t plan) {
  const HadamardBank bank{columns, rows, outputs, inputs, order, stages, scale};
  const ConvParams conv{stride, padding, dilation, groups};
  check_hadamard_input_grad(grad, bank, packed, input_size, conv, plan);
  const HadamardFilters f(bank);
  if (!kernel_fits(plan, grad, f, conv)) return dense_input_grad(grad, weight_of(f, packed, grad), input_size, conv);
  Tensor dx = empty_planes(grad, f.per_group * groups, input_size[0], input_size[1]);
  run_hadamard(grad, dx, std::nullopt, f, conv, true);
  return dx;
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CPU, m) {
  m.impl("hadamard_conv2d", TORCH_BOX(&explainfix::hadamard_conv2d_cpu));
  m.impl("hadamard_conv2d_input_grad", TORCH_BOX(&explainfix::hadamard_conv2d_input_grad_cpu));
}
