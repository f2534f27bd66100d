// Low-rank convolution, channels_last: y[p, o] = scale * sum over l, c of S[o, c, l] z[p, l, c] + bias[o], where
// z[p, l, c] = sum over k of B[l, k] x[p + k, c]. A matrix product L / K^2 times the size of the dense convolution's.
//
// Floors, for N pixels: N O C L multiply-adds on the tensor cores (1024 to 1300 a clock and SM by mma.sync), and N C
// (K^2 L + conversions) on the multiply-adders (128 a clock and SM) for every block of 128 outputs, which overlap; x
// and y once over the bandwidth.
//
// A block computes 128 pixels x 128 (64) outputs, 32 bytes of channels a step. Half of its warps multiply step k on the
// tensor cores while the others make z of step k + 1 in shared memory, in float32 and rounded once; the input of step
// k + 2 and the coefficients of step k + 1 are on their way meanwhile (cp.async). One barrier a step. Either kind of
// warp has its registers for itself: warps that did both spilled, or took twice the instructions to make z.
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
  for (int at = threadIdx.x; at < p.halo(); at += 2 * kRoleThreads) {
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
  for (int at = maker(); at < 2 * p.halo(); at += kRoleThreads) {
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
#pragma unroll 1  // unrolled, its addresses take the registers of the sums
  for (int at = threadIdx.x; at < p.rank * kOutputs * 2; at += kRoleThreads) {
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
  for (int at = threadIdx.x; at < kTilePixels * kPerPixel; at += 2 * kRoleThreads) {
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

// The block's shared memory.
struct LowRankMemory {
  unsigned char* shared;
  LowRankShared at;

  __device__ float* taps() const { return reinterpret_cast<float*>(shared + at.taps); }
  __device__ int* places() const { return reinterpret_cast<int*>(shared + at.places); }
  __device__ unsigned char* halo(int step) const { return shared + at.halo + (step & 1) * at.halo_step; }
  __device__ unsigned char* left(int step) const { return shared + at.left + (step & 1) * at.left_step; }
  __device__ unsigned char* right(int step) const { return shared + at.right + (step & 1) * at.right_step; }
};

// The makers' part: z of the next step, from the input that came in the last one.
template <class Product, class Responses, class T>
__device__ void make_all(const LowRank& p, const LowRankBlock& block, const LowRankMemory& memory, const T* x) {
  const int steps = p.steps(sizeof(T));
  for (int next = 0; next <= steps; ++next) {
    if (next + 1 < steps) fetch_halo(p, block, x, memory.places(), next + 1, memory.halo(next + 1));
    if (next < steps) Responses::template make<Product>(p, memory.taps(), memory.halo(next), memory.left(next));
    wait_for_copies();
    meet_block();
  }
}

// The multipliers' part.
template <int kOutputs, class Sums, class T>
__device__ void multiply_all(const LowRank& p, const LowRankBlock& block, const LowRankMemory& memory, const T* packed,
                             Sums* sums) {
  const int steps = p.steps(sizeof(T));
  for (int next = 0; next <= steps; ++next) {
    if (next < steps) fetch_coefficients<T, kOutputs>(p, block, packed, next, memory.right(next));
    for (int l = 0; l < p.rank && next > 0; ++l) {
      sums->add(memory.left(next - 1) + l * kTilePixels * kChunkBytes,
                memory.right(next - 1) + l * kOutputs * kChunkBytes);
    }
    wait_for_copies();
    meet_block();
  }
}

// Responses: how z is made. Channels of a group, in and out, are whole 16 bytes.
template <class Product, int kOutputs, class Responses>
__global__ void __launch_bounds__(2 * kRoleThreads, 1)
    low_rank_kernel(LowRank p, const typename Product::Element* x, const typename Product::Element* packed,
                    typename Responses::Factors factors, const typename Product::Element* bias,
                    typename Product::Element* y) {
  using T = typename Product::Element;
  EXPLAINFIX_SHARED(shared);
  const LowRankMemory memory{shared, LowRankShared(p, kOutputs, Responses::taps(p), sizeof(T))};
  const LowRankBlock block(p, kOutputs);
  Responses::copy_taps(p, factors, memory.taps());
  find_places(p, block, memory.places());
  __syncthreads();
  if (maker() >= 0) fetch_halo(p, block, x, memory.places(), 0, memory.halo(0));
  wait_for_copies();
  __syncthreads();
  if (maker() >= 0) {
    make_all<Product, Responses>(p, block, memory, x);
  } else {
    BlockProduct<Product, kOutputs> sums;
    multiply_all<kOutputs>(p, block, memory, packed, &sums);
    finish<T, kOutputs>(p, block, sums, bias, shared);
  }
  __syncthreads();
  store<T, kOutputs>(p, block, shared, y);
}

}  // namespace device
}  // namespace explainfix
