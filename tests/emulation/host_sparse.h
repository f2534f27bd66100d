// The names of csrc/cuda/device/sparse_index/instructions.cuh for a host compiler.
#pragma once

#include "host_cuda.h"

namespace explainfix {
namespace device {

inline void load_transposed_matrices(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("ldmatrix: the row must be aligned to 16 bytes");
  const auto rows = emulation::exchange(static_cast<const char*>(row), 3u << 20);
  const unsigned lane = emulation::engine().current->lane;
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (unsigned half = 0; half < 2; ++half) {
      const char* from = rows[matrix * 8 + lane % 4 * 2 + half] + 2 * (lane / 4);
      std::memcpy(reinterpret_cast<char*>(&r[matrix]) + 2 * half, from, 2);
    }
  }
}

inline void store_shared_if(bool condition, void* shared, uint32_t word) {
  if (condition) std::memcpy(shared, &word, 4);
}
inline void store_shared_if(bool condition, void* shared, uint32_t first, uint32_t second) {
  const uint32_t words[2] = {first, second};
  if (condition && reinterpret_cast<uintptr_t>(shared) % 8)
    emulation::fail("a store of 8 bytes must be aligned to them");
  if (condition) std::memcpy(shared, words, 8);
}

template <class T>
T opaque(T value) {
  return value;
}

}  // namespace device
}  // namespace explainfix
