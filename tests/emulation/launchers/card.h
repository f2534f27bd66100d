// A card, as far as a launch depends on it, and whether it takes one: what cudaLaunchKernel would answer.
#pragma once

#include <cstddef>

namespace emulation {

struct Card {
  int processors = 132;
  int shared_of_block = 232448;  // that a kernel may ask for
  int shared_of_processor = 233472;
  int major = 9, minor = 0;
};

constexpr size_t kSharedUnasked = 48 * 1024;  // of a block, for a kernel that did not ask for more

constexpr int kOldest = 75;  // compute capability, times 10, that setup.py builds code for

// Numbers of cudaError_t.
constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidConfiguration = 9, kInvalidDevice = 101;
constexpr int kNoKernelImage = 209, kLaunchFailure = 719;

// `allowed`: the dynamic shared memory that cudaFuncSetAttribute gave the kernel.
inline int launch_error(const unsigned (&grid)[3], const unsigned (&block)[3], size_t shared_bytes, size_t allowed) {
  const unsigned most_blocks[3] = {0x7fffffff, 65535, 65535}, most_threads[3] = {1024, 1024, 64};
  size_t threads = 1;
  for (int axis = 0; axis < 3; ++axis) {
    if (grid[axis] == 0 || grid[axis] > most_blocks[axis]) return kInvalidConfiguration;
    if (block[axis] == 0 || block[axis] > most_threads[axis]) return kInvalidConfiguration;
    threads *= block[axis];
  }
  if (threads > 1024) return kInvalidConfiguration;
  return shared_bytes > allowed ? kInvalidValue : kSuccess;
}

}  // namespace emulation
