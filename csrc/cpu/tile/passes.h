// The passes of shared/passes.h, for the instruction set that the including file is compiled for. Loops are left to the
// compiler to vectorise, for memory is the bound. Called through TileKernels::pass.
#pragma once

#include "cpu/tile/elements.h"
#include "shared/passes.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Calls f(x, grad, y, channel) for each element of the units [begin, end): planes, or with channels_last pixels.
template <bool channels_last, class T, class F>
EXPLAINFIX_INLINE void for_each_element(const Pass& p, int64_t begin, int64_t end, F&& f) {
  const int64_t length = channels_last ? p.channels : p.pixels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const T* x = static_cast<const T*>(p.x) + unit * length;
    const T* grad = static_cast<const T*>(p.grad) + unit * length;
    T* y = static_cast<T*>(p.y) + unit * length;
    const int64_t channel = unit % p.channels;
#pragma GCC ivdep  // y may be grad: each element is read before it is written
    for (int64_t i = 0; i < length; ++i) f(x[i], grad[i], y[i], channels_last ? i : channel);
  }
}

template <bool channels_last, class T>
void map_elements(const Pass& p, int64_t begin, int64_t end) {
  using A = typename Wide<T>::type;
  const A *a = static_cast<const A*>(p.a), *b = static_cast<const A*>(p.b), *c = static_cast<const A*>(p.c);
  const A slope = A(p.slope);
  if (p.kind == PassKind::kBatchNormGrad) {
    for_each_element<channels_last, T>(p, begin, end, [=](T x, T g, T& y, int64_t i) __attribute__((always_inline)) {
      write(a[i] * read(g) + b[i] * read(x) + c[i], &y);
    });
    return;
  }
  with_act(p.act, [&](auto act) __attribute__((always_inline)) {
    if (p.kind == PassKind::kAffineAct) {
      for_each_element<channels_last, T>(p, begin, end, [=](T x, T, T& y, int64_t i) __attribute__((always_inline)) {
        write(activate<act()>(a[i] * read(x) + b[i], slope), &y);
      });
    } else {
      for_each_element<channels_last, T>(p, begin, end, [=](T x, T g, T& y, int64_t i) __attribute__((always_inline)) {
        write(times_derivative<act()>(read(g), a[i] * read(x) + b[i], slope), &y);
      });
    }
  });
}

// Sums are exact enough in float over a few numbers: up to 1024, in 32 sums. These are added in double.
constexpr int kSumLanes = 32, kSumBlock = 1024;

// The two terms that kStats or kBatchNormSums adds.
template <bool stats, class A>
EXPLAINFIX_INLINE A first_term(A x, A y, A a) {
  return stats ? x - a : y;
}
template <bool stats, class A>
EXPLAINFIX_INLINE A second_term(A x, A y, A a, A b) {
  return stats ? (x - a) * (x - a) : y * ((x - a) * b);
}

// Sums of contiguous tensors. Units: channels.
template <bool stats, class T>
void sum_planes(const Pass& p, int64_t begin, int64_t end) {
  using A = typename Wide<T>::type;
  for (int64_t channel = begin; channel < end; ++channel) {
    const A a = static_cast<const A*>(p.a)[channel], b = stats ? A(0) : static_cast<const A*>(p.b)[channel];
    double sums[2] = {0, 0};
    for (int64_t n = 0; n < p.images; ++n) {
      const T* x = static_cast<const T*>(p.x) + (n * p.channels + channel) * p.pixels;
      const T* y = stats ? x : static_cast<const T*>(p.grad) + (n * p.channels + channel) * p.pixels;
      for (int64_t first = 0; first < p.pixels; first += kSumBlock) {
        const int64_t stop = p.pixels - first < kSumBlock ? p.pixels : first + kSumBlock;
        A one[kSumLanes] = {}, two[kSumLanes] = {};
        int64_t i = first;
        for (; i + kSumLanes <= stop; i += kSumLanes) {
          for (int l = 0; l < kSumLanes; ++l) {
            one[l] += first_term<stats, A>(read(x[i + l]), read(y[i + l]), a);
            two[l] += second_term<stats, A>(read(x[i + l]), read(y[i + l]), a, b);
          }
        }
        for (int l = 0; i < stop; ++i, ++l) {
          one[l] += first_term<stats, A>(read(x[i]), read(y[i]), a);
          two[l] += second_term<stats, A>(read(x[i]), read(y[i]), a, b);
        }
        for (int l = 0; l < kSumLanes; ++l) {
          sums[0] += one[l];
          sums[1] += two[l];
        }
      }
    }
    p.sums[channel] = sums[0];
    p.sums[p.channels + channel] = sums[1];
  }
}

constexpr int kPixelBlock = 32;  // pixels that are added in float

// Sums with channels_last. Units: parts of the pixels.
template <bool stats, class T>
void sum_pixels(const Pass& p, int64_t begin, int64_t end) {
  using A = typename Wide<T>::type;
  const A *a = static_cast<const A*>(p.a), *b = static_cast<const A*>(stats ? p.a : p.b);
  const int64_t pixels = p.images * p.pixels, channels = p.channels;
  for (int64_t part = begin; part < end; ++part) {
    double* sums = p.sums + part * 2 * channels;
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
    const int64_t first = pixels * part / kPixelParts, stop = pixels * (part + 1) / kPixelParts;
    for (int64_t row = first; row < stop; row += kPixelBlock) {
      const int64_t last = stop - row < kPixelBlock ? stop : row + kPixelBlock;
      for (int64_t c = 0; c < channels; c += kSumLanes) {
        const int lanes = int(channels - c < kSumLanes ? channels - c : kSumLanes);
        A one[kSumLanes] = {}, two[kSumLanes] = {};
        for (int64_t r = row; r < last; ++r) {
          const T* x = static_cast<const T*>(p.x) + r * channels + c;
          const T* y = stats ? x : static_cast<const T*>(p.grad) + r * channels + c;
          for (int l = 0; l < lanes; ++l) {
            one[l] += first_term<stats, A>(read(x[l]), read(y[l]), a[c + l]);
            two[l] += second_term<stats, A>(read(x[l]), read(y[l]), a[c + l], b[c + l]);
          }
        }
        for (int l = 0; l < lanes; ++l) {
          sums[c + l] += one[l];
          sums[channels + c + l] += two[l];
        }
      }
    }
  }
}

// A bit for each of 8 elements: is the derivative 1?
template <class T>
EXPLAINFIX_INLINE uint8_t inside_bits(const T* x, int act, int count) {
  uint32_t bits = 0;
  for (int l = 0; l < count; ++l) bits |= uint32_t(is_inside(act, read(x[l]))) << l;
  return uint8_t(bits);
}
template <class T, class A>
EXPLAINFIX_INLINE void scale_outside(const T* grad, T* y, uint32_t bits, int act, A slope, int count) {
  for (int l = 0; l < count; ++l) {
    const A value = read(grad[l]), outside = act == kLeakyRelu ? value * slope : A(0);
    write(bits >> l & 1 ? value : outside, &y[l]);
  }
}
#if EXPLAINFIX_LANES > 4  // the compiler does not vectorise the loops above into these
EXPLAINFIX_INLINE uint8_t inside_bits(const float* x, int act) {
  const __m256 v = _mm256_loadu_ps(x), zero = _mm256_setzero_ps();
  const __m256 above = act == kRelu ? _mm256_cmp_ps(v, zero, _CMP_NLE_UQ) : _mm256_cmp_ps(v, zero, _CMP_GT_OQ);
  const __m256 below = _mm256_cmp_ps(v, _mm256_set1_ps(6), _CMP_LT_OQ);
  return uint8_t(_mm256_movemask_ps(act == kRelu6 ? _mm256_and_ps(above, below) : above));
}
EXPLAINFIX_INLINE void scale_outside(const float* grad, float* y, uint32_t bits, int act, float slope) {
  const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lanes), lanes);
  const __m256 v = _mm256_loadu_ps(grad);
  const __m256 outside = act == kLeakyRelu ? _mm256_mul_ps(v, _mm256_set1_ps(slope)) : _mm256_setzero_ps();
  _mm256_storeu_ps(y, _mm256_blendv_ps(outside, v, _mm256_castsi256_ps(set)));
}
#endif
template <class T>
EXPLAINFIX_INLINE uint8_t inside_bits(const T* x, int act) {
  return inside_bits(x, act, 8);
}
template <class T, class A>
EXPLAINFIX_INLINE void scale_outside(const T* grad, T* y, uint32_t bits, int act, A slope) {
  scale_outside(grad, y, bits, act, slope, 8);
}

// Makes a mask, or applies one to a gradient. Units: bytes, of which the last may have fewer than 8 elements.
template <class T>
void mask(const Pass& p, int64_t begin, int64_t end) {
  using A = typename Wide<T>::type;
  const int64_t count = p.images * p.channels * p.pixels, whole = count / 8 < end ? count / 8 : end;
  const A slope = A(p.slope);
  const int act = p.act;
  const T *x = static_cast<const T*>(p.x), *grad = static_cast<const T*>(p.grad);
  T* y = static_cast<T*>(p.y);
  const int rest = int(count % 8);
  if (p.kind == PassKind::kMask) {
    for (int64_t byte = begin; byte < whole; ++byte) p.bytes[byte] = inside_bits(x + 8 * byte, act);
    if (whole < end) p.bytes[whole] = inside_bits(x + 8 * whole, act, rest);
  } else {
    for (int64_t byte = begin; byte < whole; ++byte)
      scale_outside(grad + 8 * byte, y + 8 * byte, p.bytes[byte], act, slope);
    if (whole < end) scale_outside(grad + 8 * whole, y + 8 * whole, p.bytes[whole], act, slope, rest);
  }
}

// Units: planes, or with channels_last images. Each image and channel has its own range.
template <bool channels_last, class T>
void quantize(const Pass& p, int64_t begin, int64_t end) {
  using A = typename Wide<T>::type;
  A *low = static_cast<A*>(p.low), *step = static_cast<A*>(p.step);
  const int64_t length = channels_last ? p.channels : p.pixels, count = channels_last ? p.pixels : 1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const T* x = static_cast<const T*>(p.x) + unit * length * count;
    A *lowest = low + unit * (channels_last ? p.channels : 1),
      *highest = step + unit * (channels_last ? p.channels : 1);
    for (int64_t i = 0; i < (channels_last ? length : 1); ++i) lowest[i] = highest[i] = read(x[i]);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < length; ++i) {
        const A value = read(x[r * length + i]);
        A &l = lowest[channels_last ? i : 0], &h = highest[channels_last ? i : 0];
        l = value < l || value != value ? value : l;  // NaN stays, and makes the whole plane NaN
        h = value > h ? value : h;
      }
    }
    for (int64_t i = 0; i < (channels_last ? length : 1); ++i) {
      const A range = highest[i] - lowest[i];
      highest[i] = (range > A(1e-12) ? range : A(1e-12)) / A(255);
    }
    uint8_t* codes = p.bytes + unit * length * count;
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < length; ++i) {
        const A code = (read(x[r * length + i]) - lowest[channels_last ? i : 0]) / highest[channels_last ? i : 0];
        codes[r * length + i] = uint8_t(code < A(254.5) ? code + A(0.5) : A(255));
      }
    }
  }
}

// Units: planes, or with channels_last pixels.
template <bool channels_last, class T>
void dequantize(const Pass& p, int64_t begin, int64_t end) {
  using A = typename Wide<T>::type;
  const int64_t length = channels_last ? p.channels : p.pixels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = channels_last ? unit / p.pixels * p.channels : unit;
    const A *low = static_cast<const A*>(p.low) + block, *step = static_cast<const A*>(p.step) + block;
    const uint8_t* codes = p.bytes + unit * length;
    T* y = static_cast<T*>(p.y) + unit * length;
    for (int64_t i = 0; i < length; ++i)
      write(low[channels_last ? i : 0] + step[channels_last ? i : 0] * A(codes[i]), &y[i]);
  }
}

template <bool channels_last, class T>
void run_typed(const Pass& p, int64_t begin, int64_t end) {
  switch (p.kind) {
    case PassKind::kStats:
      return channels_last ? sum_pixels<true, T>(p, begin, end) : sum_planes<true, T>(p, begin, end);
    case PassKind::kBatchNormSums:
      return channels_last ? sum_pixels<false, T>(p, begin, end) : sum_planes<false, T>(p, begin, end);
    case PassKind::kMask:
    case PassKind::kMaskGrad:
      return mask<T>(p, begin, end);
    case PassKind::kQuantize:
      return quantize<channels_last, T>(p, begin, end);
    case PassKind::kDequantize:
      return dequantize<channels_last, T>(p, begin, end);
    default:
      map_elements<channels_last, T>(p, begin, end);
  }
}

inline void run_pass(const Pass& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case PassType::kFloat:
      return p.channels_last ? run_typed<true, float>(p, begin, end) : run_typed<false, float>(p, begin, end);
    case PassType::kDouble:
      return p.channels_last ? run_typed<true, double>(p, begin, end) : run_typed<false, double>(p, begin, end);
    case PassType::kBFloat16:
      return p.channels_last ? run_typed<true, BFloat16>(p, begin, end) : run_typed<false, BFloat16>(p, begin, end);
    case PassType::kHalf:
      return p.channels_last ? run_typed<true, Half>(p, begin, end) : run_typed<false, Half>(p, begin, end);
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
