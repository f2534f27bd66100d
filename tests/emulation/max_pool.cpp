// The kernels of cuda/device/passes/max_pool.cuh, compiled for the host and bound to numpy arrays.
#include "cuda/device/passes/max_pool.cuh"

#include "binding.h"

using namespace explainfix;

constexpr unsigned kThreads = 32;

// sizes: images, channels, height, width, out_height, out_width, kernel, stride, padding.
static Pooling pooling(py::tuple sizes, bool channels_last) {
  int64_t s[9];
  for (int i = 0; i < 9; ++i) s[i] = sizes[i].cast<int64_t>();
  return {s[0], s[1], s[2], s[3], s[4], s[5], {s[6], s[6]}, {s[7], s[7]}, {s[8], s[8]}, channels_last};
}

static void max_pool(py::tuple sizes, bool channels_last, Array<float> x, Array<float> y, Array<uint8_t> places,
                     unsigned blocks) {
  launch({blocks}, {kThreads}, 0, device::max_pool_kernel<float>, pooling(sizes, channels_last), x.data(),
         y.mutable_data(), places.mutable_data());
}

static void max_pool_grad(py::tuple sizes, bool channels_last, Array<float> grad, Array<uint8_t> places,
                          Array<float> dx, unsigned blocks) {
  launch({blocks}, {kThreads}, 0, device::max_pool_grad_kernel<float>, pooling(sizes, channels_last), grad.data(),
         places.data(), dx.mutable_data());
}

PYBIND11_MODULE(host_max_pool, m) {
  bind_emulation(m);
  m.def("max_pool", &max_pool);
  m.def("max_pool_grad", &max_pool_grad);
}
