// The ops explainfix::hadamard_conv2d and hadamard_conv2d_input_grad on the CPU: hands a call to the tile kernel
// (cpu/driver/hadamard.h), or composes the weight and calls torch's convolution (torch_api/dense_plan.h).
#include <algorithm>

#include "cpu/driver/hadamard.h"
#include "cpu/driver/tiling.h"
#include "torch_api/conv_checks.h"

namespace explainfix {
namespace {

void check_filters(const Tensor& x, const char* name, const HadamardBank& bank, const std::optional<Tensor>& packed,
                   int64_t groups, int64_t plan) {
  STD_TORCH_CHECK(x.dim() == 4, name, " must be [N, C, H, W], got ", describe(x));
  for (const auto& [tensor, what] : {std::pair<const Tensor&, const char*>(bank.columns, "columns"),
                                     {bank.rows, "rows"},
                                     {bank.outputs, "outputs"},
                                     {bank.inputs, "inputs"}}) {
    check_device(tensor, x, what);
  }
  if (packed) check_device(*packed, x, "packed");
  plan &= ~kAuto;
  STD_TORCH_CHECK(plan == kDense || plan == kHadamard, "plan must be ", int(kDense), " or ", int(kHadamard), ", got ",
                  plan);
  STD_TORCH_CHECK(
      bank.columns.dim() == 3 && bank.columns.scalar_type() == ScalarType::Float && bank.columns.numel() > 0,
      "columns must be Float [T, O, kh], got ", describe(bank.columns));
  STD_TORCH_CHECK(bank.rows.dim() == 5 && bank.rows.scalar_type() == ScalarType::Float && bank.rows.numel() > 0 &&
                      bank.rows.size(0) == bank.columns.size(0) && bank.rows.size(2) == groups &&
                      bank.columns.size(1) % groups == 0,
                  "rows must be Float [T, J, groups, I/groups, kw], got ", describe(bank.rows));
  const int64_t order = bank.order;
  STD_TORCH_CHECK(order >= 1 && order <= kMostPlaces && (order & (order - 1)) == 0,
                  "order must be a power of two up to ", kMostPlaces, ", got ", order);
  STD_TORCH_CHECK((bank.stages & (order - 1)) == bank.stages, "stages must be bits below order, got ", bank.stages);
  STD_TORCH_CHECK(bank.rows.size(1) * order <= kMostPlaces, "rows must be for at most ", kMostPlaces, " places");
  STD_TORCH_CHECK(bank.outputs.dim() == 1 && bank.outputs.size(0) == bank.columns.size(1) &&
                      bank.outputs.scalar_type() == ScalarType::Short,
                  "outputs must be Short [O], got ", describe(bank.outputs));
  STD_TORCH_CHECK(bank.inputs.dim() == 2 && bank.inputs.size(0) == groups && bank.inputs.size(1) == bank.rows.size(3) &&
                      bank.inputs.scalar_type() == ScalarType::Short,
                  "inputs must be Short [groups, I/groups], got ", describe(bank.inputs));
}

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
  check_filters(x, "x", bank, packed, groups, plan);
  check_geometry(conv);
  const HadamardFilters f(bank);
  STD_TORCH_CHECK(x.size(1) == f.per_group * groups, "x must have ", f.per_group, " * ", groups, " channels, got ",
                  describe(x));
  check_bias(x, bias, f.outputs);
  const std::vector<int64_t> out = output_size({x.size(2), x.size(3)}, {f.kh, f.kw}, conv);
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
  check_filters(grad, "grad", bank, packed, groups, plan);
  check_geometry(conv);
  const HadamardFilters f(bank);
  check_grad(grad, f.outputs, {f.kh, f.kw}, input_size, conv);
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
