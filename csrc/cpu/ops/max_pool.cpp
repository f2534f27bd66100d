// The ops of torch_api/pool_ops.h on the CPU. Plain loops, which the compiler vectorises: memory is the bound.
#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>

#include "torch_api/pool_ops.h"

namespace explainfix {
namespace {

constexpr int64_t kGrain = 16384;  // elements of windows that a thread takes at least

// Calls f(output pixel, begin and end of its window's rows, then of its columns, the window's top and left before they
// are cut at the edges) for all outputs of one plane.
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

// One image with channels_last, or one plane as channels = 1.
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

// The gradient: each output's goes to the place of its maximum. Returns false if a place is not in the window, or not
// in the plane; nothing is added there.
template <class T>
bool scatter_image(const Pooling& p, int64_t channels, const T* grad, const uint8_t* places, T* dx) {
  bool ok = true;
  std::fill(dx, dx + p.height * p.width * channels, T(0.0f));
  for_each_window(
      p, [&](int64_t out, int64_t y_begin, int64_t y_end, int64_t x_begin, int64_t x_end, int64_t y0, int64_t x0) {
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t place = places[out * channels + c];
          const int64_t row = y0 + place / p.kernel[1], column = x0 + place % p.kernel[1];
          if (row < y_begin || row >= y_end || column < x_begin || column >= x_end) {
            ok = false;
            continue;
          }
          T& to = dx[(row * p.width + column) * channels + c];
          to = T(to + grad[out * channels + c]);
        }
      });
  return ok;
}

// Calls f(first input element, first output element, channels) for each plane, or with channels_last for each image.
template <class F>
void for_each_image(const Pooling& p, F&& f) {
  const int64_t units = p.channels_last ? p.images : p.images * p.channels, channels = p.channels_last ? p.channels : 1;
  const int64_t in = p.height * p.width * channels, out = p.out_height * p.out_width * channels;
  const int64_t work = std::max<int64_t>(1, out * p.kernel[0] * p.kernel[1]);
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) f(unit * in, unit * out, channels);
  });
}

struct CpuPooling {
  static void pool(const Pooling& p, const Tensor& from, Tensor& to, Tensor& places) {
    switch_floating(from.scalar_type(), "x", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const T* x = static_cast<const T*>(from.data_ptr());
      T* y = static_cast<T*>(to.data_ptr());
      uint8_t* place = static_cast<uint8_t*>(places.data_ptr());
      for_each_image(p, [&](int64_t in, int64_t out, int64_t channels) {
        p.channels_last ? pool_image(p, channels, x + in, y + out, place + out)
                        : pool_plane(p, x + in, y + out, place + out);
      });
    });
  }

  static void scatter(const Pooling& p, const Tensor& grad, const Tensor& places, Tensor& dx) {
    std::atomic<bool> ok{true};
    switch_floating(grad.scalar_type(), "grad", [&](auto tag) {
      using T = typename decltype(tag)::type;
      const T* from = static_cast<const T*>(grad.data_ptr());
      const uint8_t* place = static_cast<const uint8_t*>(places.data_ptr());
      T* to = static_cast<T*>(dx.data_ptr());
      for_each_image(p, [&](int64_t in, int64_t out, int64_t channels) {
        if (!scatter_image(p, channels, from + out, place + out, to + in)) ok = false;
      });
    });
    STD_TORCH_CHECK(ok, "places must be pixels of their windows, inside of the input");
  }
};

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CPU, m) { EXPLAINFIX_REGISTER_POOLING(m, explainfix::CpuPooling); }
