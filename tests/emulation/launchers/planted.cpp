// Operators with launches that are right or wrong as asked: the harness must tell them apart.
#include "cuda/launch/launch.h"

namespace explainfix {

// Each thread writes its number; threads past the end do not if they are `bounded`.
__global__ void count_kernel(float* y, int64_t count, bool bounded) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < count || !bounded) y[at] = float(at);
}

namespace {

void count(const Tensor& y, int64_t blocks, int64_t blocks_y, int64_t threads, int64_t shared_bytes, bool bounded) {
  launch_grid(y, dim3(unsigned(blocks), unsigned(blocks_y)), unsigned(threads), size_t(shared_bytes), count_kernel,
              y.mutable_data_ptr<float>(), y.numel(), bounded);
}

// As launch_grid, but on whatever device is current, and without asking for shared memory.
void bare(const Tensor& y, int64_t shared_bytes, bool device_guard) {
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (device_guard) guard.emplace(y.get_device_index());
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(unsigned(y.numel()));
  config.dynamicSmemBytes = size_t(shared_bytes);
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, count_kernel, y.mutable_data_ptr<float>(), y.numel(), true));
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_FRAGMENT(explainfix_planted, m) {
  m.def("count(Tensor(a!) y, int blocks, int blocks_y, int threads, int shared_bytes, bool bounded) -> ()");
  m.def("bare(Tensor(a!) y, int shared_bytes, bool device_guard) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(explainfix_planted, CUDA, m) {
  m.impl("count", TORCH_BOX(&explainfix::count));
  m.impl("bare", TORCH_BOX(&explainfix::bare));
}
