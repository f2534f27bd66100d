// What the convolution ops ask of their arguments before any kernel counts on them. Python's public functions have
// checked already, with better errors, but anyone may call the ops themselves. Called by cpu/ops/fixed_conv2d.cpp and
// cuda/launch/fixed_conv2d.cu.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "host/host.h"
#include "shared/conv_params.h"

namespace explainfix {

// An index or coefficient bank, as the operators take it.
struct Bank {
  const Tensor& basis;     // (L, kh, kw) double
  const Tensor& steering;  // (O, I/groups) uint8, or (O, I/groups, L) floating
  double scale;

  std::vector<int64_t> shape() const { return {steering.size(0), steering.size(1), basis.size(1), basis.size(2)}; }
};

inline void check_basis(const Tensor& basis) {
  EXPLAINFIX_CHECK(basis.scalar_type() == ScalarType::Double && basis.dim() == 3 && basis.numel() > 0,
                   "basis must be Double [L, kh, kw], got ", describe(basis));
}

// What forward and backward pass have in common. name: of x.
inline void check_bank(const Tensor& x, const char* name, const Bank& bank, const std::optional<Tensor>& packed,
                       int64_t groups, int64_t plan) {
  const Tensor &basis = bank.basis, &steering = bank.steering;
  EXPLAINFIX_CHECK(x.dim() == 4, name, " must be [N, C, H, W], got ", describe(x));
  check_device(basis, x, "basis");
  check_device(steering, x, "steering");
  if (packed) check_device(*packed, x, "packed");
  EXPLAINFIX_CHECK(plan >= kDense && plan <= kDepthwise, "plan must be 0 to ", int(kDepthwise), ", got ", plan);
  check_basis(basis);
  const bool index = steering.scalar_type() == ScalarType::Byte;
  EXPLAINFIX_CHECK(index ? steering.dim() == 2 : steering.dim() == 3 && steering.size(2) == basis.size(0),
                   "steering must be Byte [O, I/groups] or floating [O, I/groups, L = ", basis.size(0), "], got ",
                   describe(steering));
  EXPLAINFIX_CHECK(groups >= 1 && steering.size(0) % groups == 0, "groups must divide O = ", steering.size(0), ", got ",
                   groups);
}

inline void check_geometry(const ConvParams& conv) {
  constexpr int64_t kMost = INT32_MAX;  // beyond it sizes might overflow 64 bits
  for (int a = 0; a < 2; ++a) {
    EXPLAINFIX_CHECK(conv.stride.size() == 2 && conv.stride[a] >= 1 && conv.stride[a] <= kMost,
                     "stride must be two integers >= 1");
    EXPLAINFIX_CHECK(conv.dilation.size() == 2 && conv.dilation[a] >= 1 && conv.dilation[a] <= kMost,
                     "dilation must be two integers >= 1");
    EXPLAINFIX_CHECK(conv.padding.size() == 2 && conv.padding[a] >= 0 && conv.padding[a] <= kMost,
                     "padding must be two integers >= 0");
  }
}

// The height and width of a convolution's result.
inline std::vector<int64_t> output_size(const std::vector<int64_t>& in, const std::vector<int64_t>& kernel,
                                        const ConvParams& conv) {
  std::vector<int64_t> out(2);
  for (int a = 0; a < 2; ++a) {
    const int64_t padded = in[a] + 2 * conv.padding[a], reach = conv.dilation[a] * (kernel[a] - 1) + 1;
    EXPLAINFIX_CHECK(padded >= reach, "x must be at least as large as the dilated kernel, ", reach, "; padded it is ",
                     padded);
    out[a] = (padded - reach) / conv.stride[a] + 1;
  }
  return out;
}

inline void check_bias(const Tensor& x, const std::optional<Tensor>& bias, int64_t channels) {
  if (!bias) return;
  check_device(*bias, x, "bias");
  EXPLAINFIX_CHECK(bias->dim() == 1 && bias->size(0) == channels && bias->scalar_type() == x.scalar_type(),
                   "bias must be [O = ", channels, "] of x's dtype, got ", describe(*bias));
}

// Returns the height and width of the result.
inline std::vector<int64_t> check_forward(const Tensor& x, const Bank& bank, const std::optional<Tensor>& packed,
                                          const std::optional<Tensor>& bias, const ConvParams& conv, int64_t plan) {
  check_bank(x, "x", bank, packed, conv.groups, plan);
  check_geometry(conv);
  EXPLAINFIX_CHECK(x.size(1) == bank.steering.size(1) * conv.groups, "x must have ", bank.steering.size(1), " * ",
                   conv.groups, " channels, got ", describe(x));
  check_bias(x, bias, bank.steering.size(0));
  return output_size({x.size(2), x.size(3)}, {bank.basis.size(1), bank.basis.size(2)}, conv);
}

// Checks grad against the shape of the result that `out` channels have.
inline void check_grad(const Tensor& grad, int64_t out, const std::vector<int64_t>& kernel,
                       const std::vector<int64_t>& input_size, const ConvParams& conv) {
  EXPLAINFIX_CHECK(input_size.size() == 2 && std::min(input_size[0], input_size[1]) >= 0,
                   "input_size must be two integers >= 0");
  const std::vector<int64_t> size = output_size(input_size, kernel, conv);
  EXPLAINFIX_CHECK(grad.size(1) == out && grad.size(2) == size[0] && grad.size(3) == size[1], "grad must be [N, ", out,
                   ", ", size[0], ", ", size[1], "], got ", describe(grad));
}

inline void check_input_grad(const Tensor& grad, const Bank& bank, const std::optional<Tensor>& packed,
                             const std::vector<int64_t>& input_size, const ConvParams& conv, int64_t plan) {
  check_bank(grad, "grad", bank, packed, conv.groups, plan);
  check_geometry(conv);
  check_grad(grad, bank.steering.size(0), {bank.basis.size(1), bank.basis.size(2)}, input_size, conv);
}

}  // namespace explainfix
