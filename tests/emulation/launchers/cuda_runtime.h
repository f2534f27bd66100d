// The part of the CUDA runtime that csrc/cuda/launch uses, for g++: a kernel runs in the emulation, and a launch that a
// card would refuse is refused.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <typeinfo>
#include <utility>
#include <vector>

#include "card.h"
#include "host_cuda.h"

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDeviceFunction = 98, cudaErrorNoKernelImageForDevice = 209 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // nothing here leaves an error behind
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

namespace emulation {

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
};

// Calls a kernel with arguments as cudaLaunchKernel has them: a pointer to each.
using Invoke = void (*)(const void* kernel, void** arguments);

struct Runtime {
  Card card;
  std::map<const void*, size_t> allowed;  // dynamic shared memory of a kernel, where it asked for some
  std::vector<Launch> launches;
  int guards = 0;                         // torch's device guards that stand: without one the device is any
  std::map<std::string, Invoke> invokes;  // by the mangled type of the kernel
  std::recursive_mutex busy;              // torch calls from a thread of its own for each device, backwards

  // Runs a launch, or returns the error that a card would.
  int run(const Launch& l, Invoke invoke, void** arguments) {
    if (10 * card.major + card.minor < kOldest) return kNoKernelImage;
    const auto found = allowed.find(l.kernel);
    const size_t most = found == allowed.end() ? kSharedUnasked : found->second;
    const Dim grid{l.grid.x, l.grid.y, l.grid.z}, block{l.block.x, l.block.y, l.block.z};
    const int error = launch_error({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, l.shared_bytes, most);
    if (error) return error;
    launches.push_back(l);
    launch_threads(grid, block, l.shared_bytes, [=] { invoke(l.kernel, arguments); });
    return kSuccess;
  }
};
Runtime& runtime();

template <class... Parameters>
struct Kernel {
  template <size_t... i>
  static void run(const void* kernel, void** arguments, std::index_sequence<i...>) {
    reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(kernel))(*static_cast<Parameters*>(arguments[i])...);
  }
  static void invoke(const void* kernel, void** arguments) {
    run(kernel, arguments, std::index_sequence_for<Parameters...>());
  }
  // Filled in when the library is loaded, for every type of kernel that some launcher launches.
  static const bool known;
};
template <class... Parameters>
const bool Kernel<Parameters...>::known = runtime().invokes.emplace(typeid(void(Parameters...)).name(), &invoke).second;

}  // namespace emulation

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const emulation::Card& card = emulation::runtime().card;
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = card.processors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = card.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = card.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = card.shared_of_processor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = card.shared_of_block;
      break;
  }
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (bytes > emulation::runtime().card.shared_of_block) return cudaError_t(emulation::kInvalidValue);
  emulation::runtime().allowed[reinterpret_cast<const void*>(kernel)] = size_t(bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Parameters...), Arguments... arguments) {
  using Kernel = emulation::Kernel<Parameters...>;
  emulation::Runtime& r = emulation::runtime();
  const std::lock_guard<std::recursive_mutex> guard(r.busy);
  (void)Kernel::known;
  if (r.guards == 0) return cudaError_t(emulation::kInvalidDevice);
  const emulation::Launch l{reinterpret_cast<const void*>(kernel), c->gridDim, c->blockDim, c->dynamicSmemBytes};
  std::tuple<Parameters...> values(arguments...);
  return std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        return cudaError_t(r.run(l, &Kernel::invoke, pointers));
      },
      values);
}
