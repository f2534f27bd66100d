// How the makers of the low-rank kernel make z, the responses of the basis functions at 128 pixels to 32 bytes of
// channels: from the halo in shared memory to left operands of block_product.cuh, in float32 and rounded once. There is
// a class for any functions and one for functions that are products of a column and a row.
#pragma once

#include <type_traits>

#include "cuda/device/low_rank/block_product.cuh"
#include "cuda/device/low_rank/tile.h"

namespace explainfix {
namespace device {

constexpr int kTogether = 4;  // functions that a thread sums at once: as many as registers hold; 16 bytes of taps

// Copies functions to shared memory as taps[l / together][k][l % together], where tap(l, k) is tap k of function l.
template <int together, class Tap>
__device__ void copy_by_fours(const LowRank& p, int count, float* taps, Tap tap) {
  const int groups = (p.rank + together - 1) / together;
  for (int at = threadIdx.x; at < groups * count * together; at += 2 * kRoleThreads) {
    const int k = at / together % count, l = at / (together * count) * together + at % together;
    taps[at] = l < p.rank ? tap(l, k) : 0.0f;
  }
}

// sums[l] += taps[l] * (the channels in the word)
template <class Product, int together, int kChannels>
__device__ void add_word(float (&sums)[together][kChannels], const float* taps, uint32_t word) {
  float values[kChannels];
  Product::unpack(word, values);
#pragma unroll
  for (int l = 0; l < together; ++l) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sums[l][c] += taps[l] * values[c];
  }
}

// Any functions: K^2 multiply-adds for each. A pixel has two threads, each with half of the channels.
struct AnyResponses {
  using Factors = const double*;  // the basis (L, K^2)

  EXPLAINFIX_HOST_DEVICE static int taps(const LowRank& p) {
    return p.taps() * ((p.rank + kTogether - 1) / kTogether * kTogether);
  }

  __device__ static void copy_taps(const LowRank& p, const double* basis, float* taps) {
    const int count = p.taps();
    copy_by_fours<kTogether>(p, count, taps,
                             [&](int l, int k) { return float(basis[l * count + (p.flipped ? count - 1 - k : k)]); });
  }

  template <class Product>
  __device__ static void make(const LowRank& p, const float* taps, const unsigned char* halo, unsigned char* left) {
    constexpr int kWords = sizeof(typename Product::Element);  // of four channels
    const int pixel = maker() / 2, half = maker() % 2;
    const int column = pixel & (p.columns() - 1), row = pixel >> p.columns_log2 & (p.rows() - 1);
    const int image = pixel >> (p.columns_log2 + p.rows_log2);
    const int first = (image * p.halo_rows() + row * p.shape.stride[0]) * p.halo_columns() + column * p.shape.stride[1];
    for (int l = 0; l < p.rank; l += kTogether, taps += p.taps() * kTogether) {
#pragma unroll 1
      for (int part = 0; part < 16; part += 4 * kWords) {
        make_four<Product, kWords>(p, l, taps, halo + first * kLowRankStepBytes + half * 16 + part,
                                   left + operand_offset(pixel, half) + part);
      }
    }
  }

 private:
  template <class Product, int kWords>
  __device__ static void make_four(const LowRank& p, int first, const float* taps, const unsigned char* from,
                                   unsigned char* to) {
    using Words = Vector<uint32_t, kWords>;
    float sums[kWords][kTogether][4 / kWords] = {};
    for (int i = 0; i < p.shape.kernel[0]; ++i, from += p.halo_columns() * kLowRankStepBytes) {
      for (int j = 0; j < p.shape.kernel[1]; ++j, taps += kTogether) {
        const auto words = *reinterpret_cast<const Words*>(from + j * kLowRankStepBytes);
#pragma unroll
        for (int w = 0; w < kWords; ++w) add_word<Product>(sums[w], taps, words.at[w]);
      }
    }
#pragma unroll
    for (int l = 0; l < kTogether; ++l) {
      if (first + l >= p.rank) break;
      Words words;
#pragma unroll
      for (int w = 0; w < kWords; ++w) words.at[w] = Product::to_word(sums[w][l]);
      *reinterpret_cast<Words*>(to + (first + l) * kTilePixels * kLowRankStepBytes) = words;
    }
  }
};

// Functions that are products of a column and a row, both of kSize taps: 2 K multiply-adds for each. A thread has a
// word of channels at four pixels below each other, so that a row is filtered once for all of them. Neighbouring
// threads have neighbouring words, then neighbouring columns, so that all banks differ. together: functions at once, 2
// where L is 1 or 2, else kTogether.
template <int kSize, int together>
struct ProductResponses {
  using Factors = const float*;  // (L, 2 K): column, row

  EXPLAINFIX_HOST_DEVICE static int taps(const LowRank& p) {
    return 2 * kSize * ((p.rank + together - 1) / together * together);
  }

  __device__ static void copy_taps(const LowRank& p, const float* factors, float* taps) {
    copy_by_fours<together>(p, 2 * kSize, taps, [&](int l, int k) {
      const int last = k < kSize ? kSize - 1 : 3 * kSize - 1;
      return factors[l * 2 * kSize + (p.flipped ? last - k : k)];
    });
  }

  template <class Product>
  __device__ static void make(const LowRank& p, const float* taps, const unsigned char* halo, unsigned char* left) {
#pragma unroll 1
    for (int l = 0; l < p.rank; l += together, taps += 2 * kSize * together) {
      p.shape.stride[0] == 1 ? filter<Product, 1>(p, l, taps, halo, left) : filter<Product, 2>(p, l, taps, halo, left);
    }
  }

 private:
  static constexpr int kPixels = 1 << kProductRowsLog2;
  static constexpr int kUnrolled = kSize == 7 ? 2 : 3;  // more of them spilled registers

  template <class Product, int kStride>
  __device__ static void filter(const LowRank& p, int l, const float* taps, const unsigned char* halo,
                                unsigned char* left) {
    constexpr int kChannels = 4 / sizeof(typename Product::Element);
    const int word = maker() % 8, column = maker() / 8 & (p.columns() - 1), rest = maker() / 8 >> p.columns_log2;
    const int row = (rest & ((p.rows() >> kProductRowsLog2) - 1)) * kPixels;
    const int image = rest >> (p.rows_log2 - kProductRowsLog2);
    const int first = (image * p.halo_rows() + row * kStride) * p.halo_columns() + column * p.shape.stride[1];
    const unsigned char* from = halo + first * kLowRankStepBytes + word * 4;
    float sums[kPixels][together][kChannels] = {};
#pragma unroll
    for (int r = 0; r < (kPixels - 1) * kStride + kSize; ++r, from += p.halo_columns() * kLowRankStepBytes) {
      float filtered[together][kChannels] = {};
#pragma unroll kUnrolled
      for (int j = 0; j < kSize; ++j) {
        const uint32_t channels = *reinterpret_cast<const uint32_t*>(from + j * kLowRankStepBytes);
        add_word<Product>(filtered, taps + (kSize + j) * together, channels);
      }
#pragma unroll
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        const int i = r - pixel * kStride;
        if (i >= 0 && i < kSize) add_row(sums[pixel], taps + i * together, filtered);
      }
    }
    const int pixel = (image << p.rows_log2 | row) << p.columns_log2 | column;
    store<Product>(p, l, sums, pixel, word, left);
  }

  template <int kChannels>
  __device__ static void add_row(float (&sums)[together][kChannels], const float* taps,
                                 const float (&row)[together][kChannels]) {
#pragma unroll
    for (int l = 0; l < together; ++l) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums[l][c] += taps[l] * row[l][c];
    }
  }

  template <class Product, int kChannels>
  __device__ static void store(const LowRank& p, int first, const float (&sums)[kPixels][together][kChannels],
                               int pixel, int word, unsigned char* left) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      unsigned char* to = left + operand_offset(pixel + (i << p.columns_log2), word / 4) + word % 4 * 4;
#pragma unroll
      for (int l = 0; l < together; ++l) {
        if (first + l >= p.rank) break;
        *reinterpret_cast<uint32_t*>(to + (first + l) * kTilePixels * kLowRankStepBytes) = Product::to_word(sums[i][l]);
      }
    }
  }
};

// Calls f with the ProductResponses for this rank.
template <int kSize, class F>
void with_products(int rank, F f) {
  rank <= 2 ? f(ProductResponses<kSize, 2>()) : f(ProductResponses<kSize, kTogether>());
}

// Are there kernels of their own for functions that are products? Not in strict float32: there it is the matrix product
// that takes the time.
inline bool products_fit(const ConvShape& s, bool strict) {
  return !strict && s.kernel[0] == s.kernel[1] && (s.kernel[0] == 3 || s.kernel[0] == 5 || s.kernel[0] == 7) &&
         s.stride[0] <= 2;
}

// Calls f with the class that makes p's responses. products: each function is a product of a column and a row, and
// products_fit.
template <class Product, class F>
void with_responses(const LowRank& p, bool products, F f) {
  if constexpr (!std::is_same_v<Product, Fp32Product>) {
    const int size = p.shape.kernel[0];
    if (products && size == 3) return with_products<3>(p.rank, f);
    if (products && size == 5) return with_products<5>(p.rank, f);
    if (products) return with_products<7>(p.rank, f);
  }
  f(AnyResponses());
}

}  // namespace device
}  // namespace explainfix
