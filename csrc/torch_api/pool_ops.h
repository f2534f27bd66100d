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
  const auto at_least = [](const std::vector<int64_t>& pair, int64_t least) {
    return pair.size() == 2 && pair[0] >= least && pair[1] >= least && std::max(pair[0], pair[1]) <= INT32_MAX;
  };
  STD_TORCH_CHECK(at_least(kernel, 1) && at_least(stride, 1) && at_least(padding, 0),
                  "kernel_size and stride must be two integers >= 1, padding two >= 0");
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

// A window without a pixel would have no maximum.
inline void check_windows(int64_t height, int64_t width, const Pooling& p) {
  STD_TORCH_CHECK(
      height >= 1 && width >= 1 && height + 2 * p.padding[0] >= p.kernel[0] && width + 2 * p.padding[1] >= p.kernel[1],
      "the input's planes must be as large as kernel_size at least, padded, got ", height, " x ", width);
}

// The pooling of an input.
inline Pooling pooling_of(const Tensor& x, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, bool ceil_mode) {
  Pooling p = pooling_of(x, kernel, stride, padding);
  check_windows(p.height, p.width, p);
  p.out_height = pooled_size(p.height, kernel[0], stride[0], padding[0], ceil_mode);
  p.out_width = pooled_size(p.width, kernel[1], stride[1], padding[1], ceil_mode);
  return p;
}

template <class Backend>
struct PoolOps {
  static std::tuple<Tensor, Tensor> max_pool(const Tensor& input, const std::vector<int64_t>& kernel,
                                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                             bool ceil_mode) {
    const Pooling p = pooling_of(input, kernel, stride, padding, ceil_mode);
    const Tensor x = dense_in(input, p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    Tensor y = empty_planes(x, p.channels, p.out_height, p.out_width);
    Tensor places = empty_planes(x, p.channels, p.out_height, p.out_width, ScalarType::Byte);
    Backend::pool(p, x, y, places);
    return {y, places};
  }

  static Tensor max_pool_backward(const Tensor& grad, const Tensor& places, const std::vector<int64_t>& input_size,
                                  const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                                  const std::vector<int64_t>& padding) {
    Pooling p = pooling_of(places, kernel, stride, padding);
    p.out_height = p.height;
    p.out_width = p.width;
    STD_TORCH_CHECK(input_size.size() == 2, "input_size must be two integers");
    p.height = input_size[0];
    p.width = input_size[1];
    check_windows(p.height, p.width, p);
    const auto sizes = [&](bool ceil_mode) {
      return p.out_height == pooled_size(p.height, kernel[0], stride[0], padding[0], ceil_mode) &&
             p.out_width == pooled_size(p.width, kernel[1], stride[1], padding[1], ceil_mode);
    };
    STD_TORCH_CHECK(sizes(false) || sizes(true), "places must have the windows of an input of ", p.height, " x ",
                    p.width, ", got ", p.out_height, " x ", p.out_width);
    bool same = grad.dim() == 4;
    for (int64_t axis = 0; same && axis < 4; ++axis) same = grad.size(axis) == places.size(axis);
    STD_TORCH_CHECK(same && places.scalar_type() == ScalarType::Byte, "places must be Byte, of the shape of grad");
    check_device(places, grad, "places");
    const MemoryFormat format = p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
    const Tensor g = dense_in(grad, format), at = dense_in(places, format);
    Tensor dx = empty_planes(at, p.channels, p.height, p.width, grad.scalar_type());
    Backend::scatter(p, g, at, dx);
    return dx;
  }
};

// For a backend's STABLE_TORCH_LIBRARY_IMPL.
#define EXPLAINFIX_REGISTER_POOLING(m, Backend)                           \
  m.impl("max_pool", TORCH_BOX(&explainfix::PoolOps<Backend>::max_pool)); \
  m.impl("max_pool_backward", TORCH_BOX(&explainfix::PoolOps<Backend>::max_pool_backward))

}  // namespace explainfix
