// The hadamard convolution, channels_last: filters across a line, a transform of the channels, filters along the line.
//
// Floor: bytes of x and y over the bandwidth; 256 channels of 16 bits are 1 KB a pixel, 32 ns a multiprocessor of an
// H200. A pixel of 256 channels costs a warp about 235 instructions, which its 4 schedulers issue in 33 ns: so both
// bounds are about as high, and 44 to 65 % of a copy's bandwidth were measured (bench/RESULTS.md). Of the instructions
// 85 are the transform between lanes, 40 of them shuffles; 48 multiply-adds are the filters, 16 unpack. One line a
// thread took 1.1 times as long, and exchanging halves, with half the shuffles but selections, no less. The next
// pixel's loads are issued before this one is transformed.
#pragma once

#include "cuda/device/common/eight.cuh"
#include "cuda/device/hadamard/transform.cuh"

namespace explainfix {
namespace device {

constexpr int kK = kHadamardKernel, kC = kHadamardChannels;
static_assert(kC == kTogether, "a thread's channels are what it reads at once");

// The taps of a thread's channels.
__device__ __forceinline__ void load_taps(float (&taps)[kK][kC], const float* filters, int from_tap_to_tap,
                                          bool valid) {
#pragma unroll
  for (int k = 0; k < kK; ++k) {
    Vector<float, kC> eight{};
    if (valid) eight = *reinterpret_cast<const Vector<float, kC>*>(filters + k * from_tap_to_tap);
#pragma unroll
    for (int c = 0; c < kC; ++c) taps[k][c] = eight.at[c];
  }
}

// Where across the line the pixel of a tap lies, in elements, or -1: beyond an edge, or between pixels.
__device__ __forceinline__ int place_of(const HadamardWalk& w, int line, int tap) {
  const int scaled = w.across_step * line - w.across_shift + tap, at = scaled >> (w.across_divisor - 1);
  const bool there = scaled >= 0 && at * w.across_divisor == scaled && at < w.across_inputs;
  return there ? at * w.in_across : -1;
}

// A thread computes two neighbouring lines: twice the independent work, and `shared_pixels` of its loads serve both:
// kK - 1 with stride 1, else none.
// emit: outputs that a pixel along the line completes: 2 in the input gradient of a stride of 2 along the line, else 1.
// slabs: is there more than one set of inputs? Then their filters are too many for registers, and come from the cache.
template <class T, int emit, int shared_pixels, bool slabs>
__global__ void __launch_bounds__(kHadamardThreads, hadamard_blocks(sizeof(T)))
    hadamard_kernel(HadamardWalk w, const T* __restrict__ x, const float* __restrict__ packed,
                    const T* __restrict__ bias, T* __restrict__ y) {
  EXPLAINFIX_SHARED(memory);
  float* shared = reinterpret_cast<float*>(memory);
  constexpr int loads = 2 * kK - shared_pixels, from_line_to_line = kK - shared_pixels;

  const int thread = int(threadIdx.x) & (w.threads - 1);
  const int64_t pair = int64_t(blockIdx.x) * (blockDim.x / w.threads) + threadIdx.x / w.threads;
  const int64_t image = pair / w.pairs;
  const int line = 2 * int(pair - image * w.pairs), group = blockIdx.z / w.pieces, piece = blockIdx.z % w.pieces;
  const bool real = image < w.images;  // else it only takes part in exchanges
  const int first_out = int(blockIdx.y) * w.strip, beyond = first_out + w.strip;
  const int last_out = (beyond < w.along_outputs ? beyond : w.along_outputs) - 1;
  const int first = first_out << (w.along_stride - 1), last = last_out << (w.along_stride - 1);
  const int begin = (first + w.along_shift - (kK - 1) + emit - 1) >> (emit - 1);
  const int end = (last + w.along_shift) >> (emit - 1);

  // Pixels beyond the edges across are never loaded, and stay zero; those beyond the ends are left out.
  int across[loads];
#pragma unroll
  for (int k = 0; k < loads; ++k) {
    const int second = k >= kK, place = place_of(w, line + second, second ? k - from_line_to_line : k);
    across[k] = real && thread * kC < w.in_channels ? place : -1;
  }
  const T* from = x + image * w.in_image + group * w.in_channels + thread * kC + int64_t(begin) * w.in_along;
  Eight<T> loaded[loads] = {};
  const auto load = [&](int slab) {
    const bool there = !slabs || slab * w.order + thread * kC < w.in_channels;
#pragma unroll
    for (int k = 0; k < loads; ++k) {
      if (slabs) loaded[k] = Eight<T>{};
      if (across[k] >= 0 && there) {
        loaded[k] = read<true>(from + across[k] + (slabs ? slab * w.order : 0), kC);
      }
    }
  };
  const auto inside = [&](int pixel) { return pixel <= end && unsigned(pixel) < unsigned(w.along_inputs); };
  if (inside(begin)) load(0);

  // Filters stay in registers. Outputs start from their bias.
  float taps_before[kK][kC], taps_after[kK][kC], start[kC], sums[2][kK][kC];
  const float* before = packed + w.before.first + piece * w.before_piece + group * w.before.group + thread * kC;
  if (!slabs) load_taps(taps_before, before, w.before.tap, thread * kC < w.in_channels);
  const int channel = piece * w.order + thread * kC;  // of the outputs
  const bool writes = real && channel < w.out_channels;
  load_taps(taps_after, packed + w.after.first + group * w.after.group + channel, w.after.tap, writes);
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    start[c] = bias && writes ? float(bias[group * w.out_channels + channel + c]) : 0.f;
#pragma unroll
    for (int k = 0; k < kK; ++k) sums[0][k][c] = sums[1][k][c] = start[c];
  }
  T* to = y + image * w.out_image + int64_t(line) * w.out_across + group * w.out_channels + channel +
          int64_t(first_out) * w.out_along;
  const bool writes_second = writes && line + 1 < w.across_outputs;

  for (int pixel = begin; pixel <= end; ++pixel) {
    float a[2][kC] = {};
    const bool reads = inside(pixel), reads_next = inside(pixel + 1);
    for (int slab = 0; slab < (slabs && reads ? w.slabs : 1); ++slab) {
      if (slabs) {
        const int at = slab * w.order;
        load_taps(taps_before, before + at, w.before.tap, at + thread * kC < w.in_channels);
      }
      if (reads) {
#pragma unroll
        for (int k = 0; k < loads; ++k) {
          float values[kC];
          unpack(loaded[k], values);
#pragma unroll
          for (int c = 0; c < kC; ++c) {
            if (k < kK) a[0][c] = fmaf(taps_before[k < kK ? k : 0][c], values[c], a[0][c]);
            const int tap = k - from_line_to_line;
            if (tap >= 0) a[1][c] = fmaf(taps_before[tap >= 0 ? tap : 0][c], values[c], a[1][c]);
          }
        }
      }
      if (slabs && reads && slab + 1 < w.slabs) {
        load(slab + 1);
      } else {
        from += w.in_along;
        if (reads_next) load(0);
      }
    }
    if (reads) transform_channels(a, w.stages, thread, pixel & 1, shared);
#pragma unroll
    for (int both = 0; both < 2; ++both) {
#pragma unroll
      for (int k = 0; k < kK; ++k) {
#pragma unroll
        for (int c = 0; c < kC; ++c) {
          sums[both][k][c] = fmaf(taps_after[k][c], a[both][c], k < kK - emit ? sums[both][k][c] : start[c]);
        }
      }
    }
#pragma unroll
    for (int e = 0; e < emit; ++e) {
      const int at = emit * pixel - w.along_shift + e;
      if (at < first || at > last || (at & (w.along_stride - 1))) continue;
      if (writes) write<true>(to, pack<T>(sums[0][e]), kC);
      if (writes_second) write<true>(to + w.out_across, pack<T>(sums[1][e]), kC);
      to += w.out_along;
    }
#pragma unroll
    for (int both = 0; both < 2; ++both) {
#pragma unroll
      for (int k = 0; k + emit < kK; ++k) {
#pragma unroll
        for (int c = 0; c < kC; ++c) sums[both][k][c] = sums[both][k + emit][c];
      }
    }
  }
}

template <class T, bool slabs>
auto hadamard_kernel_of(const HadamardLaunch& l) -> decltype(&hadamard_kernel<T, 1, 0, slabs>) {
  if (l.emits_two) return hadamard_kernel<T, 2, 0, slabs>;
  return l.shares_pixels ? hadamard_kernel<T, 1, kK - 1, slabs> : hadamard_kernel<T, 1, 0, slabs>;
}

template <class T>
auto hadamard_kernel_of(const HadamardLaunch& l) -> decltype(&hadamard_kernel<T, 1, 0, false>) {
  return l.walk.slabs > 1 ? hadamard_kernel_of<T, true>(l) : hadamard_kernel_of<T, false>(l);
}

}  // namespace device
}  // namespace explainfix
