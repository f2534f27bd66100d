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
#define __syncwarp() (::emulation::meet_warp(__LINE__, true))
#define EXPLAINFIX_SHARED(name) unsigned char* name = ::emulation::engine().shared

// What <<<grid, block, shared_bytes>>> does. The seed of the order is the test's: emulation::engine().random.
template <class... Parameters, class... Arguments>
void launch(Dim grid, Dim block, size_t shared_bytes, void (*kernel)(Parameters...), Arguments... arguments) {
  emulation::launch_threads(grid, block, shared_bytes, [=] { kernel(arguments...); });
}

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

inline float shuffle_xor(float value, int mask) {
  return emulation::exchange(value, 3u << 20)[emulation::engine().current->lane ^ unsigned(mask)];
}
inline void meet_block() { emulation::barrier(emulation::kAnywhere); }
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("ldmatrix: the row must be aligned to 16 bytes");
  const auto rows = emulation::exchange(static_cast<const char*>(row), 1u << 20);
  const unsigned lane = emulation::engine().current->lane;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const char* from = rows[matrix * 8 + lane / 4];
    std::memcpy(&r[matrix], from + 4 * (lane % 4), 4);
  }
}

// A (16 x k) and B (k x 8) come as the instruction wants them: `element(word, i)` is the i-th number of a register.
template <int per_word, class Element>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element) {
  struct Operands {
    uint32_t a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto all = emulation::exchange(mine, 2u << 20);
  const unsigned lane = emulation::engine().current->lane, row = lane / 4, column = lane % 4 * 2;
  for (unsigned r = 0; r < 2; ++r) {
    for (unsigned c = 0; c < 2; ++c) {
      for (unsigned quad = 0; quad < 4; ++quad) {
        const Operands left = all[row * 4 + quad], right = all[(column + c) * 4 + quad];
        for (unsigned half = 0; half < 2; ++half) {
          for (int i = 0; i < per_word; ++i) {
            d[r * 2 + c] += element(left.a[half * 2 + r], i) * element(right.b[half], i);
          }
        }
      }
    }
  }
}
inline void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<2>(d, a, b, [](uint32_t word, int i) { return float_of_bits(i ? word & 0xffff0000u : word << 16); });
}
inline void multiply_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<2>(d, a, b, [](uint32_t word, int i) { return float_of_fp16(uint16_t(word >> 16 * i)); });
}
// The tensor cores read 19 of the 32 bits.
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<1>(d, a, b, [](uint32_t word, int) { return float_of_bits(word & ~0x1fffu); });
}

// Until it is waited for, what a copy writes is unknown: NaN. The source is read at the end, as late as it may be.
inline void copy_16_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
    emulation::fail("cp.async: both addresses must be aligned to 16 bytes");
  }
  std::memset(shared, 0xff, 16);
  emulation::Quiet quiet;
  emulation::engine().current->copies.push_back({shared, global, valid});
}
inline void wait_for_copies() {
  std::vector<emulation::Copy> copies;
  {
    emulation::Quiet quiet;
    std::swap(copies, emulation::engine().current->copies);
  }
  for (const emulation::Copy& copy : copies) {
    copy.valid ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
  }
}

}  // namespace device
}  // namespace explainfix
