// Responses of DCT-II functions at a pair of pixels, by rows, then by columns, in float: for all kernel sizes and types
// but those that dct_matrix.cuh does. Called by the sparse index kernel.
#pragma once

#include "cuda/device/sparse_index/instructions.cuh"
#include "cuda/device/sparse_index/pixel_pairs.cuh"
#include "cuda/device/sparse_index/tile.h"

namespace explainfix {
namespace device {

// The rows of the DCT-II of size K. Even rows are symmetric and odd ones antisymmetric, so that half of each is enough.
// Each row is divided by one of its own factors, for which filtering is then an addition: the middle one of even rows,
// the first of odd ones.
template <int K>
struct DctRows {
  float ratio[K][K / 2];  // the factors before the middle, divided
  float divisor[K];       // what they are divided by
};

__device__ constexpr double cosine_of_fraction(int numerator, int denominator) {  // cos(pi n / d)
  int n = numerator % (2 * denominator);
  n = n > denominator ? 2 * denominator - n : n;
  const double angle = 3.14159265358979323846 * n / denominator;
  double term = 1, sum = 1;
  for (int i = 1; i < 16; ++i) sum += term *= -angle * angle / ((2 * i - 1) * (2 * i));
  return sum;
}

__device__ constexpr double square_root(double value) {
  double root = 1;
  for (int i = 0; i < 30; ++i) root = (root + value / root) / 2;
  return root;
}

template <int K>
__device__ constexpr DctRows<K> dct_rows() {
  DctRows<K> rows{};
  for (int u = 0; u < K; ++u) {
    const double divisor = cosine_of_fraction(u % 2 ? u : K * u, 2 * K);
    rows.divisor[u] = float(divisor * square_root((u ? 2.0 : 1.0) / K));
    for (int j = 0; j < K / 2; ++j) rows.ratio[u][j] = float(cosine_of_fraction((2 * j + 1) * u, 2 * K) / divisor);
  }
  return rows;
}

// K neighbours, folded: symmetric functions need their sums and the middle, antisymmetric ones their differences.
template <int K>
struct Folded {
  float sum[K / 2], difference[K / 2], middle;

  __device__ void fold(const float* values) {
#pragma unroll
    for (int j = 0; j < K / 2; ++j) {
      sum[j] = values[j] + values[K - 1 - j];
      difference[j] = values[j] - values[K - 1 - j];
    }
    middle = values[K / 2];
  }

  // Their response to row u of the DCT, divided by its divisor.
  __device__ float filtered(const DctRows<K>& dct, int u) const {
    float result = u % 2 ? difference[0] : middle;
#pragma unroll
    for (int j = u % 2; j < K / 2; ++j) result += dct.ratio[u][j] * (u % 2 ? difference[j] : sum[j]);
    return result;
  }
};

// What responses are divided by, so that fp16 does not overflow where x did not: they are up to K times as large.
template <class V>
constexpr float kResponseDivisor = V::kernel == 3 ? 4.0f : 8.0f;

// Stores a pair of z as the tensor cores read it, if it is `wanted`. A float is split into a sum of three bf16, each of
// which has its own part of the row.
template <class V>
__device__ void put_responses(bool wanted, unsigned char* z, float upper, float lower) {
  if constexpr (V::terms == 1) {
    store_shared_if(wanted, z, pair_bits(typename V::Element{}, upper, lower));
  } else {
#pragma unroll
    for (int term = 0; term < V::terms; ++term) {
      const uint32_t word = bf16_pair(upper, lower);
      store_shared_if(wanted, z + term * V::pixels * 2, word);
      float rounded_upper, rounded_lower;
      unpack_pair(Bf16{}, word, rounded_upper, rounded_lower);
      upper -= rounded_upper;
      lower -= rounded_lower;
    }
  }
}

// Computes the responses of one channel at one pair, whose window begins at `x`, to the functions with horizontal
// frequency v = first, first + step, ... They go to the rows of z that `numbers` names ([v][V::pitch]; 0: nobody reads
// it). z: where the pair is in row 0.
template <class V, int first, int step>
__device__ void transform(const PixelPair<typename V::Element>* x, int columns, const int32_t* numbers,
                          unsigned char* z) {
  constexpr int K = V::kernel;
  constexpr DctRows<K> dct = dct_rows<K>();
  Folded<K> rows[2 * V::window];
#pragma unroll
  for (int r = 0; r < V::window; ++r) {
    float upper[K], lower[K];
#pragma unroll
    for (int c = 0; c < K; ++c) x[r * columns + c].unpack(upper[c], lower[c]);
    rows[2 * r].fold(upper);
    rows[2 * r + 1].fold(lower);
  }
#pragma unroll
  for (int v = first; v < K; v += step) {
    const auto of_v = *reinterpret_cast<const Vector<int32_t, V::pitch>*>(numbers + v * V::pitch);
    int32_t any = 0;
#pragma unroll
    for (int u = 0; u < K; ++u) any |= of_v.at[u];
    if (any == 0) continue;
    float filtered[K + V::stride];
#pragma unroll
    for (int r = 0; r < K + V::stride; ++r) filtered[r] = rows[r].filtered(dct, v);
    Folded<K> upper, lower;
    upper.fold(filtered);
    lower.fold(filtered + V::stride);
#pragma unroll
    for (int u = 0; u < K; ++u) {
      const int32_t number = of_v.at[u];
      const float factor = dct.divisor[u] * dct.divisor[v] / kResponseDivisor<V>;
      put_responses<V>(number, z + number * V::row_bytes, upper.filtered(dct, u) * factor,
                       lower.filtered(dct, u) * factor);
    }
  }
}

// Computes all responses of a chunk; a thread does one pair for some channels. windows: where the window of each pair
// begins in the halo. Large windows are read twice, so that what is folded stays in registers: first for even v,
// then for odd v.
template <class V>
__device__ void make_responses(const PixelPair<typename V::Element>* x, int plane, int columns, const int* windows,
                               int channels, const int32_t* numbers, unsigned char* z) {
  const int pair = threadIdx.x % V::pairs;
  x += windows[pair];
  z += pair * 4;
  for (int channel = threadIdx.x / V::pairs; channel < channels; channel += blockDim.x / V::pairs) {
    const int32_t* mine = numbers + channel * V::numbers;
    if constexpr (V::kernel == 3 && V::stride == 1) {
      transform<V, 0, 1>(x + channel * plane, columns, mine, z);
    } else {
      transform<V, 0, 2>(x + channel * plane, columns, mine, z);
      transform<V, 1, 2>(x + channel * plane, columns, mine, z);
    }
  }
}

}  // namespace device
}  // namespace explainfix
