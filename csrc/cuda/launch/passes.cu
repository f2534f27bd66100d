// The ops of torch_api/pass_ops.h on CUDA: launches the kernels of cuda/device/passes/passes.cuh.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "cuda/device/passes/passes.cuh"
#include "cuda/launch/launch.h"
#include "torch_api/pass_ops.h"

namespace explainfix {
namespace {

constexpr int64_t kPartsPerChannel = 1024;  // of a sum, at most: a thread adds each

ScalarType dtype_of(PassType type) {
  const ScalarType types[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
  return types[int(type)];
}

template <class T>
void launch_pass(const Pass& p, const Tensor& like) {
  const int64_t count = p.images * p.channels * p.pixels;
  switch (p.kind) {
    case PassKind::kAffineAct:
      return with_act(p.act,
                      [&](auto act) { launch(like, count, device::map_kernel<PassKind::kAffineAct, act(), T>, p); });
    case PassKind::kAffineActGrad:
      return with_act(
          p.act, [&](auto act) { launch(like, count, device::map_kernel<PassKind::kAffineActGrad, act(), T>, p); });
    case PassKind::kCombine:
      return launch(like, count, device::map_kernel<PassKind::kCombine, 0, T>, p);
    case PassKind::kMask:
      return launch(like, (count + 7) / 8, device::mask_kernel<true, T>, p);
    case PassKind::kMaskGrad:
      return launch(like, (count + 7) / 8, device::mask_kernel<false, T>, p);
    case PassKind::kQuantize:
      launch(like, p.images * p.channels, device::range_kernel<T>, p);
      return launch(like, count, device::int8_kernel<true, T>, p);
    case PassKind::kDequantize:
      return launch(like, count, device::int8_kernel<false, T>, p);
    default:
      STD_TORCH_CHECK(false, "kStats and kBatchNormSums are run by launch_sums, not here");
  }
}

template <bool stats>
void launch_sums(Pass& p, Tensor& first, Tensor& second) {
  const int64_t parts = std::min(kPartsPerChannel, std::max<int64_t>(1, p.images * p.pixels / 16));
  Tensor sums = torch::stable::new_empty(first, {parts, 2, p.channels}, ScalarType::Double);
  p.sums = sums.mutable_data_ptr<double>();
  switch_floating(dtype_of(p.type), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = WideType<T>;
    launch(first, p.channels * parts, device::sums_kernel<stats, T>, p, parts);
    launch(first, p.channels, device::finish_sums_kernel<stats, T>, p, parts, first.mutable_data_ptr<A>(),
           second.mutable_data_ptr<A>());
  });
}

struct CudaPasses {
  static void run(const Pass& p, const Tensor& like) {
    switch_floating(dtype_of(p.type), "x", [&](auto tag) { launch_pass<typename decltype(tag)::type>(p, like); });
  }
  static void stats(Pass& p, const Tensor& /* x */, Tensor& mean, Tensor& var) { launch_sums<true>(p, mean, var); }
  static void sums(Pass& p, Tensor& first, Tensor& second) { launch_sums<false>(p, first, second); }
};

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CUDA, m) { EXPLAINFIX_REGISTER_PASSES(m, explainfix::CudaPasses); }
