// The ops of torch_api/pool_ops.h on CUDA: launches the kernels of cuda/device/passes/max_pool.cuh.
#include "cuda/device/passes/max_pool.cuh"
#include "cuda/launch/launch.h"
#include "torch_api/pool_ops.h"

namespace explainfix {
namespace {

struct CudaPooling {
  template <class T>
  static void pool(const Pooling& p, const Tensor& like, const T* x, T* y, uint8_t* places) {
    const int64_t count = p.images * p.channels * p.out_height * p.out_width;
    launch(like, count, device::max_pool_kernel<T>, p, x, y, places);
  }
  template <class T>
  static void scatter(const Pooling& p, const Tensor& like, const T* grad, const uint8_t* places, T* dx) {
    const int64_t count = p.images * p.channels * p.height * p.width;
    launch(like, count, device::max_pool_grad_kernel<T>, p, grad, places, dx);
  }
};

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CUDA, m) { EXPLAINFIX_REGISTER_POOLING(m, explainfix::CudaPooling); }
