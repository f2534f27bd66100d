// Tensors to and from a tile's flat float32 planes: any strides, either dtype, the grid's margins, the phases of a stride.
#pragma once

#include <utility>

#include "simd.h"
#include "tiled_conv.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Calls f(flat pixel, image of the span, grid row, grid column, count) for each piece of a row in [begin, end).
// `merged`: a plane is one long row.
template <class F>
EXPLAINFIX_INLINE void for_each_run(const TiledConv& c, bool merged, int64_t begin, int64_t end, F&& f) {
  const int rows = merged ? 1 : c.grid_h, width = merged ? c.grid_h * c.grid_w : c.grid_w;
  const int64_t first = begin < 0 ? 0 : begin;
  const int64_t last = end < c.span_pixels ? end : c.span_pixels;
  if (first >= last) return;
  int image = int(first / (int64_t(rows) * width)), row = int(first / width % rows), column = int(first % width);
  for (int64_t q = first; q < last;) {
    const int count = int(width - column < last - q ? width - column : last - q);
    f(q, image, row, column, count);
    q += count;
    column = 0;
    if (++row == rows) {
      row = 0;
      ++image;
    }
  }
}

EXPLAINFIX_INLINE bool is_grid(const TiledConv& c, const Planes& p, int height, int width) {
  return c.stride == 1 && height == c.grid_h && width == c.grid_w && p.h == int64_t(width) * p.w;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define EXPLAINFIX_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef EXPLAINFIX_SHUFFLE  // GCC 11
typedef int32_t Index __attribute__((vector_size(4 * EXPLAINFIX_LANES)));
#define EXPLAINFIX_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Index){__VA_ARGS__})
#endif

// Exchanges the off-diagonal blocks of `step` lanes between rows a and b = a + step of a matrix.
template <int step, int... l>
EXPLAINFIX_INLINE void exchange(V& a, V& b, std::integer_sequence<int, l...>) {
  const V low = EXPLAINFIX_SHUFFLE(a, b, ((l & step) ? kLanes + l - step : l)...);
  b = EXPLAINFIX_SHUFFLE(a, b, ((l & step) ? kLanes + l : l + step)...);
  a = low;
}

template <int step>
EXPLAINFIX_INLINE void exchange_all(V* r) {
  EXPLAINFIX_UNROLL for (int i = 0; i < kLanes; ++i) {
    if (!(i & step)) exchange<step>(r[i], r[i + step], std::make_integer_sequence<int, kLanes>());
  }
  if constexpr (step > 1) exchange_all<step / 2>(r);
}

EXPLAINFIX_INLINE void transpose(V* r) { exchange_all<kLanes / 2>(r); }

EXPLAINFIX_INLINE Mask first_lanes(int n) { return n >= kLanes ? kAllLanes : (1u << n) - 1; }

EXPLAINFIX_INLINE V load_some(int n, const float* p) { return n >= kLanes ? load(p) : load(first_lanes(n), p); }
EXPLAINFIX_INLINE V load_some(int n, const uint16_t* p) {
#if EXPLAINFIX_LANES == 16
  return load(first_lanes(n), p);
#else
  V v{};
  for (int l = 0; l < kLanes && l < n; ++l) v[l] = widen(p[l]);
  return v;
#endif
}
EXPLAINFIX_INLINE void store_some(int n, float* p, V v) { n >= kLanes ? store(p, v) : store(first_lanes(n), p, v); }
EXPLAINFIX_INLINE void store_some(int n, uint16_t* p, V v) {
  for (int l = 0; l < kLanes && l < n; ++l) narrow(v[l], p + l);
}

// Elements 0, 2, 4 ... of up to 2 kLanes.
template <class T, int... l>
EXPLAINFIX_INLINE V load_even(int n, const T* p, std::integer_sequence<int, l...>) {
  const int there = 2 * n - 1;  // one more could lie outside of the tensor
  const V low = load_some(there, p), high = there > kLanes ? load_some(there - kLanes, p + kLanes) : V{};
  return EXPLAINFIX_SHUFFLE(low, high, (2 * l)...);
}

// `count` pixels of one channel, `step` elements apart, to consecutive floats.
template <class T>
EXPLAINFIX_INLINE void copy_row(const T* from, int64_t step, int count, float* to) {
  int i = 0;
  if (step == 1) {
    for (; i < count; i += kLanes) store_some(count - i, to + i, load_some(count - i, from + i));
  }
  if (step == 2) {
    for (; i < count; i += kLanes) {
      store_some(count - i, to + i, load_even(count - i, from + 2 * i, std::make_integer_sequence<int, kLanes>()));
    }
  }
  for (; i < count; ++i) to[i] = widen(from[i * step]);
}

// The same for up to kLanes neighbouring channels, whose planes lie `channel` floats apart.
template <class T>
EXPLAINFIX_INLINE void copy_channels_last(const T* from, int64_t step, int channels, int count, float* to,
                                          int64_t channel) {
  for (int i = 0; i < count; i += kLanes) {
    const int pixels = count - i < kLanes ? count - i : kLanes;
    V r[kLanes];
    EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
      r[l] = l < pixels ? load_some(channels, from + (i + l) * step) : V{};
    }
    transpose(r);
    EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
      if (l < channels) store_some(pixels, to + l * channel + i, r[l]);
    }
  }
}

// Channels [first, first + count) of x over flat pixels [begin, end), into to[channel][phase][pixel - begin].
template <class T>
void stage(const TiledConv& c, int span, int first, int count, int64_t begin, int64_t end, float* to) {
  const T* x = static_cast<const T*>(c.x.data) + span * int64_t(c.span_images) * c.x.n + first * c.x.c;
  const bool merged = is_grid(c, c.x, c.height, c.width), last = c.x.c == 1 && c.x.w != 1;
  const int group = last ? kLanes : 1;
  for (int phase = 0; phase < c.stride * c.stride; ++phase) {
    const int above = c.offset_y - phase / c.stride, left = c.offset_x - phase % c.stride;
    // Grid columns [valid_begin, valid_end) hold an input pixel.
    const int valid_begin = left <= 0 ? 0 : (left + c.stride - 1) / c.stride;
    const int valid_end = (c.width + left + c.stride - 1) / c.stride;
    for (int i = 0; i < count; i += group) {
      const int channels = count - i < group ? count - i : group;
      float* plane = to + i * c.stage_channel + phase * c.stage_phase - begin;
      for_each_run(c, merged, begin, end, [&](int64_t q, int image, int row, int column, int length) {
        const int y = row * c.stride - above;
        int from = column, until = column + length;
        if (!merged) {
          from = from > valid_begin ? from : valid_begin;
          until = until < valid_end ? until : valid_end;
          if (y < 0 || y >= c.height || from > until) from = until = column;
          for (int l = 0; l < channels; ++l) {
            float* p = plane + l * c.stage_channel + q;
            for (int k = 0; k < from - column; ++k) p[k] = 0;
            for (int k = until - column; k < length; ++k) p[k] = 0;
          }
        }
        if (from == until) return;
        const T* p = x + i * c.x.c + image * c.x.n + y * c.x.h + (int64_t(from) * c.stride - left) * c.x.w;
        float* target = plane + q + (from - column);
        if (last) {
          copy_channels_last(p, c.stride * c.x.w, channels, until - from, target, c.stage_channel);
        } else {
          copy_row(p, c.stride * c.x.w, until - from, target);
        }
      });
    }
  }
}

// Outputs of y's scratch, [output][pixel - begin], that lie in the output's part of the grid, to y.
template <class T>
void unstage(const TiledConv& c, int span, int channel0, int o_begin, int o_end, int64_t begin, int64_t end,
             const float* from, int64_t pitch) {
  T* y = static_cast<T*>(c.y.data) + span * int64_t(c.span_images) * c.y.n + channel0 * c.y.c;
  const bool merged = is_grid(c, c.y, c.out_height, c.out_width) && c.origin_y == 0 && c.origin_x == 0;
  const bool last = c.y.c == 1 && c.y.w != 1;
  const int group = last ? kLanes : 1;
  for (int o = o_begin; o < o_end; o += group) {
    const int outputs = o_end - o < group ? o_end - o : group;
    for_each_run(c, merged, begin, end, [&](int64_t q, int image, int row, int column, int length) {
      const int h = row - c.origin_y;
      int first = column, until = column + length;
      if (!merged) {
        if (h < 0 || h >= c.out_height) return;
        first = first > c.origin_x ? first : c.origin_x;
        until = until < c.origin_x + c.out_width ? until : c.origin_x + c.out_width;
      }
      T* p = y + o * c.y.c + image * c.y.n + h * c.y.h + (int64_t(first) - c.origin_x) * c.y.w;
      const float* source = from + o * pitch + q - begin + (first - column);
      for (int k = 0; k < until - first; k += kLanes) {
        const int pixels = until - first - k;
        if (!last && c.y.w == 1) {
          store_some(pixels, p + k, load(source + k));
        } else if (!last) {
          for (int l = 0; l < kLanes && l < pixels; ++l) narrow(source[k + l], p + (k + l) * c.y.w);
        } else {
          V r[kLanes];
          EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
            r[l] = l < outputs ? load(source + l * pitch + k) : V{};
          }
          transpose(r);
          EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
            if (l < pixels) store_some(outputs, p + (k + l) * c.y.w, r[l]);
          }
        }
      }
    });
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
