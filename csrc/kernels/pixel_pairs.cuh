// Two pixels of a channel above each other, as one word of shared memory, and how they get there from loads that bring
// the same pixel of one or two channels.
#pragma once

#include <type_traits>

#include "elements.cuh"

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

// One load, as bits: what is two structs of 16 bits to the compiler it would take apart.
template <class T, int channels>
struct PixelRead {
  static constexpr int bytes = sizeof(T) * channels;
  using Bits = std::conditional_t<bytes == 2, uint16_t, std::conditional_t<bytes == 4, uint32_t, uint64_t>>;
  Bits bits;

  // Of channel i (0 or 1), with the pixel below.
  __device__ PixelPair<T> above(PixelRead lower, int i) const {
    if constexpr (sizeof(T) == 4) {
      return {
          {float_of_bits(uint32_t(uint64_t(bits) >> 32 * i)), float_of_bits(uint32_t(uint64_t(lower.bits) >> 32 * i))}};
    } else {
      return {i == 0 ? (uint32_t(bits) & 0xffffu) | uint32_t(lower.bits) << 16
                     : uint32_t(bits) >> 16 | (uint32_t(lower.bits) & 0xffff0000u)};
    }
  }
};

}  // namespace device
}  // namespace explainfix
