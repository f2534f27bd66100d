// The dense plan, the same for every device: the operators compose the weight in scratch memory, unless it is kept,
// then call torch's convolution here, also where another plan's kernels are not for a call.
#pragma once

#include "host/conv_checks.h"

namespace explainfix {

// The composed weight that Python keeps in `packed`; nullopt where there is none for x's dtype.
inline std::optional<Tensor> kept_weight(const std::optional<Tensor>& packed, const Tensor& x,
                                         const std::vector<int64_t>& shape) {
  if (!packed || packed->scalar_type() != x.scalar_type() || packed->dim() != 4) return std::nullopt;
  bool same = true;
  for (int a = 0; a < 4; ++a) same &= packed->size(a) == shape[a];
  STD_TORCH_CHECK(same, "packed must be the weight [", shape[0], ", ", shape[1], ", ", shape[2], ", ", shape[3],
                  "], got ", describe(*packed));
  return packed;
}

// The weight that the dense plan convolves x with: the kept one, or as the device's `materialize` composes it.
template <class Materialize>
Tensor weight_of(const Bank& bank, const std::optional<Tensor>& packed, const Tensor& x, Materialize&& materialize) {
  const std::optional<Tensor> kept = kept_weight(packed, x, bank.shape());
  return kept ? *kept : materialize(bank, x, memory_format_of(x));
}

// shape: (O, I/groups, kh, kw). rank: L.
inline WeightLayout weight_layout(const std::vector<int64_t>& shape, int64_t rank, MemoryFormat format) {
  const int64_t per_group = shape[1], k2 = shape[2] * shape[3];
  const bool last = format == MemoryFormat::ChannelsLast;
  return {shape[0] * per_group, per_group, k2, rank, last ? 1 : k2, last ? per_group : 1};
}

inline Tensor dense_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                            const ConvParams& conv) {
  using torch::stable::detail::from;
  const std::vector<int64_t> no_output_padding{0, 0};
  const Tensor y =
      call_aten<9>("aten::convolution", {from(x), from(weight), from(bias), from(conv.stride), from(conv.padding),
                                         from(conv.dilation), from(false), from(no_output_padding), from(conv.groups)});
  return dense_in(y, memory_format_of(x));
}

inline Tensor dense_input_grad(const Tensor& grad, const Tensor& weight, const std::vector<int64_t>& input_size,
                               const ConvParams& conv) {
  using torch::stable::detail::from;
  // The input gradient is torch's transposed convolution. Its output padding is the number of inputs at the lower and
  // right edge that no output reads, because the stride leaves them over.
  std::vector<int64_t> rest(2);
  for (int a = 0; a < 2; ++a) {
    const int64_t reach = conv.dilation[a] * (weight.size(2 + a) - 1) + 1;
    rest[a] = input_size[a] + 2 * conv.padding[a] - reach - (grad.size(2 + a) - 1) * conv.stride[a];
  }
  const std::optional<Tensor> no_bias;
  const Tensor dx =
      call_aten<9>("aten::convolution", {from(grad), from(weight), from(no_bias), from(conv.stride), from(conv.padding),
                                         from(conv.dilation), from(true), from(rest), from(conv.groups)});
  return dense_in(dx, memory_format_of(grad));
}

}  // namespace explainfix
