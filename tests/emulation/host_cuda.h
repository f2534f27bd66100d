// CUDA's names, and those of csrc/cuda/device/common/device.cuh, for a host compiler.
#pragma once

#include <cmath>
#include <cstdint>

#include "barriers.h"
#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __syncthreads() ::emulation::barrier(__LINE__)
#define __syncwarp(...) (::emulation::meet_warp(__LINE__, true))
#define EXPLAINFIX_SHARED(name) unsigned char* name = ::emulation::engine().shared

// Lanes of a warp exchange a register; there are no parts of a warp (CUDA's argument `width`) here.
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, emulation::Line line = emulation::Line(__builtin_LINE())) {
  return emulation::shuffle(mask, value, unsigned(lane) % 32, line.at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, emulation::Line line = emulation::Line(__builtin_LINE())) {
  return emulation::shuffle(mask, value, emulation::engine().current->lane ^ unsigned(lanes), line.at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, emulation::Line line = emulation::Line(__builtin_LINE())) {
  return emulation::shuffle(mask, value, emulation::engine().current->lane + lanes, line.at);
}

// What <<<grid, block, shared_bytes>>> does. The seed of the order is the test's: emulation::engine().random.
template <class... Parameters, class... Arguments>
void launch(Dim grid, Dim block, size_t shared_bytes, void (*kernel)(Parameters...), Arguments... arguments) {
  emulation::launch_threads(grid, block, shared_bytes, [=] { kernel(arguments...); });
}

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace explainfix {
namespace device {

inline float float_of_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t bits_of_float(float value) { return __builtin_bit_cast(uint32_t, value); }
inline uint16_t bf16_bits(float value) {
  const uint32_t bits = bits_of_float(value);
  if (value != value) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t fp16_bits(float value) { return __builtin_bit_cast(uint16_t, _Float16(value)); }
inline float float_of_fp16(uint16_t bits) { return float(__builtin_bit_cast(_Float16, bits)); }
inline uint32_t bf16_pair(float first, float second) { return bf16_bits(first) | uint32_t(bf16_bits(second)) << 16; }
inline uint32_t fp16_pair(float first, float second) { return fp16_bits(first) | uint32_t(fp16_bits(second)) << 16; }

inline void store_16(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  *static_cast<uint4*>(to) = uint4{a, b, c, d};
}

}  // namespace device
}  // namespace explainfix
