// The ops of torch_api/pass_ops.h on CUDA: launches the kernels of cuda/device/passes/.
#include <algorithm>
#include <numeric>

#include "cuda/device/passes/passes.cuh"
#include "cuda/device/passes/quantize.cuh"
#include "cuda/device/passes/sums.cuh"
#include "cuda/launch/launch.h"
#include "torch_api/pass_ops.h"

namespace explainfix {
namespace {

constexpr int64_t kMostBlocks = 2048;     // of a map: on a large GPU some 16 a multiprocessor
constexpr int64_t kVectorsOfAThread = 4;  // at least, so that loading the factors pays

// Blocks for some elements, such that threads with channels_last meet the same channels at each step (passes.cuh).
int64_t blocks_of(const Pass& p, int64_t elements) {
  const int64_t each = int64_t(kThreads) * kVectorsOfAThread * device::kTogether;
  const int64_t blocks = std::clamp<int64_t>((elements + each - 1) / each, 1, kMostBlocks);
  if (!p.channels_last || p.channels % device::kTogether) return blocks;
  const int64_t groups = p.channels / device::kTogether, unit = groups / std::gcd(groups, int64_t(kThreads));
  return blocks < unit ? blocks : blocks / unit * unit;
}

template <PassKind kind, class T>
void launch_map(const Pass& p, const Tensor& like) {
  const bool by_image = kind == PassKind::kDequantize;
  const int64_t elements = (by_image ? 1 : p.images) * p.channels * p.pixels;
  if (p.images == 0 || elements == 0) return;
  const int64_t rows = by_image ? std::min<int64_t>(p.images, 65535) : 1;
  const dim3 grid(unsigned(std::min(blocks_of(p, elements), std::max<int64_t>(1, 4 * kMostBlocks / rows))),
                  unsigned(rows));
  launch_grid(like, grid, kThreads, 0, device::map_kernel<kind, T>, p);
}

template <class T>
void launch_quantize(const Pass& p, const Tensor& like) {
  const int threads = p.channels_last ? 512 : kThreads;  // one image has few rows of channels
  const Rows r = rows_of(p, threads, 4, 1);
  const size_t bytes = sizeof(float) * 2 * r.rows * r.width(p.channels_last);
  launch_grid(like, unsigned(r.tiles * p.images), unsigned(threads), bytes, device::quantize_kernel<T>, p, r);
}

struct CudaPasses {
  static void run(const Pass& p, const Tensor& like) {
    with_floats(p.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      switch (p.kind) {
        case PassKind::kAffineAct:
          return launch_map<PassKind::kAffineAct, T>(p, like);
        case PassKind::kAffineActGrad:
          return launch_map<PassKind::kAffineActGrad, T>(p, like);
        case PassKind::kBatchNormGrad:
          return launch_map<PassKind::kBatchNormGrad, T>(p, like);
        case PassKind::kMask:
          return launch_map<PassKind::kMask, T>(p, like);
        case PassKind::kMaskGrad:
          return launch_map<PassKind::kMaskGrad, T>(p, like);
        case PassKind::kDequantize:
          return launch_map<PassKind::kDequantize, T>(p, like);
        case PassKind::kQuantize:
          return launch_quantize<T>(p, like);
        default:
          STD_TORCH_CHECK(false, "kStats and kBatchNormSums are run by launch_sums, not here");
      }
    });
  }

  static void factors(const Pass& p, const BatchNorm& norm, const Tensor& x) { launch_sums<true>(p, norm, x, nullptr); }

  static void sums(const Pass& p, Tensor& result) {
    BatchNorm norm{};
    norm.channels = p.channels;
    launch_sums<false>(p, norm, result, static_cast<float*>(result.data_ptr()));
  }

  static void input_grad(Pass& p, const void* factors, const void* sums, double count, const Tensor& like) {
    p.a = factors;
    p.b = sums;
    p.count = count;
    run(p, like);
  }

 private:
  // Calls f(TypeTag<T>{}) with the element type; these kernels compute in float.
  template <class F>
  static void with_floats(PassType type, F&& f) {
    const ScalarType types[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
    explainfix::with_floats(types[int(type)], "x", f);
  }

  template <bool stats>
  static void launch_sums(const Pass& p, const BatchNorm& norm, const Tensor& like, float* sums) {
    const Rows r = rows_of_sums(p, kThreads);
    Tensor parts = empty_numbers(like, {(2 * r.parts + 1) * p.channels}, ScalarType::Float);
    float* data = static_cast<float*>(parts.data_ptr());
    with_floats(p.type, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch_grid(like, unsigned(r.tiles * r.parts), kThreads, sizeof(float) * 2 * r.rows * r.width(p.channels_last),
                  device::sums_kernel<stats, T>, p, r, data);
    });
    const unsigned blocks = unsigned((p.channels + device::kFinishedTogether - 1) / device::kFinishedTogether);
    launch_grid(like, blocks, kThreads, sizeof(double) * 2 * kThreads, device::finish_sums_kernel<stats>, norm, r.parts,
                data, static_cast<const float*>(p.b), sums);
  }
};

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CUDA, m) { EXPLAINFIX_REGISTER_PASSES(m, explainfix::CudaPasses); }
