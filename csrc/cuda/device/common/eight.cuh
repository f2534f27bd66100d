// Eight elements at once: a thread reads and writes tensors so, 16 bytes of 16-bit numbers or twice that of floats.
// Where memory is not aligned for that, or a row ends before, it takes them one by one.
#pragma once

#include "cuda/device/common/elements.cuh"

namespace explainfix {
namespace device {

constexpr int kTogether = 8;

// Eight elements as they lie in memory. T: float, Bf16, Fp16 or uint8_t.
template <class T>
struct Eight {
  static constexpr int kWords = 2 * int(sizeof(T)), kPerWord = 4 / int(sizeof(T));
  static constexpr int kAligned = kWords < 4 ? 4 * kWords : 16;
  uint32_t word[kWords];
};

// Threads stride over vectors: from their number on, by the number of all threads of the grid's row.
__device__ inline int64_t first_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t all_threads() { return int64_t(gridDim.x) * blockDim.x; }

template <class T>
__host__ __device__ inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % Eight<T>::kAligned == 0;
}

__device__ __forceinline__ uint32_t bits_of(float value) { return bits_of_float(value); }
__device__ __forceinline__ uint32_t bits_of(Bf16 value) { return value.bits; }
__device__ __forceinline__ uint32_t bits_of(Fp16 value) { return value.bits; }
__device__ __forceinline__ uint32_t bits_of(uint8_t value) { return value; }
__device__ __forceinline__ void set_bits(uint32_t bits, float* to) { *to = float_of_bits(bits); }
__device__ __forceinline__ void set_bits(uint32_t bits, Bf16* to) { to->bits = uint16_t(bits); }
__device__ __forceinline__ void set_bits(uint32_t bits, Fp16* to) { to->bits = uint16_t(bits); }
__device__ __forceinline__ void set_bits(uint32_t bits, uint8_t* to) { *to = uint8_t(bits); }

// whole: eight elements, aligned. Else `count` of them, 8 at most, one by one; the others are zero.
template <bool whole, class T>
__device__ __forceinline__ Eight<T> read(const T* from, int64_t count) {
  Eight<T> eight{};
  if constexpr (whole && Eight<T>::kWords == 2) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    eight.word[0] = words.x;
    eight.word[1] = words.y;
  } else if constexpr (whole) {
#pragma unroll
    for (int i = 0; i < Eight<T>::kWords; i += 4) {
      const uint4 words = reinterpret_cast<const uint4*>(from)[i / 4];
      eight.word[i] = words.x;
      eight.word[i + 1] = words.y;
      eight.word[i + 2] = words.z;
      eight.word[i + 3] = words.w;
    }
  } else {
    constexpr int n = Eight<T>::kPerWord;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) eight.word[i / n] |= bits_of(from[i]) << (i % n) * (32 / n % 32);
    }
  }
  return eight;
}

template <bool whole, class T>
__device__ __forceinline__ void write(T* to, const Eight<T>& eight, int64_t count) {
  if constexpr (whole && Eight<T>::kWords == 2) {
    *reinterpret_cast<uint2*>(to) = uint2{eight.word[0], eight.word[1]};
  } else if constexpr (whole) {
#pragma unroll
    for (int i = 0; i < Eight<T>::kWords; i += 4) {
      store_16(reinterpret_cast<char*>(to) + 4 * i, eight.word[i], eight.word[i + 1], eight.word[i + 2],
               eight.word[i + 3]);
    }
  } else {
    constexpr int n = Eight<T>::kPerWord;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) set_bits(eight.word[i / n] >> (i % n) * (32 / n % 32), to + i);
    }
  }
}

template <class T>
__device__ __forceinline__ void unpack(const Eight<T>& eight, float (&to)[kTogether]) {
#pragma unroll
  for (int i = 0; i < kTogether; i += 2) {
    if constexpr (sizeof(T) == 4) {
      to[i] = float_of_bits(eight.word[i]);
      to[i + 1] = float_of_bits(eight.word[i + 1]);
    } else if constexpr (sizeof(T) == 2) {
      unpack_pair(T(), eight.word[i / 2], to[i], to[i + 1]);
    } else {
      to[i] = float(eight.word[i / 4] >> i % 4 * 8 & 255);
      to[i + 1] = float(eight.word[i / 4] >> (i % 4 * 8 + 8) & 255);
    }
  }
}

// Rounds eight floats; for uint8_t they are whole numbers from 0 to 255.
template <class T>
__device__ __forceinline__ Eight<T> pack(const float (&from)[kTogether]) {
  Eight<T> eight{};
#pragma unroll
  for (int i = 0; i < kTogether; i += 2) {
    if constexpr (sizeof(T) == 4) {
      eight.word[i] = bits_of_float(from[i]);
      eight.word[i + 1] = bits_of_float(from[i + 1]);
    } else if constexpr (sizeof(T) == 2) {
      eight.word[i / 2] = pair_bits(T(), from[i], from[i + 1]);
    } else {
      eight.word[i / 4] |= (uint32_t(from[i]) | uint32_t(from[i + 1]) << 8) << i % 4 * 8;
    }
  }
  return eight;
}

}  // namespace device
}  // namespace explainfix
