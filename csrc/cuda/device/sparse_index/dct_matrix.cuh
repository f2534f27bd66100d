// Responses of the 3 x 3 DCT-II with stride 1 in 16 bits, by tensor cores. Up to a scale, which is applied in float,
// the factors of the functions are products of 1, -1 and -1/2, which 16 bits hold exactly. The left operand has 16
// rows: eight functions at both pixels of a pair; the columns of the right one are the windows of pairs. For the ninth
// function, the mean, the sides are exchanged, for it would fill only 2 of 16 rows. Called by the sparse index kernel.
#pragma once

#include "cuda/device/sparse_index/dct_transform.cuh"

namespace explainfix {
namespace device {

// The window of a pair is 4 x 3 pixels: 2 x 3 words, each of two pixels above each other. In the product, k = 2 w + i
// is pixel i of word w. Lane l of the warp has the words l % 4 and (if there is one) l % 4 + 4 of four pairs:
// l / 4, l / 4 + 8, l / 4 + 16 and l / 4 + 24.
using Windows = uint32_t[4][2];

// Row u of the DCT, divided by its divisor.
__device__ inline float tap_of_three(int u, int j) {
  if (j < 0 || j > 2) return 0.0f;
  return u == 0 ? 1.0f : u == 1 ? 1.0f - j : j == 1 ? 1.0f : -0.5f;
}

// The factors of function (u, v) at the upper (0) or lower (1) pixel, for both pixels of a word.
template <class T>
__device__ uint32_t factors_of(T, int u, int v, int pixel, int word) {
  const int row = word / 3 * 2 - pixel;
  const float across = word < 6 ? tap_of_three(v, word % 3) : 0.0f;
  return pair_bits(T{}, across * tap_of_three(u, row), across * tap_of_three(u, row + 1));
}

// The scale of a function.
template <class V>
__device__ float scale_of(int u, int v) {
  constexpr DctRows<3> dct = dct_rows<3>();
  const auto of = [&](int u) { return u == 0 ? dct.divisor[0] : u == 1 ? dct.divisor[1] : dct.divisor[2]; };
  return of(u) * of(v) / kResponseDivisor<V>;
}

// A lane's part of the operands. `eight` has functions f = 1 to 8: row f - 1 for the upper pixel, f + 7 for the lower
// one. `mean` has the upper pixel in even columns and the lower one in odd columns.
struct alignas(16) DctOperands {
  uint32_t eight[4], mean[2];
  float scale;  // of the function of the lane's row

  template <class V>
  __device__ static DctOperands of(V, int lane) {
    using T = typename V::Element;
    const int u = (lane / 4 + 1) / 3, v = (lane / 4 + 1) % 3, word = lane % 4;
    DctOperands operands;
    for (int i = 0; i < 4; ++i) operands.eight[i] = factors_of(T{}, u, v, i % 2, word + i / 2 * 4);
    for (int i = 0; i < 2; ++i) operands.mean[i] = factors_of(T{}, 0, 0, lane / 4 % 2, word + i * 4);
    operands.scale = scale_of<V>(u, v);
    return operands;
  }
};

// Computes the responses to functions 1 to 8 at all pairs of a channel. A lane stores those to its own function, to row
// `number` of z if that is not 0.
template <class V>
__device__ void put_eight(const DctOperands& operands, const Windows& windows, int32_t number, unsigned char* z) {
  using T = typename V::Element;
  z += number * V::row_bytes + threadIdx.x % 4 * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float sums[4] = {};  // two pairs, upper pixels, then lower ones
    multiply(T{}, sums, operands.eight, windows[i]);
    store_shared_if(number, z + i * 32, pair_bits(T{}, sums[0] * operands.scale, sums[2] * operands.scale),
                    pair_bits(T{}, sums[1] * operands.scale, sums[3] * operands.scale));
  }
}

// Likewise the mean. Four lanes have the sums of the same four pairs; each stores one of them.
template <class V>
__device__ void put_mean(const DctOperands& operands, const Windows& windows, int32_t number, unsigned char* z) {
  using T = typename V::Element;
  const int part = opaque(int(threadIdx.x % 4));
  float sums[2][4] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Windows& w = windows;
    multiply(T{}, sums[i], {w[2 * i][0], w[2 * i + 1][0], w[2 * i][1], w[2 * i + 1][1]}, operands.mean);
  }
  const float upper = part & 2 ? (part & 1 ? sums[1][2] : sums[1][0]) : part & 1 ? sums[0][2] : sums[0][0];
  const float lower = part & 2 ? (part & 1 ? sums[1][3] : sums[1][1]) : part & 1 ? sums[0][3] : sums[0][1];
  const float scale = scale_of<V>(0, 0);
  *reinterpret_cast<uint32_t*>(z + number * V::row_bytes + (part * 8 + threadIdx.x % 32 / 4) * 4) =
      pair_bits(T{}, upper * scale, lower * scale);
}

// Computes all responses of a chunk; a warp does one channel after the other. windows: where the window of each pair
// begins in the halo.
template <class V>
__device__ void make_responses(const PixelPair<typename V::Element>* x, int plane, int columns, const int* windows,
                               const DctOperands* all_operands, int channels, const int32_t* numbers,
                               unsigned char* z) {
  static_assert(V::pairs == 32, "as many as Windows has");
  const int lane = threadIdx.x % 32, word = lane % 4, warps = blockDim.x / 32;
  const int u = (lane / 4 + 1) / 3, v = (lane / 4 + 1) % 3;
  const DctOperands operands = all_operands[lane];
  x += threadIdx.x / 32 * plane + word / 3 * columns + word % 3;
  numbers += threadIdx.x / 32 * V::numbers;
  const PixelPair<typename V::Element>* pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = x + windows[i * 8 + lane / 4];
  const int next = word < 2 ? columns + 1 : 0;  // to word + 4, if there is one; else the factor is 0
  for (int channel = threadIdx.x / 32; channel < channels; channel += warps) {
    Windows words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i][0] = pairs[i]->word;
      words[i][1] = pairs[i][next].word;
      pairs[i] += warps * plane;
    }
    put_eight<V>(operands, words, numbers[v * V::pitch + u], z);
    if (numbers[0]) put_mean<V>(operands, words, numbers[0], z);
    numbers += warps * V::numbers;
  }
}

}  // namespace device
}  // namespace explainfix
