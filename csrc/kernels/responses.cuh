// z of a low-rank convolution: the responses of the basis functions at 128 pixels to 32 bytes of channels, from the
// halo in shared memory to left operands of block_product.cuh, in float32 and rounded once.
#pragma once

#include <type_traits>

#include "block_product.cuh"
#include "low_rank_tile.h"

namespace explainfix {
namespace device {

// Any functions: K^2 multiply-adds for each. Two threads a pixel, half of the channels each, a few at a time, for the
// sums to fit in registers.
template <int functions>
struct AnyResponses {
  static constexpr int kFunctions = functions;                                        // the largest rank
  static constexpr int kPitch = functions > 2 ? (functions + 3) / 4 * 4 : functions;  // read 16 bytes at a time
  using Factors = const double*;                                                      // the basis (L, K^2)

  EXPLAINFIX_HOST_DEVICE static int taps(const LowRank& p) { return p.taps() * kPitch; }

  // taps[k][l], so that a thread reads all functions' factors of a pixel at once.
  __device__ static void copy_taps(const LowRank& p, const double* basis, float* taps) {
    const int count = p.taps();
    for (int at = threadIdx.x; at < count * kPitch; at += kTileThreads) {
      const int k = at / kPitch, l = at % kPitch;
      taps[at] = l < p.rank ? float(basis[l * count + (p.flipped ? count - 1 - k : k)]) : 0.0f;
    }
  }

  template <class Product>
  __device__ static void make(const LowRank& p, const float* taps, const unsigned char* halo, unsigned char* left) {
    constexpr int kWords = sizeof(typename Product::Element), kChannels = 4 / kWords;
    using Words = Vector<uint32_t, kWords>;  // of four channels
    const int pixel = threadIdx.x / 2, half = threadIdx.x % 2;
    const int column = pixel & (p.columns() - 1), row = pixel >> p.columns_log2 & (p.rows() - 1);
    const int image = pixel >> (p.columns_log2 + p.rows_log2);
    const int first = (image * p.halo_rows() + row * p.shape.stride[0]) * p.halo_columns() + column * p.shape.stride[1];
#pragma unroll 1
    for (int part = 0; part < 16; part += sizeof(Words)) {
      float sums[kWords][kFunctions][kChannels] = {};
      const float* tap = taps;
      for (int i = 0; i < p.shape.kernel[0]; ++i) {
        for (int j = 0; j < p.shape.kernel[1]; ++j, tap += kPitch) {
          const int at = first + i * p.halo_columns() + j;
          const auto words = *reinterpret_cast<const Words*>(halo + at * kChunkBytes + half * 16 + part);
#pragma unroll
          for (int w = 0; w < kWords; ++w) add_word<Product>(sums[w], tap, words.at[w]);
        }
      }
#pragma unroll
      for (int l = 0; l < kFunctions; ++l) {
        if (l >= p.rank) break;
        Words words;
#pragma unroll
        for (int w = 0; w < kWords; ++w) words.at[w] = Product::to_word(sums[w][l]);
        *reinterpret_cast<Words*>(left + l * kTilePixels * kChunkBytes + place_of(pixel, half) + part) = words;
      }
    }
  }

  // sums[l] += taps[l] * the channels in the word
  template <class Product, int kChannels>
  __device__ static void add_word(float (&sums)[kFunctions][kChannels], const float* taps, uint32_t word) {
    float values[kChannels];
    Product::unpack(word, values);
#pragma unroll
    for (int l = 0; l < kFunctions; ++l) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums[l][c] += taps[l] * values[c];
    }
  }
};

// Functions that are products of a column and a row: K multiply-adds for the row at each pixel of a column, K for the
// column. A thread has a word of channels at four pixels below each other, so that rows are filtered once for all four;
// neighbouring threads have neighbouring words, then columns: all banks differ. Loops that are not unrolled leave the
// registers to the block's sums; other warps fill the waits.
template <int functions>
struct ProductResponses {
  static constexpr int kFunctions = functions, kPitch = AnyResponses<functions>::kPitch;
  using Factors = const float*;  // (L, kh + kw): column, row

  EXPLAINFIX_HOST_DEVICE static int taps(const LowRank& p) { return (p.shape.kernel[0] + p.shape.kernel[1]) * kPitch; }

  // taps[k][l], of the column and then of the row
  __device__ static void copy_taps(const LowRank& p, const float* factors, float* taps) {
    const int height = p.shape.kernel[0], both = height + p.shape.kernel[1];
    for (int at = threadIdx.x; at < both * kPitch; at += kTileThreads) {
      const int k = at / kPitch, l = at % kPitch, from = !p.flipped ? k : (k < height ? height : both + height) - 1 - k;
      taps[at] = l < p.rank ? factors[l * both + from] : 0.0f;
    }
  }

  template <class Product>
  __device__ static void make(const LowRank& p, const float* taps, const unsigned char* halo, unsigned char* left) {
    constexpr int kChannels = 4 / sizeof(typename Product::Element);
    const int word = threadIdx.x % 8, column = threadIdx.x / 8 & (p.columns() - 1);
    const int rest = threadIdx.x / 8 >> p.columns_log2, row = (rest & (p.rows() / kPixels - 1)) * kPixels;
    const int image = rest >> (p.rows_log2 - kProductRowsLog2), stride = p.shape.stride[0];
    const int first = (image * p.halo_rows() + row * stride) * p.halo_columns() + column * p.shape.stride[1];
    const unsigned char* from = halo + first * kChunkBytes + word * 4;
    float sums[kPixels][kFunctions][kChannels] = {};
#pragma unroll 1
    for (int r = 0; r < (kPixels - 1) * stride + p.shape.kernel[0]; ++r, from += p.halo_columns() * kChunkBytes) {
      float filtered[kFunctions][kChannels] = {};
      const float* tap = taps + p.shape.kernel[0] * kPitch;
#pragma unroll 1
      for (int j = 0; j < p.shape.kernel[1]; ++j, tap += kPitch) {
        const uint32_t channels = *reinterpret_cast<const uint32_t*>(from + j * kChunkBytes);
        AnyResponses<kFunctions>::template add_word<Product>(filtered, tap, channels);
      }
#pragma unroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        const int i = r - pixel * stride;
        if (i >= 0 && i < p.shape.kernel[0]) add_row(sums[pixel], taps + i * kPitch, filtered);
      }
    }
    store<Product>(p, sums, (image << p.rows_log2 | row) << p.columns_log2 | column, word, left);
  }

 private:
  static constexpr int kPixels = 1 << kProductRowsLog2;

  template <int kChannels>
  __device__ static void add_row(float (&sums)[kFunctions][kChannels], const float* taps,
                                 const float (&row)[kFunctions][kChannels]) {
#pragma unroll
    for (int l = 0; l < kFunctions; ++l) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums[l][c] += taps[l] * row[l][c];
    }
  }

  template <class Product, int kChannels>
  __device__ static void store(const LowRank& p, const float (&sums)[kPixels][kFunctions][kChannels], int pixel,
                               int word, unsigned char* left) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      unsigned char* to = left + place_of(pixel + (i << p.columns_log2), word / 4) + word % 4 * 4;
#pragma unroll
      for (int l = 0; l < kFunctions; ++l) {
        if (l >= p.rank) break;
        *reinterpret_cast<uint32_t*>(to + l * kTilePixels * kChunkBytes) = Product::to_word(sums[i][l]);
      }
    }
  }
};

// Calls f with the responses for `rank` functions. products: each is one of a column and a row.
template <class Product, class F>
void with_responses(int rank, bool products, F f) {
  if constexpr (!std::is_same_v<Product, Fp32Product>) {  // there the products of the block take the time
    if (products && rank <= 2) return f(ProductResponses<2>());
    if (products && rank <= 4) return f(ProductResponses<4>());
    if (products) return f(ProductResponses<kMaxRank>());
  }
  if (rank <= 4) return f(AnyResponses<4>());
  f(AnyResponses<kMaxRank>());
}

}  // namespace device
}  // namespace explainfix
