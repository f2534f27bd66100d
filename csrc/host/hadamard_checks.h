// What the ops of hadamard banks are handed, and what they ask of it before any kernel counts on it. Called by
// cpu/ops/hadamard_conv2d.cpp and cuda/launch/hadamard_conv2d.cu.
#pragma once

#include "host/conv_checks.h"

namespace explainfix {

constexpr int64_t kMostPlaces = 1 << 15;  // of outputs and of inputs, as filters/hadamard.py has it

// The operators' arguments, as explainfix_ext/filters/hadamard.py explains them.
struct HadamardBank {
  const Tensor &columns, &rows, &outputs, &inputs;
  int64_t order, stages;
  double scale;

  int64_t out_channels() const { return columns.size(1); }
  int64_t per_group() const { return rows.size(3); }
  std::vector<int64_t> kernel() const { return {columns.size(2), rows.size(4)}; }
  std::vector<int64_t> shape() const { return {out_channels(), per_group(), columns.size(2), rows.size(4)}; }
};

// What forward and backward pass have in common. name: of x. The places' values are checked where they are read.
inline void check_hadamard(const Tensor& x, const char* name, const HadamardBank& bank,
                           const std::optional<Tensor>& packed, int64_t groups, int64_t plan) {
  EXPLAINFIX_CHECK(x.dim() == 4, name, " must be [N, C, H, W], got ", describe(x));
  for (const auto& [tensor, what] : {std::pair<const Tensor&, const char*>(bank.columns, "columns"),
                                     {bank.rows, "rows"},
                                     {bank.outputs, "outputs"},
                                     {bank.inputs, "inputs"}}) {
    check_device(tensor, x, what);
  }
  if (packed) check_device(*packed, x, "packed");
  plan &= ~kAuto;
  EXPLAINFIX_CHECK(plan == kDense || plan == kHadamard, "plan must be ", int(kDense), " or ", int(kHadamard), ", got ",
                   plan);
  EXPLAINFIX_CHECK(
      bank.columns.dim() == 3 && bank.columns.scalar_type() == ScalarType::Float && bank.columns.numel() > 0,
      "columns must be Float [T, O, kh], got ", describe(bank.columns));
  EXPLAINFIX_CHECK(bank.rows.dim() == 5 && bank.rows.scalar_type() == ScalarType::Float && bank.rows.numel() > 0 &&
                       bank.rows.size(0) == bank.columns.size(0) && bank.rows.size(2) == groups &&
                       bank.columns.size(1) % groups == 0,
                   "rows must be Float [T, J, groups, I/groups, kw], got ", describe(bank.rows));
  const int64_t order = bank.order;
  EXPLAINFIX_CHECK(order >= 1 && order <= kMostPlaces && (order & (order - 1)) == 0,
                   "order must be a power of two up to ", kMostPlaces, ", got ", order);
  EXPLAINFIX_CHECK((bank.stages & (order - 1)) == bank.stages, "stages must be bits below order, got ", bank.stages);
  EXPLAINFIX_CHECK(bank.rows.size(1) * order <= kMostPlaces, "rows must be for at most ", kMostPlaces, " places");
  EXPLAINFIX_CHECK(bank.outputs.dim() == 1 && bank.outputs.size(0) == bank.columns.size(1) &&
                       bank.outputs.scalar_type() == ScalarType::Short,
                   "outputs must be Short [O], got ", describe(bank.outputs));
  EXPLAINFIX_CHECK(bank.inputs.dim() == 2 && bank.inputs.size(0) == groups &&
                       bank.inputs.size(1) == bank.rows.size(3) && bank.inputs.scalar_type() == ScalarType::Short,
                   "inputs must be Short [groups, I/groups], got ", describe(bank.inputs));
}

// Returns the height and width of the result.
inline std::vector<int64_t> check_hadamard_forward(const Tensor& x, const HadamardBank& bank,
                                                   const std::optional<Tensor>& packed,
                                                   const std::optional<Tensor>& bias, const ConvParams& conv,
                                                   int64_t plan) {
  check_hadamard(x, "x", bank, packed, conv.groups, plan);
  check_geometry(conv);
  EXPLAINFIX_CHECK(x.size(1) == bank.per_group() * conv.groups, "x must have ", bank.per_group(), " * ", conv.groups,
                   " channels, got ", describe(x));
  check_bias(x, bias, bank.out_channels());
  return output_size({x.size(2), x.size(3)}, bank.kernel(), conv);
}

inline void check_hadamard_input_grad(const Tensor& grad, const HadamardBank& bank, const std::optional<Tensor>& packed,
                                      const std::vector<int64_t>& input_size, const ConvParams& conv, int64_t plan) {
  check_hadamard(grad, "grad", bank, packed, conv.groups, plan);
  check_geometry(conv);
  check_grad(grad, bank.out_channels(), bank.kernel(), input_size, conv);
}

}  // namespace explainfix
