// The kernels of cuda/device/passes/, compiled for the host and bound to numpy arrays.
#include "cuda/device/passes/passes.cuh"

#include <string>
#include <vector>

#include "binding.h"
#include "cuda/device/passes/quantize.cuh"
#include "cuda/device/passes/sums.cuh"

using namespace explainfix;

constexpr int kThreads = 64;

template <PassKind kind, class T>
static void map_pass(const Pass& p, unsigned blocks) {
  const unsigned rows = kind == PassKind::kDequantize ? 2 : 1;
  launch({blocks, rows}, {unsigned(kThreads)}, 0, device::map_kernel<kind, T>, p);
}

// `each`: units of a thread.
template <bool stats, class T>
static void sums_pass(const Pass& p, const BatchNorm& norm, int64_t each, float* result) {
  Rows r = rows_of_sums(p, kThreads);
  r.per_part = each * r.rows;
  r.parts = (r.units + r.per_part - 1) / r.per_part;
  std::vector<float> parts(size_t(2 * r.parts + 1) * p.channels, NAN);
  launch({unsigned(r.tiles * r.parts)}, {unsigned(kThreads)}, sizeof(float) * 2 * r.rows * r.width(p.channels_last),
         device::sums_kernel<stats, T>, p, r, parts.data());
  const unsigned blocks = unsigned(p.channels + device::kFinishedTogether - 1) / device::kFinishedTogether;
  launch({blocks}, {unsigned(kThreads)}, sizeof(double) * 2 * kThreads, device::finish_sums_kernel<stats>, norm,
         r.parts, static_cast<const float*>(parts.data()), static_cast<const float*>(p.b), result);
}

// Runs a pass over arrays that lie as the kernel is to see them. E: the type of numpy's elements, T of the kernel's.
// shape: images, channels, pixels. factors: [4][channels]; sums: [2][channels]; ranges: [2][images][channels];
// batch_norm: weight, bias, running mean and variance, [4][channels].
template <class T, class E>
static void run(const std::string& name, py::tuple shape, bool channels_last, Array<E> x, Array<E> grad, Array<E> y,
                Array<float> factors, Array<float> sums, Array<float> batch_norm, Array<float> ranges,
                Array<uint8_t> bytes, int act, double slope, unsigned blocks, int64_t each) {
  Pass p{};
  p.channels_last = channels_last;
  p.images = shape[0].cast<int64_t>();
  p.channels = shape[1].cast<int64_t>();
  p.pixels = shape[2].cast<int64_t>();
  p.x = x.data();
  p.grad = grad.data();
  p.y = y.mutable_data();
  p.act = act;
  p.slope = slope;
  p.bytes = bytes.mutable_data();
  p.low = ranges.mutable_data();
  p.step = ranges.mutable_data() + p.images * p.channels;
  p.count = double(p.images * p.pixels);
  const int64_t c = p.channels;
  p.a = factors.data() + kAlpha * c;
  p.b = factors.data() + kBeta * c;
  if (name == "affine_act") map_pass<PassKind::kAffineAct, T>(p, blocks);
  if (name == "affine_act_backward") map_pass<PassKind::kAffineActGrad, T>(p, blocks);
  if (name == "act_mask") map_pass<PassKind::kMask, T>(p, blocks);
  if (name == "mask_backward") map_pass<PassKind::kMaskGrad, T>(p, blocks);
  if (name == "dequantize") map_pass<PassKind::kDequantize, T>(p, blocks);
  if (name == "quantize") {
    const Rows r = rows_of(p, kThreads, 4, 1);
    launch({unsigned(r.tiles * p.images)}, {unsigned(kThreads)}, sizeof(float) * 2 * r.rows * r.width(channels_last),
           device::quantize_kernel<T>, p, r);
  }
  BatchNorm norm{c, p.count};
  if (name == "batch_norm_factors") {
    float* numbers = batch_norm.mutable_data();
    norm.weight = numbers;
    norm.bias = numbers + c;
    norm.running_mean = numbers + 2 * c;
    norm.running_var = numbers + 3 * c;
    norm.share = 0.25;
    norm.eps = 1e-5;
    norm.factors = factors.mutable_data();
    sums_pass<true, T>(p, norm, each, nullptr);
  }
  if (name == "batch_norm_sums") {
    p.a = factors.data() + kMean * c;
    p.b = factors.data() + kInvstd * c;
    sums_pass<false, T>(p, norm, each, sums.mutable_data());
  }
  if (name == "batch_norm_backward") {
    p.a = factors.data();
    p.b = sums.data();
    map_pass<PassKind::kBatchNormGrad, T>(p, blocks);
  }
}

PYBIND11_MODULE(host_passes, m) {
  bind_emulation(m);
  m.def("run_float32", &run<float, float>);
  m.def("run_bfloat16", &run<device::Bf16, int16_t>);
}
