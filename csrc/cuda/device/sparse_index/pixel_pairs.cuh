// Two pixels of a channel above each other, as the sparse index kernel keeps x in shared memory, and how they are made
// from loads that bring one pixel of some channels. Used by halo.cuh.
#pragma once

#include <type_traits>

#include "cuda/device/common/elements.cuh"

namespace explainfix {
namespace device {

template <class T>
struct PixelPair {
  uint32_t word;
  __device__ void unpack(float& upper, float& lower) const { unpack_pair(T{}, word, upper, lower); }
};
template <>
struct alignas(8) PixelPair<float> {
  float values[2];
  __device__ void unpack(float& upper, float& lower) const {
    upper = values[0];
    lower = values[1];
  }
};

// A pixel of some channels, as the bits of one load: the compiler would take a struct of 16-bit numbers apart.
template <class T, int channels>
struct PixelRead {
  static constexpr int bytes = sizeof(T) * channels;
  using Bits = std::conditional_t<bytes == 2, uint16_t, std::conditional_t<bytes == 4, uint32_t, uint64_t>>;
  Bits bits;

  __device__ uint32_t word(int i) const { return uint32_t(uint64_t(bits) >> 32 * i); }

  // The pair of channel i: this pixel and the one below.
  __device__ PixelPair<T> above(PixelRead lower, int i) const {
    if constexpr (sizeof(T) == 4) {
      return {{float_of_bits(word(i)), float_of_bits(lower.word(i))}};
    } else {
      const uint32_t mine = word(i / 2), below = lower.word(i / 2);
      return {i % 2 ? mine >> 16 | (below & 0xffff0000u) : (mine & 0xffffu) | below << 16};
    }
  }
};

}  // namespace device
}  // namespace explainfix
