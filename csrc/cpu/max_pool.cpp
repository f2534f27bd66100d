// explainfix::max_pool and its backward on the CPU: of each maximum, its place in the window is kept, a byte.
#include <algorithm>
#include <limits>
#include <tuple>
#include <type_traits>

#include "common.h"

namespace explainfix {
namespace {

struct Pooling {
  int64_t height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];
};

constexpr int64_t kGrain = 16384;  // window elements that a thread takes at least

// f(output pixel, first and last row and column of its window in the input, its origin) for the rows of one image or
// plane.
template <class F>
void for_each_window(const Pooling& p, F&& f) {
  for (int64_t oy = 0; oy < p.out_height; ++oy) {
    const int64_t y0 = oy * p.stride[0] - p.padding[0];
    const int64_t y_begin = std::max<int64_t>(y0, 0), y_end = std::min(y0 + p.kernel[0], p.height);
    for (int64_t ox = 0; ox < p.out_width; ++ox) {
      const int64_t x0 = ox * p.stride[1] - p.padding[1];
      const int64_t x_begin = std::max<int64_t>(x0, 0), x_end = std::min(x0 + p.kernel[1], p.width);
      f(oy * p.out_width + ox, y_begin, y_end, x_begin, x_end, y0, x0);
    }
  }
}

// One image of `channels` neighbouring channels (channels_last), or one plane with channels = 1.
template <class T>
void pool_image(const Pooling& p, int64_t channels, const T* x, T* y, uint8_t* places) {
  for_each_window(
      p, [&](int64_t out, int64_t y_begin, int64_t y_end, int64_t x_begin, int64_t x_end, int64_t y0, int64_t x0) {
        T* best = y + out * channels;
        uint8_t* place = places + out * channels;
        bool first = true;
        for (int64_t row = y_begin; row < y_end; ++row) {
          for (int64_t column = x_begin; column < x_end; ++column, first = false) {
            const T* here = x + (row * p.width + column) * channels;
            const uint8_t at = uint8_t((row - y0) * p.kernel[1] + column - x0);
            for (int64_t c = 0; c < channels; ++c) {
              const bool better = first || here[c] > best[c] || here[c] != here[c];  // NaN wins
              best[c] = better ? here[c] : best[c];
              place[c] = better ? at : place[c];
            }
          }
        }
      });
}

constexpr int64_t kRow = 256;  // outputs of a row that are done together

// One plane, a row of outputs at a time: the loops over a row vectorise, which those over a window do not.
template <class T>
void pool_plane(const Pooling& p, const T* x, T* y, uint8_t* places) {
  float best[kRow];
  int32_t place[kRow];
  for (int64_t oy = 0; oy < p.out_height; ++oy) {
    const int64_t y0 = oy * p.stride[0] - p.padding[0];
    for (int64_t first = 0; first < p.out_width; first += kRow) {
      const int64_t count = std::min(kRow, p.out_width - first);
      std::fill_n(best, count, -std::numeric_limits<float>::infinity());
      std::fill_n(place, count, -1);
      for (int64_t tap = 0; tap < p.kernel[0] * p.kernel[1]; ++tap) {
        const int64_t row = y0 + tap / p.kernel[1], shift = tap % p.kernel[1] - p.padding[1];
        if (row < 0 || row >= p.height) continue;
        // Outputs [begin, end) whose window has this tap inside.
        const int64_t s = p.stride[1], begin = std::max<int64_t>(0, (-shift + s - 1) / s - first);
        const int64_t end = std::min(count, (p.width - 1 - shift) / s + 1 - first);
        const T* from = x + row * p.width + first * s + shift;
        const auto pool = [&](auto step) {
          for (int64_t i = begin; i < end; ++i) {
            const float here = float(from[i * int64_t(step)]);
            const bool better = here > best[i] || here != here || place[i] < 0;
            best[i] = better ? here : best[i];
            place[i] = better ? int32_t(tap) : place[i];
          }
        };
        s == 2 ? pool(std::integral_constant<int64_t, 2>()) : pool(s);
      }
      const int64_t out = oy * p.out_width + first;
      for (int64_t i = 0; i < count; ++i) {
        y[out + i] = T(best[i]);
        places[out + i] = uint8_t(place[i]);
      }
    }
  }
}
// float holds every value of the smaller types, and not of this one.
void pool_plane(const Pooling& p, const double* x, double* y, uint8_t* places) { pool_image(p, 1, x, y, places); }

template <class T>
void scatter_image(const Pooling& p, int64_t channels, const T* grad, const uint8_t* places, T* dx) {
  std::fill(dx, dx + p.height * p.width * channels, T(0.0f));
  for_each_window(p, [&](int64_t out, int64_t, int64_t, int64_t, int64_t, int64_t y0, int64_t x0) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t place = places[out * channels + c];
      T& to = dx[((y0 + place / p.kernel[1]) * p.width + x0 + place % p.kernel[1]) * channels + c];
      to = T(to + grad[out * channels + c]);
    }
  });
}

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t steps = size + 2 * padding - kernel;
  int64_t out = (steps + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + padding) --out;  // the last window must begin inside
  return out;
}

Pooling pooling_of(const Tensor& x, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                   const std::vector<int64_t>& padding) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= 256, "kernel_size must have 256 pixels at most, got ", kernel[0], " x ",
                  kernel[1]);
  STD_TORCH_CHECK(padding[0] * 2 <= kernel[0] && padding[1] * 2 <= kernel[1],
                  "padding must be half of kernel_size at most, got ", padding[0], " x ", padding[1]);
  Pooling p{x.size(2), x.size(3), 0, 0, {}, {}, {}};
  std::copy_n(kernel.begin(), 2, p.kernel);
  std::copy_n(stride.begin(), 2, p.stride);
  std::copy_n(padding.begin(), 2, p.padding);
  return p;
}

// f(unit, channels) for each image (channels_last) or plane.
template <class F>
void for_each_image(const Pooling& p, int64_t images, int64_t channels, bool last, F&& f) {
  const int64_t units = last ? images : images * channels, in_unit = last ? channels : 1;
  const int64_t work = std::max<int64_t>(1, p.out_height * p.out_width * p.kernel[0] * p.kernel[1] * in_unit);
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) f(unit, in_unit);
  });
}

std::tuple<Tensor, Tensor> max_pool(const Tensor& input, const std::vector<int64_t>& kernel,
                                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                    bool ceil_mode) {
  Pooling p = pooling_of(input, kernel, stride, padding);
  p.out_height = out_size(p.height, kernel[0], stride[0], padding[0], ceil_mode);
  p.out_width = out_size(p.width, kernel[1], stride[1], padding[1], ceil_mode);
  const bool last = memory_format_of(input) == MemoryFormat::ChannelsLast;
  const Tensor x = torch::stable::contiguous(input, last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  Tensor y = empty_planes(x, x.size(1), p.out_height, p.out_width);
  Tensor places = empty_planes(x, x.size(1), p.out_height, p.out_width, ScalarType::Byte);
  switch_floating(x.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = static_cast<const T*>(x.data_ptr());
    T* to = static_cast<T*>(y.data_ptr());
    uint8_t* at = static_cast<uint8_t*>(places.data_ptr());
    for_each_image(p, x.size(0), x.size(1), last, [&](int64_t unit, int64_t channels) {
      const int64_t in = unit * channels * p.height * p.width, out = unit * channels * p.out_height * p.out_width;
      last ? pool_image(p, channels, from + in, to + out, at + out) : pool_plane(p, from + in, to + out, at + out);
    });
  });
  return {y, places};
}

Tensor max_pool_backward(const Tensor& grad, const Tensor& places, const std::vector<int64_t>& input_size,
                         const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding) {
  Pooling p = pooling_of(places, kernel, stride, padding);
  p.out_height = p.height;
  p.out_width = p.width;
  p.height = input_size[0];
  p.width = input_size[1];
  const bool last = memory_format_of(places) == MemoryFormat::ChannelsLast;
  const MemoryFormat format = last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor g = torch::stable::contiguous(grad, format), at = torch::stable::contiguous(places, format);
  STD_TORCH_CHECK(g.numel() == at.numel(), "grad must have the shape of places");
  Tensor dx = empty_planes(at, places.size(1), p.height, p.width, grad.scalar_type());
  switch_floating(g.scalar_type(), "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* from = static_cast<const T*>(g.data_ptr());
    const uint8_t* place = static_cast<const uint8_t*>(at.data_ptr());
    T* to = static_cast<T*>(dx.data_ptr());
    for_each_image(p, places.size(0), places.size(1), last, [&](int64_t unit, int64_t channels) {
      const int64_t in = unit * channels * p.height * p.width, out = unit * channels * p.out_height * p.out_width;
      scatter_image(p, channels, from + out, place + out, to + in);
    });
  });
  return dx;
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CPU, m) {
  m.impl("max_pool", TORCH_BOX(&explainfix::max_pool));
  m.impl("max_pool_backward", TORCH_BOX(&explainfix::max_pool_backward));
}
