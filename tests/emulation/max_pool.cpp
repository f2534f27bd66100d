// The kernels of cuda/device/passes/max_pool.cuh, compiled for the host and bound to numpy arrays.
#include "cuda/device/passes/max_pool.cuh"

#include "binding.h"

using namespace explainfix;

constexpr unsigned kThreads = 32;

// sizes: images, channels, height, width, out_height, out_width, then of each axis kernel, stride, padding.
static Pooling pooling(py::tuple sizes) {
  int64_t s[12];
  for (int i = 0; i < 12; ++i) s[i] = sizes[i].cast<int64_t>();
  return {s[0], s[1], s[2], s[3], s[4], s[5], {s[6], s[7]}, {s[8], s[9]}, {s[10], s[11]}, true};
}

template <class T, class E>
static void max_pool(py::tuple sizes, Array<E> x, Array<E> y, Array<uint8_t> places, unsigned blocks) {
  launch({blocks}, {kThreads}, 0, device::max_pool_kernel<T>, pooling(sizes), reinterpret_cast<const T*>(x.data()),
         reinterpret_cast<T*>(y.mutable_data()), places.mutable_data());
}

template <class T, class E>
static void max_pool_grad(py::tuple sizes, Array<E> grad, Array<uint8_t> places, Array<E> dx, unsigned blocks) {
  launch({blocks}, {kThreads}, 0, device::max_pool_grad_kernel<T>, pooling(sizes),
         reinterpret_cast<const T*>(grad.data()), static_cast<const uint8_t*>(places.data()),
         reinterpret_cast<T*>(dx.mutable_data()));
}

PYBIND11_MODULE(host_max_pool, m) {
  bind_emulation(m);
  m.def("max_pool_float32", &max_pool<float, float>);
  m.def("max_pool_bfloat16", &max_pool<device::Bf16, int16_t>);
  m.def("max_pool_grad_float32", &max_pool_grad<float, float>);
  m.def("max_pool_grad_bfloat16", &max_pool_grad<device::Bf16, int16_t>);
}
