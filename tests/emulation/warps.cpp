// Small kernels that say what the emulation's warp-wide operations do.
#include <string>

#include "binding.h"

// A butterfly of shuffles: each lane ends with the sum of its warp's values.
__global__ void sum_kernel(const float* x, float* y) {
  float sum = x[threadIdx.x];
  for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
  y[threadIdx.x] = sum;
}

__global__ void shift_kernel(const float* x, float* y) {
  y[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 3);
}

__global__ void broadcast_kernel(const float* x, float* y) {
  y[threadIdx.x] = __shfl_sync(0xffffffff, x[threadIdx.x], 5);
}

// The lanes of a warp turn their values around through shared memory.
__global__ void reverse_kernel(const float* x, float* y) {
  EXPLAINFIX_SHARED(bytes);
  float* row = reinterpret_cast<float*>(bytes) + threadIdx.x / 32 * 32;
  row[threadIdx.x % 32] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = row[31 - threadIdx.x % 32];
}

// Half of the lanes do not come to the shuffle.
__global__ void diverged_kernel(const float* x, float* y) {
  if (threadIdx.x % 2) y[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 2);
}

// Lanes meet at different shuffles.
__global__ void mixed_kernel(const float* x, float* y) {
  if (threadIdx.x % 2) {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
  } else {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
  }
}

static Array<float> run(const std::string& name, Array<float> x) {
  Array<float> y(x.size());
  const auto kernel = name == "sum"         ? sum_kernel
                      : name == "shift"     ? shift_kernel
                      : name == "broadcast" ? broadcast_kernel
                      : name == "reverse"   ? reverse_kernel
                      : name == "diverged"  ? diverged_kernel
                                            : mixed_kernel;
  launch({1}, {unsigned(x.size())}, size_t(x.size()) * 4, kernel, x.data(), y.mutable_data());
  return y;
}

PYBIND11_MODULE(host_warps, m) {
  bind_emulation(m);
  m.def("run", &run);
}
