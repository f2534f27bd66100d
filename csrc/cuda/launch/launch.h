// Launches kernels on a tensor's device and torch's current stream; all of cuda/launch uses this. Nothing here waits
// for the device, so that a CUDA graph may record it.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "cuda/device/common/elements.cuh"
#include "torch_api/stable_abi.h"

namespace explainfix {

constexpr int kThreads = 256;
constexpr size_t kSharedByDefault = 48 * 1024;  // a kernel must ask for more, up to 163 KB (sm_80) or 227 KB (sm_90)
constexpr int64_t kMaxBlocks = 1 << 16;         // of `launch`, whose kernels stride over more elements

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Calls f(TypeTag<T>{}) with the element type of those kernels that compute in float, or `otherwise` for another dtype.
template <class F, class G>
auto with_element_or(ScalarType dtype, F f, G otherwise) {
  switch (dtype) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::BFloat16:
      return f(TypeTag<device::Bf16>{});
    case ScalarType::Half:
      return f(TypeTag<device::Fp16>{});
    default:
      return otherwise();
  }
}

// The same; nullopt for another dtype.
template <class F>
std::optional<Tensor> with_element(ScalarType dtype, F f) {
  return with_element_or(dtype, f, [] { return std::optional<Tensor>(); });
}

// The same; another dtype is an error that names `what`.
template <class F>
void with_floats(ScalarType dtype, const char* what, F f) {
  with_element_or(dtype, f, [&] {
    STD_TORCH_CHECK(false, what, " must be Float, BFloat16 or Half on CUDA, got ", torch::headeronly::toString(dtype));
  });
}

inline int device_attribute(const Tensor& on, cudaDeviceAttr which) {
  int value = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, on.get_device_index()));
  return value;
}

// Torch's message for a card that the binary was not built for names neither the card nor what to do.
inline void check_launch(cudaError_t error, const Tensor& on) {
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();  // else torch's next launch would find it
    const int major = device_attribute(on, cudaDevAttrComputeCapabilityMajor);
    const int minor = device_attribute(on, cudaDevAttrComputeCapabilityMinor);
    STD_TORCH_CHECK(false, "explainfix_ext was not built for cuda:", on.get_device_index(), ", of compute capability ",
                    major, ".", minor, ": build it with TORCH_CUDA_ARCH_LIST=", major, ".", minor,
                    ", or set EXPLAINFIX_EXT=0 to run without kernels");
  }
  STD_CUDA_CHECK(error);
}

// Launches a grid of blocks with dynamic shared memory.
template <class... Parameters, class... Arguments>
void launch_grid(const Tensor& on, dim3 grid, unsigned threads, size_t shared_bytes, void (*kernel)(Parameters...),
                 Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  if (shared_bytes > kSharedByDefault) {
    // Always ask for all that there is: another thread may be about to launch the same kernel with more than this call.
    const int most = device_attribute(on, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), on);
  }
  // The function, not <<<>>>, which only nvcc reads: tests/emulation/launchers compiles this with g++.
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = current_stream(on);
  check_launch(cudaLaunchKernelEx(&config, kernel, arguments...), on);
}

// Launches a kernel whose threads stride over elements.
template <class... Parameters, class... Arguments>
void launch(const Tensor& on, int64_t elements, void (*kernel)(Parameters...), Arguments... arguments) {
  if (elements == 0) return;
  const unsigned blocks = unsigned(std::min((elements + kThreads - 1) / kThreads, kMaxBlocks));
  launch_grid(on, blocks, kThreads, 0, kernel, arguments...);
}

}  // namespace explainfix
