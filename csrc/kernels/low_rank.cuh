// Low-rank convolution, channels_last: y[p, o] = scale * sum over l, c of S[o, c, l] z[p, l, c] + bias[o], where
// z[p, l, c] = sum over k of B[l, k] x[p + k, c]. A matrix product L / K^2 times the size of the dense convolution's.
//
// Floors, for N pixels: N O C L multiply-adds on the tensor cores (1024 to 1300 a clock and SM by mma.sync), and N C
// (K^2 L + conversions) on the multiply-adders (128 a clock and SM) for every block of 128 outputs, which overlap; x
// and y once over the bandwidth.
//
// A block computes 128 pixels x 128 (64) outputs, 32 bytes of channels a step. While the tensor cores multiply step k
// (warps drift apart between two barriers, that is what overlaps), z of step k + 1 is made in shared memory, in float32
// and rounded once, and the input of step k + 2 and the coefficients of step k + 1 are on their way (cp.async).
#pragma once

#include "block_product.cuh"
#include "elements.cuh"
#include "low_rank_tile.h"
#include "responses.cuh"

namespace explainfix {
namespace device {

// The block's place: the first pixel of its tile, in the output; its group and the first of its outputs there.
struct LowRankBlock {
  int image, row, column, group, output;

  __device__ LowRankBlock(const LowRank& p, int outputs) {
    unsigned rest = blockIdx.x;  // outputs run fastest: blocks that read the same pixels run together
    auto next = [&rest](int count) {
      const int index = int(rest % unsigned(count));
      rest /= unsigned(count);
      return index;
    };
    output = next((p.group_outputs() + outputs - 1) / outputs) * outputs;
    group = next(int(p.shape.groups));
    column = next(int(p.tile_columns())) * p.columns();
    row = next(int(p.tile_rows())) * p.rows();
    image = int(rest) * p.images();
  }
};

// For each pixel of the halo where it is, counted in pixels from the tile's first image; -1 is outside.
__device__ inline void find_places(const LowRank& p, const LowRankBlock& block, int* places) {
  const ConvShape& s = p.shape;
  for (int at = threadIdx.x; at < p.halo(); at += kTileThreads) {
    const int column = at % p.halo_columns(), row = at / p.halo_columns() % p.halo_rows();
    const int image = at / (p.halo_columns() * p.halo_rows());
    const int h = block.row * s.stride[0] - s.padding[0] + row;
    const int w = block.column * s.stride[1] - s.padding[1] + column;
    const bool inside = h >= 0 && h < s.height && w >= 0 && w < s.width && block.image + image < s.images;
    places[at] = inside ? int((image * s.height + h) * s.width + w) : -1;
  }
}

// The channels of a step at every pixel of the halo.
template <class T>
__device__ void fetch_halo(const LowRank& p, const LowRankBlock& block, const T* x, const int* places, int step,
                           unsigned char* halo) {
  constexpr int kCount = 16 / sizeof(T);
  const int channels = p.group_channels();
  const T* images = x + block.image * p.shape.height * p.shape.width * p.shape.in_channels + block.group * channels;
#pragma unroll 1  // few rounds, and unrolled their addresses take the registers of the sums
  for (int at = threadIdx.x; at < 2 * p.halo(); at += kTileThreads) {
    const int channel = (2 * step + at % 2) * kCount;
    const bool valid = places[at / 2] >= 0 && channel < channels;
    copy_16_async(halo + at * 16, valid ? images + places[at / 2] * p.shape.in_channels + channel : x, valid);
  }
}

// The coefficients of a step, as they lie in `packed`.
template <class T, int kOutputs>
__device__ void fetch_coefficients(const LowRank& p, const LowRankBlock& block, const T* packed, int step,
                                   unsigned char* right) {
  constexpr int kCount = 16 / sizeof(T);
  const int padded = (p.group_outputs() + kPackedOutputs - 1) / kPackedOutputs * kPackedOutputs;
  const T* matrices = packed + int64_t(block.group * p.steps(sizeof(T)) + step) * p.rank * padded * 2 * kCount;
#pragma unroll 1
  for (int at = threadIdx.x; at < p.rank * kOutputs * 2; at += kTileThreads) {
    const int half = at % 2, row = at / 2 % kOutputs, function = at / (2 * kOutputs);
    const bool valid = block.output + row < padded;
    const T* from = matrices + ((function * padded + block.output + row) * 2 + half) * kCount;
    copy_16_async(right + function * kOutputs * kChunkBytes + place_of(row, half), valid ? from : packed, valid);
  }
}

// Scale, bias, activation; rounded once, to shared memory.
template <class T, int kOutputs, class Sums>
__device__ void finish(const LowRank& p, const LowRankBlock& block, const Sums& sums, const T* bias,
                       unsigned char* result) {
  constexpr int kPitch = LowRankShared::result_pitch(kOutputs, sizeof(T));
  const int outputs = p.group_outputs();
  sums.for_each_pair([&](int pixel, int output, float first, float second) {
    const float values[2] = {first, second};
    Vector<T, 2> pair;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int o = block.output + output + i;
      float value = p.scale * values[i];
      if (bias && o < outputs) value += float(bias[block.group * outputs + o]);
      pair.at[i] = T(p.relu && value < 0 ? 0.0f : value);
    }
    *reinterpret_cast<Vector<T, 2>*>(result + pixel * kPitch + output * int(sizeof(T))) = pair;
  });
}

// From shared memory to y, 16 bytes a thread, neighbours next to each other.
template <class T, int kOutputs>
__device__ void store(const LowRank& p, const LowRankBlock& block, const unsigned char* result, T* y) {
  constexpr int kCount = 16 / sizeof(T), kPerPixel = kOutputs / kCount;
  constexpr int kPitch = LowRankShared::result_pitch(kOutputs, sizeof(T));
  const ConvShape& s = p.shape;
  const int outputs = p.group_outputs();
  for (int at = threadIdx.x; at < kTilePixels * kPerPixel; at += kTileThreads) {
    const int pixel = at / kPerPixel, part = at % kPerPixel;
    const int w = block.column + (pixel & (p.columns() - 1));
    const int h = block.row + (pixel >> p.columns_log2 & (p.rows() - 1));
    const int64_t n = block.image + (pixel >> (p.columns_log2 + p.rows_log2));
    const int o = block.output + part * kCount;
    if (n >= s.images || h >= s.out_height || w >= s.out_width || o >= outputs) continue;
    T* to = y + ((n * s.out_height + h) * s.out_width + w) * s.out_channels + block.group * outputs + o;
    *reinterpret_cast<Vector<T, kCount>*>(to) =
        *reinterpret_cast<const Vector<T, kCount>*>(result + pixel * kPitch + part * 16);
  }
}

// Responses: how z is made. Channels of a group, in and out, are whole 16 bytes. Up to four functions, two blocks share
// a multiprocessor.
template <class Product, int kOutputs, class Responses>
__global__ void __launch_bounds__(kTileThreads, Responses::kFunctions <= 4 ? Product::kBlocks : 1)
    low_rank_kernel(LowRank p, const typename Product::Element* x, const typename Product::Element* packed,
                    typename Responses::Factors factors, const typename Product::Element* bias,
                    typename Product::Element* y) {
  using T = typename Product::Element;
  EXPLAINFIX_SHARED(shared);
  const LowRankShared at(p, kOutputs, Responses::taps(p), sizeof(T));
  const LowRankBlock block(p, kOutputs);
  float* taps = reinterpret_cast<float*>(shared + at.taps);
  int* places = reinterpret_cast<int*>(shared + at.places);
  const int steps = p.steps(sizeof(T));
  auto halo = [&](int step) { return shared + at.halo + (step & 1) * at.halo_step; };
  auto left = [&](int step) { return shared + at.left + (step & 1) * at.left_step; };
  auto right = [&](int step) { return shared + at.right + (step & 1) * at.right_step; };

  Responses::copy_taps(p, factors, taps);
  find_places(p, block, places);
  __syncthreads();
  fetch_halo<T>(p, block, x, places, 0, halo(0));
  wait_for_copies();
  __syncthreads();
  fetch_halo<T>(p, block, x, places, 1, halo(1));
  fetch_coefficients<T, kOutputs>(p, block, packed, 0, right(0));
  Responses::template make<Product>(p, taps, halo(0), left(0));

  BlockProduct<Product, kOutputs> sums;
  for (int step = 0; step < steps; ++step) {
    wait_for_copies();
    __syncthreads();
    if (step + 1 < steps) {
      fetch_halo<T>(p, block, x, places, step + 2, halo(step));
      fetch_coefficients<T, kOutputs>(p, block, packed, step + 1, right(step + 1));
      Responses::template make<Product>(p, taps, halo(step + 1), left(step + 1));
    }
    for (int l = 0; l < p.rank; ++l) {
      sums.add(left(step) + l * kTilePixels * kChunkBytes, right(step) + l * kOutputs * kChunkBytes);
    }
  }
  __syncthreads();
  finish<T, kOutputs>(p, block, sums, bias, shared);
  __syncthreads();
  store<T, kOutputs>(p, block, shared, y);
}

}  // namespace device
}  // namespace explainfix
