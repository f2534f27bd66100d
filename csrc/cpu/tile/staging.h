// Copies between tensors and the flat float32 planes of a tile. `stage` brings x: from any strides, from float32 or
// bfloat16, with zeros in the grid's margins, and with stride 2 split into phases (even and odd rows and columns).
// `unstage` takes y back.
#pragma once

#include <utility>

#include "cpu/tile/simd.h"
#include "cpu/tile/tiled_conv.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Calls f(flat pixel, image of the span, grid row, grid column, count) for each piece of a row within the flat pixels
// [begin, end). merged: the grid is the plane, whose rows follow each other without gaps and count as one long row.
template <class F>
EXPLAINFIX_INLINE void for_each_run(const TiledConv& c, bool merged, int64_t begin, int64_t end, F&& f) {
  const int64_t rows = merged ? 1 : c.grid_h, width = merged ? int64_t(c.grid_h) * c.grid_w : c.grid_w;
  const int64_t first = begin < 0 ? 0 : begin;
  const int64_t last = end < c.span_pixels ? end : c.span_pixels;
  if (first >= last) return;
  int64_t image = first / (rows * width), row = first / width % rows, column = first % width;
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

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define EXPLAINFIX_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef EXPLAINFIX_SHUFFLE  // GCC 11
typedef int32_t Index __attribute__((vector_size(4 * EXPLAINFIX_LANES)));
#define EXPLAINFIX_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Index){__VA_ARGS__})
#endif

// A step of transposing a matrix of kLanes vectors: exchanges off-diagonal blocks of `step` lanes between its rows r
// and r + step.
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

// Lanes [begin, end) of what is at p, zero elsewhere; no other memory is read.
EXPLAINFIX_INLINE V load_lanes(int64_t begin, int64_t end, const float* p) {
  if (begin <= 0 && end >= kLanes) return load(p);
  if (end <= 0 || begin >= kLanes) return V{};
  return load(first_lanes(int(end)) & ~first_lanes(begin > 0 ? int(begin) : 0), p);
}
EXPLAINFIX_INLINE V load_lanes(int64_t begin, int64_t end, const uint16_t* p) {
#if EXPLAINFIX_LANES == 16
  if (end <= 0 || begin >= kLanes) return V{};
  return load(end >= kLanes ? kAllLanes & ~first_lanes(begin > 0 ? int(begin) : 0)
                            : first_lanes(int(end)) & ~first_lanes(begin > 0 ? int(begin) : 0),
              p);
#else
  V v{};
  for (int l = begin > 0 ? int(begin) : 0; l < kLanes && l < end; ++l) v[l] = widen(p[l]);
  return v;
#endif
}

// Stores the first n lanes.
EXPLAINFIX_INLINE void store_some(int n, float* p, V v) { n >= kLanes ? store(p, v) : store(first_lanes(n), p, v); }
EXPLAINFIX_INLINE void store_some(int n, uint16_t* p, V v) {
#if EXPLAINFIX_LANES == 16
  store(first_lanes(n), p, v);
#else
  for (int l = 0; l < kLanes && l < n; ++l) narrow(v[l], p + l);
#endif
}

// Lane l of the result: element 2 l + odd of (low, high).
template <int odd, int... l>
EXPLAINFIX_INLINE V every_other(V low, V high, std::integer_sequence<int, l...>) {
  return EXPLAINFIX_SHUFFLE(low, high, (2 * l + odd)...);
}

// Copies pixels from `first` on of a row of `width` pixels, with zeros outside of it, to `count` floats; with stride 2
// every other one, and those between to `odd`. Whole vectors are stored: what follows is written later, or is padding.
template <int stride, class T>
EXPLAINFIX_INLINE void copy_row(const T* row, int64_t width, int64_t first, int count, float* to, float* odd) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  for (int i = 0; i < count; i += kLanes) {
    const int64_t j = first + stride * i;
    const V low = load_lanes(-j, width - j, row + j);
    if constexpr (stride == 1) {
      store(to + i, low);
    } else {
      const V high = load_lanes(-j - kLanes, width - j - kLanes, row + j + kLanes);
      store(to + i, every_other<0>(low, high, lanes));
      store(odd + i, every_other<1>(low, high, lanes));
    }
  }
}

// Copies `count` pixels, `step` elements apart, of up to kLanes channels that are neighbours in memory, to planes that
// lie `channel` floats apart.
template <class T>
EXPLAINFIX_INLINE void copy_channels_last(const T* from, int64_t step, int channels, int count, float* to,
                                          int64_t channel) {
  for (int i = 0; i < count; i += kLanes) {
    const int pixels = count - i < kLanes ? count - i : kLanes;
    V r[kLanes];
    EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
      r[l] = l < pixels ? load_lanes(0, channels, from + (i + l) * step) : V{};
    }
    transpose(r);
    EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
      if (l < channels) store_some(pixels, to + l * channel + i, r[l]);
    }
  }
}

// Copies one phase of up to kLanes channels that are neighbours in memory, or of one channel with any strides.
template <class T>
void stage_pixels(const TiledConv& c, const T* x, int channels, int phase, int64_t begin, int64_t end, float* plane) {
  const int above = c.offset_y - phase / c.stride, left = c.offset_x - phase % c.stride;
  // Grid columns [valid_begin, valid_end) hold an input pixel.
  const int valid_begin = left <= 0 ? 0 : (left + c.stride - 1) / c.stride;
  const int valid_end = (c.width + left + c.stride - 1) / c.stride;
  for_each_run(c, c.x_is_grid, begin, end, [&](int64_t q, int64_t image, int64_t row, int64_t column, int length) {
    const int64_t y = row * c.stride - above;
    int64_t from = column, until = column + length;
    if (!c.x_is_grid) {
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
    const T* p = x + image * c.x.n + y * c.x.h + (from * c.stride - left) * c.x.w;
    float* to = plane + q + (from - column);
    if (c.x.c == 1) return copy_channels_last(p, c.stride * c.x.w, channels, int(until - from), to, c.stage_channel);
    for (int k = 0; k < until - from; ++k) to[k] = widen(p[k * c.stride * c.x.w]);
  });
}

// Copies one channel whose rows are contiguous: both column phases of a row at once.
template <int stride, class T>
void stage_rows(const TiledConv& c, const T* x, int phase_y, int64_t begin, int64_t end, float* plane) {
  const int64_t height = c.x_is_grid ? 1 : c.height, width = c.x_is_grid ? int64_t(c.height) * c.width : c.width;
  for_each_run(c, c.x_is_grid, begin, end, [&](int64_t q, int64_t image, int64_t row, int64_t column, int length) {
    const int64_t y = row * stride + phase_y - c.offset_y;
    const bool there = y >= 0 && y < height;
    const T* p = x + image * c.x.n + (there ? y : 0) * c.x.h;
    copy_row<stride>(p, there ? width : 0, column * stride - c.offset_x, length, plane + q, plane + c.stage_phase + q);
  });
}

// Prefetches what stage_rows will read. Channels lie far apart, so that the hardware cannot guess the next one; where x
// is in the third-level cache or beyond, this is worth a factor of two.
template <class T>
void prefetch_rows(const TiledConv& c, const T* x, int64_t begin, int64_t end) {
  const int height = c.x_is_grid ? 1 : c.height;
  for_each_run(c, c.x_is_grid, begin, end, [&](int64_t, int64_t image, int64_t row, int64_t column, int length) {
    for (int phase_y = 0; phase_y < c.stride; ++phase_y) {
      const int64_t y = row * c.stride + phase_y - c.offset_y;
      if (y < 0 || y >= height) continue;
      const T* p = x + image * c.x.n + y * c.x.h + column * c.stride;
      for (int k = 0; k < length * c.stride; k += 64 / int(sizeof(T))) __builtin_prefetch(p + k, 0, 3);
    }
  });
}

// Copies channels [first, first + count) of x at the flat pixels [begin, end) into to[channel][phase][pixel - begin].
template <class T>
void stage(const TiledConv& c, int span, int first, int count, int64_t begin, int64_t end, float* to) {
  const T* x = static_cast<const T*>(c.x.data) + span * int64_t(c.span_images) * c.x.n + first * c.x.c;
  const int group = c.x.w == 1 || c.x.c != 1 ? 1 : kLanes;
  const int ahead = 2 + int(512 / (end - begin));
  for (int i = 0; i < count; i += group, x += group * c.x.c, to += group * c.stage_channel) {
    if (c.x.w == 1) {
      if (i + ahead < count) prefetch_rows(c, x + ahead * c.x.c, begin, end);
      for (int phase_y = 0; phase_y < c.stride; ++phase_y) {
        float* plane = to + phase_y * c.stride * c.stage_phase - begin;
        c.stride == 1 ? stage_rows<1>(c, x, 0, begin, end, plane) : stage_rows<2>(c, x, phase_y, begin, end, plane);
      }
      continue;
    }
    for (int phase = 0; phase < c.stride * c.stride; ++phase) {
      const int channels = count - i < group ? count - i : group;
      stage_pixels(c, x, channels, phase, begin, end, to + phase * c.stage_phase - begin);
    }
  }
}

// Calls f(flat pixel, its place among the span's elements of a channel of y, count) for each piece of a row of y within
// the flat pixels [begin, end).
template <class F>
EXPLAINFIX_INLINE void for_each_output_run(const TiledConv& c, int64_t begin, int64_t end, F&& f) {
  for_each_run(c, c.y_is_grid, begin, end, [&](int64_t q, int64_t image, int64_t row, int64_t column, int length) {
    const int64_t h = row - c.origin_y;
    int64_t first = column, until = column + length;
    if (!c.y_is_grid) {
      if (h < 0 || h >= c.out_height) return;
      first = first > c.origin_x ? first : c.origin_x;
      until = until < c.origin_x + c.out_width ? until : c.origin_x + c.out_width;
    }
    f(q + (first - column), image * c.y.n + h * c.y.h + (first - c.origin_x) * c.y.w, int(until - first));
  });
}

// Prefetches the cache lines of one channel that unstage will write.
inline void prefetch_output(const TiledConv& c, int span, int channel, int64_t begin, int64_t end) {
  const int size = c.y.bf16 ? 2 : 4;
  if (c.y.w != 1) return;
  const char* y = static_cast<const char*>(c.y.data) + (span * int64_t(c.span_images) * c.y.n + channel * c.y.c) * size;
  for_each_run(c, false, begin, end, [&](int64_t, int64_t image, int64_t row, int64_t column, int length) {
    const int64_t h = row - c.origin_y;
    if (h < 0 || h >= c.out_height) return;
    const char* p = y + (image * c.y.n + h * c.y.h + column) * size;
    for (int k = 0; k < length * size; k += 64) __builtin_prefetch(p + k, 1, 3);
  });
}

// Copies lines[channel][pixel], `pitch` apart, to y: `count` pixels, `step` elements apart, of one channel or, with
// `last`, of up to kLanes channels that are neighbours in memory.
template <class T>
EXPLAINFIX_INLINE void put_lines(const float* lines, int64_t pitch, int channels, int count, bool last, T* to,
                                 int64_t step) {
  for (int k = 0; k < count; k += kLanes) {
    const int pixels = count - k;
    if (!last && step == 1) {
      store_some(pixels, to + k, load(lines + k));
    } else if (!last) {
      for (int l = 0; l < kLanes && l < pixels; ++l) narrow(lines[k + l], to + (k + l) * step);
    } else {
      V r[kLanes];
      EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) r[l] = l < channels ? load(lines + l * pitch + k) : V{};
      transpose(r);
      EXPLAINFIX_UNROLL for (int l = 0; l < kLanes; ++l) {
        if (l < pixels) store_some(channels, to + (k + l) * step, r[l]);
      }
    }
  }
}

// Copies outputs [o_begin, o_end) from scratch memory, [output][pixel - begin], to y, as far as the pixels are the
// output's. pitch: floats from one output to the next.
template <class T>
void unstage(const TiledConv& c, int span, int channel0, int o_begin, int o_end, int64_t begin, int64_t end,
             const float* from, int64_t pitch) {
  T* y = static_cast<T*>(c.y.data) + span * int64_t(c.span_images) * c.y.n + channel0 * c.y.c;
  const bool last = c.y.c == 1 && c.y.w != 1;
  const int group = last ? kLanes : 1;
  for (int o = o_begin; o < o_end; o += group) {
    const int outputs = o_end - o < group ? o_end - o : group;
    for_each_output_run(c, begin, end, [&](int64_t q, int64_t place, int count) {
      put_lines(from + o * pitch + q - begin, pitch, outputs, count, last, y + o * c.y.c + place, c.y.w);
    });
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
