// The ops explainfix::max_pool and max_pool_backward: checks the arguments, makes the results, and describes the work
// as a `Pooling`. A backend (cpu/ops/max_pool.cpp, cuda/launch/max_pool.cu) runs it with Backend::pool and
// Backend::scatter. The backward pass needs one byte for each maximum, its place in the window.
#pragma once

#include <algorithm>
#include <tuple>

#include "shared/pooling.h"
#include "torch_api/stable_abi.h"

namespace explainfix {

// The geometry without the outputs' size, which the caller fills in.
inline Pooling pooling_of(const Tensor& x, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= 256, "kernel_size must have 256 pixels at most, got ", kernel[0], " x ",
                  kernel[1]);
  STD_TORCH_CHECK(padding[0] * 2 <= kernel[0] && padding[1] * 2 <= kernel[1],
                  "padding must be half of kernel_size at most, got ", padding[0], " x ", padding[1]);
  Pooling p{};
  p.images = x.size(0);
  p.channels = x.size(1);
  p.height = x.size(2);
  p.width = x.size(3);
  p.channels_last = memory_format_of(x) == MemoryFormat::ChannelsLast;
  std::copy_n(kernel.begin(), 2, p.kernel);
  std::copy_n(stride.begin(), 2, p.stride);
  std::copy_n(padding.begin(), 2, p.padding);
  return p;
}

template <class Backend>
struct PoolOps {
  static std::tuple<Tensor, Tensor> max_pool(const Tensor& input, const std::vector<int64_t>& kernel,
                                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                             bool ceil_mode) {
    Pooling p = pooling_of(input, kernel, stride, padding);
    p.out_height = pooled_size(p.height, kernel[0], stride[0], padding[0], ceil_mode);
    p.out_width = pooled_size(p.width, kernel[1], stride[1], padding[1], ceil_mode);
    const Tensor x =
        torch::stable::contiguous(input, p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    Tensor y = empty_planes(x, p.channels, p.out_height, p.out_width);
    Tensor places = empty_planes(x, p.channels, p.out_height, p.out_width, ScalarType::Byte);
    switch_floating(x.scalar_type(), "x", [&](auto tag) {
      using T = typename decltype(tag)::type;
      Backend::pool(p, x, static_cast<const T*>(x.data_ptr()), static_cast<T*>(y.data_ptr()),
                    static_cast<uint8_t*>(places.data_ptr()));
    });
    return {y, places};
  }

  static Tensor max_pool_backward(const Tensor& grad, const Tensor& places, const std::vector<int64_t>& input_size,
                                  const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                                  const std::vector<int64_t>& padding) {
    Pooling p = pooling_of(places, kernel, stride, padding);
    p.out_height = p.height;
    p.out_width = p.width;
    p.height = input_size[0];
    p.width = input_size[1];
    const MemoryFormat format = p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
    const Tensor g = torch::stable::contiguous(grad, format), at = torch::stable::contiguous(places, format);
    STD_TORCH_CHECK(g.numel() == at.numel(), "grad must have the shape of places");
    Tensor dx = empty_planes(at, p.channels, p.height, p.width, grad.scalar_type());
    switch_floating(g.scalar_type(), "grad", [&](auto tag) {
      using T = typename decltype(tag)::type;
      Backend::scatter(p, g, static_cast<const T*>(g.data_ptr()), static_cast<const uint8_t*>(at.data_ptr()),
                       static_cast<T*>(dx.data_ptr()));
    });
    return dx;
  }
};

// For a backend's STABLE_TORCH_LIBRARY_IMPL.
#define EXPLAINFIX_REGISTER_POOLING(m, Backend)                           \
  m.impl("max_pool", TORCH_BOX(&explainfix::PoolOps<Backend>::max_pool)); \
  m.impl("max_pool_backward", TORCH_BOX(&explainfix::PoolOps<Backend>::max_pool_backward))

}  // namespace explainfix
