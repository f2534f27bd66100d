// Launches the depthwise kernel (cuda/device/depthwise). Called by fixed_conv2d.cu.
#include "cuda/device/depthwise/depthwise.cuh"
#include "cuda/launch/conv_kernels.h"
#include "cuda/launch/materialize.h"

namespace explainfix {
namespace {

// Filters as Python's pack_depthwise lays them out: float32 (2, K, channels) if they are separable, else (K, K,
// channels).
bool separable(const Tensor& filters) { return filters.size(0) == 2; }

bool is_packed(const Tensor& filters, const ConvShape& s) {
  const int k = s.kernel[0];
  return filters.scalar_type() == ScalarType::Float && filters.dim() == 3 && filters.size(1) == k &&
         filters.size(2) == s.in_channels &&
         (filters.size(0) == k || (separable(filters) && k >= kDepthwiseSeparableFrom));
}

// The filters with channels last, so that a warp loads a tap from a line or two of memory. Where nothing was packed
// (the coefficients may change) they are composed first: threads that did it themselves would each read K^2 L doubles.
Tensor filters_of(const CudaConv& conv) {
  const ConvShape& s = conv.shape;
  if (conv.packed && is_packed(*conv.packed, s)) return dense_in(*conv.packed);
  const Tensor basis = dense_in(conv.basis), steering = dense_in(conv.steering);
  const int64_t k = s.kernel[0], channels = s.in_channels;
  Tensor taps = torch::stable::new_empty(basis, {k, k, channels}, ScalarType::Float);
  const WeightLayout layout{channels,      channels, k * k,
                            basis.size(0), 1,        channels};  // that of one output of all channels
  launch_materialize(layout, steering, basis.const_data_ptr<double>(), conv.scale, taps.mutable_data_ptr<float>());
  return taps;
}

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (2 * t.element_size()) == 0; }

template <class T>
std::optional<Tensor> run(const CudaConv& conv) {
  const ConvShape& s = conv.shape;
  const MemoryFormat format = s.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor x = dense_in(conv.x, format), filters = filters_of(conv);
  Tensor y = empty_planes(x, s.out_channels, s.out_height, s.out_width);
  if (s.channels_last && !(aligned(x) && aligned(y) && aligned(filters))) return std::nullopt;
  const DepthwiseVariant variant = depthwise_variant(s, conv.input_grad, separable(filters));
  const auto grid = depthwise_grid(s, variant, conv.input_grad && s.stride[0] == 1);
  if (!grid) return std::nullopt;
  std::optional<Tensor> bias;
  if (conv.bias) bias = dense_in(*conv.bias);
  const unsigned blocks = unsigned((grid->threads + kDepthwiseThreads - 1) / kDepthwiseThreads);
  launch_grid(y, dim3(blocks), kDepthwiseThreads, 0, device::depthwise_kernel_of<T>(variant), *grid,
              static_cast<const T*>(x.const_data_ptr()), filters.const_data_ptr<float>(),
              static_cast<const T*>(bias ? bias->const_data_ptr() : nullptr), static_cast<T*>(y.mutable_data_ptr()));
  return y;
}

}  // namespace

std::optional<Tensor> run_depthwise(const CudaConv& conv) {
  if (!depthwise_fits(conv.shape)) return std::nullopt;
  return with_element(conv.x.scalar_type(), [&](auto tag) { return run<typename decltype(tag)::type>(conv); });
}

}  // namespace explainfix
