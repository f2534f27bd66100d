// Launches a kernel whose threads stride over elements, on the tensor's device and current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "common.h"

namespace explainfix {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // the kernels stride over what is left

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <class... Parameters, class... Arguments>
void launch(const Tensor& on, int64_t elements, void (*kernel)(Parameters...), Arguments... arguments) {
  if (elements == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  const unsigned blocks = unsigned(std::min((elements + kThreads - 1) / kThreads, kMaxBlocks));
  kernel<<<blocks, kThreads, 0, current_stream(on)>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace explainfix
