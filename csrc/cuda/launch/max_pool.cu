// The ops of torch_api/pool_ops.h on CUDA: launches the kernels of cuda/device/passes/max_pool.cuh.
#include "cuda/device/passes/max_pool.cuh"
#include "cuda/launch/launch.h"
#include "torch_api/pool_ops.h"

namespace explainfix {
namespace {

// As the kernels see it.
Pooling one_layout(Pooling p) {
  if (!p.channels_last) {
    p.images *= p.channels;
    p.channels = 1;
  }
  return p;
}

int64_t vectors(const Pooling& p, int64_t height, int64_t width) {
  return p.images * height * width * ((p.channels + device::kTogether - 1) / device::kTogether);
}

struct CudaPooling {
  static void pool(const Pooling& pooling, const Tensor& x, Tensor& y, Tensor& places) {
    const Pooling p = one_layout(pooling);
    with_floats(x.scalar_type(), "x", [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(x, vectors(p, p.out_height, p.out_width), device::max_pool_kernel<T>, p,
             static_cast<const T*>(x.data_ptr()), static_cast<T*>(y.data_ptr()),
             static_cast<uint8_t*>(places.data_ptr()));
    });
  }
  static void scatter(const Pooling& pooling, const Tensor& grad, const Tensor& places, Tensor& dx) {
    const Pooling p = one_layout(pooling);
    with_floats(grad.scalar_type(), "grad", [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(grad, vectors(p, p.height, p.width), device::max_pool_grad_kernel<T>, p,
             static_cast<const T*>(grad.data_ptr()), static_cast<const uint8_t*>(places.data_ptr()),
             static_cast<T*>(dx.data_ptr()));
    });
  }
};

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CUDA, m) { EXPLAINFIX_REGISTER_POOLING(m, explainfix::CudaPooling); }
