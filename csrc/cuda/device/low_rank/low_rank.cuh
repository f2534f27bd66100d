// Low-rank convolution with channels_last, for banks whose filters are combinations S of L basis functions B:
//   y[p, o] = scale * sum over l, c of S[o, c, l] z[p, l, c] + bias[o],   z[p, l, c] = sum over k of B[l, k] x[p + k,
//   c]
// This is a matrix product L / K^2 times the size of the dense convolution's. Torch-free: nvcc compiles this for
// cuda/launch/low_rank.cu, and the emulation's tests compile it with g++.
//
// Bounds for N pixels: N O C L multiply-adds on the tensor cores (1024 to 1300 a clock and multiprocessor by mma.sync),
// and N C (K^2 L + conversions) on the multiply-adders (128 a clock and multiprocessor) for every block of 128 outputs;
// these overlap. x and y once over the bandwidth.
//
// A thread block computes 128 pixels x 128 (or 64) outputs, 32 bytes of input channels a step. Half of its warps, the
// multipliers, multiply step k on the tensor cores. The others, the makers, make z of step k + 1 in shared memory, in
// float32 and rounded once. Meanwhile the input of step k + 2 and the coefficients of step k + 1 are copied to shared
// memory in the background (cp.async). There is one barrier a step. Each kind of warp has its registers for itself:
// warps that did both spilled, or took twice the instructions to make z.
#pragma once

#include "cuda/device/common/elements.cuh"
#include "cuda/device/low_rank/block_product.cuh"
#include "cuda/device/low_rank/responses.cuh"
#include "cuda/device/low_rank/tile.h"

namespace explainfix {
namespace device {

// What a thread block computes: the first pixel of its tile in the output, its group, its first output in the group.
struct LowRankBlock {
  int image, row, column, group, output;

  __device__ LowRankBlock(const LowRank& p, int outputs) {
    unsigned rest = blockIdx.x;  // outputs vary fastest: blocks that read the same pixels run together
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

// Finds for each pixel of the halo where it is in x, counted in pixels from the tile's first image; -1: outside.
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

// Copies x's channels of a step to the halo in shared memory, for the makers. What does not change from step to step is
// worked out once.
template <class T>
struct HaloSource {
  static constexpr int kCount = 16 / sizeof(T);
  const T* images;  // the group's first channel in the tile's first image
  int channels, pitch, pieces;

  __device__ HaloSource(const LowRank& p, const LowRankBlock& block, const T* x)
      : channels(p.group_channels()), pitch(int(p.shape.in_channels)), pieces(2 * p.halo()) {
    images = x + block.image * p.shape.height * p.shape.width * p.shape.in_channels + block.group * channels;
  }

  // For pixels outside a valid address is named, and nothing is read from it.
  __device__ void fetch(int step, const int* places, unsigned char* halo) const {
    const int channel = (2 * step + maker() % 2) * kCount;
    for (int at = maker(); at < pieces; at += kRoleThreads) {
      const int place = places[at / 2];
      const T* from = images + int64_t(place < 0 ? 0 : place) * pitch + channel;
      copy_16_async(halo + at * 16, from, place >= 0 && channel < channels);
    }
  }
};

// Copies the coefficients of a step to shared memory as they lie in `packed`, for the multipliers. A thread copies the
// same half (16 bytes) of the same output for every function, or for every other one where there are threads for two.
template <class T, int kOutputs>
struct CoefficientSource {
  static constexpr int kCount = 16 / sizeof(T), kAtOnce = kRoleThreads / (2 * kOutputs);  // functions
  const T* from;
  int function_step, to;  // elements, bytes

  __device__ CoefficientSource(const LowRank& p, const LowRankBlock& block, const T* packed) {
    const int half = threadIdx.x % 2, row = threadIdx.x / 2 % kOutputs;
    const int padded = (p.group_outputs() + kLowRankOutputs - 1) / kLowRankOutputs * kLowRankOutputs;
    const int output = block.output + row < padded ? block.output + row : 0;  // no result of outputs beyond is stored
    function_step = padded * 2 * kCount;
    from = packed + (int64_t(block.group) * p.steps(sizeof(T)) * p.rank + function()) * function_step +
           (output * 2 + half) * kCount;
    to = operand_offset(row, half);
  }

  // Copies the next step's.
  __device__ void fetch(int rank, unsigned char* right) {
    const T* at = from;
#pragma unroll 1  // unrolled, its addresses take the registers of the sums
    for (int l = function(); l < rank; l += kAtOnce, at += kAtOnce * function_step) {
      copy_16_async(right + l * kOutputs * kLowRankStepBytes + to, at, true);
    }
    from += rank * function_step;
  }

 private:
  __device__ static int function() { return int(threadIdx.x) / (2 * kOutputs); }
};

// Applies scale, bias and activation to the sums, rounds them once, and writes them to shared memory.
template <class T, int kOutputs, class Sums>
__device__ void finish(const LowRank& p, const LowRankBlock& block, const Sums& sums, const T* bias,
                       unsigned char* result) {
  constexpr int kPitch = LowRankShared::result_pitch(kOutputs, sizeof(T));
  const int outputs = p.group_outputs();
  const auto bias_of = [&](int output) {
    Vector<float, 2> both = {{0.0f, 0.0f}};
    if (!bias || block.output + output >= outputs) return both;  // outputs are even
    for (int i = 0; i < 2; ++i) both.at[i] = float(bias[block.group * outputs + block.output + output + i]);
    return both;
  };
  sums.for_each_pair(bias_of, [&](int pixel, int output, const Vector<float, 2>& biases, float first, float second) {
    const float values[2] = {p.scale * first + biases.at[0], p.scale * second + biases.at[1]};
    Vector<T, 2> pair;
#pragma unroll
    for (int i = 0; i < 2; ++i) pair.at[i] = T(p.relu && values[i] < 0 ? 0.0f : values[i]);
    *reinterpret_cast<Vector<T, 2>*>(result + pixel * kPitch + output * int(sizeof(T))) = pair;
  });
}

// Copies the result from shared memory to y, 16 bytes a thread, neighbouring threads to neighbouring memory.
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

// What the makers do: z of the next step, from the input that arrived in the last one.
template <class Product, class Responses, class T>
__device__ void make_all(const LowRank& p, const LowRankMemory& memory, const HaloSource<T>& source) {
  const int steps = p.steps(sizeof(T));
  for (int next = 0; next <= steps; ++next) {
    if (next + 1 < steps) source.fetch(next + 1, memory.places(), memory.halo(next + 1));
    if (next < steps) Responses::template make<Product>(p, memory.taps(), memory.halo(next), memory.left(next));
    wait_for_copies();
    meet_block();
  }
}

// What the multipliers do: add the products of the step before, and copy the next step's coefficients.
template <int kOutputs, class Sums, class T>
__device__ void multiply_all(const LowRank& p, const LowRankMemory& memory, CoefficientSource<T, kOutputs> source,
                             Sums* sums) {
  const int steps = p.steps(sizeof(T));
  for (int next = 0; next <= steps; ++next) {
    if (next < steps) source.fetch(p.rank, memory.right(next));
    const unsigned char *left = memory.left(next + 1), *right = memory.right(next + 1);  // of the step before
#pragma unroll 1
    for (int l = 0; l < p.rank && next > 0; ++l) {
      sums->add(left, right);
      left += kTilePixels * kLowRankStepBytes;
      right += kOutputs * kLowRankStepBytes;
    }
    wait_for_copies();
    meet_block();
  }
}

// Product: how elements are multiplied (block_product.cuh). Responses: how z is made (responses.cuh). Input and output
// channels of a group are multiples of 16 bytes.
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
  const HaloSource<T> source(p, block, x);
  if (maker() >= 0) source.fetch(0, memory.places(), memory.halo(0));
  wait_for_copies();
  __syncthreads();
  if (maker() >= 0) {
    make_all<Product, Responses>(p, memory, source);
  } else {
    BlockProduct<Product, kOutputs> sums;
    multiply_all(p, memory, CoefficientSource<T, kOutputs>(p, block, packed), &sums);
    finish<T, kOutputs>(p, block, sums, bias, shared);
  }
  __syncthreads();
  store<T, kOutputs>(p, block, shared, y);
}

}  // namespace device
}  // namespace explainfix
