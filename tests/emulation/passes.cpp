// The kernels of cuda/device/passes/passes.cuh, compiled for the host and bound to numpy arrays.
#include "cuda/device/passes/passes.cuh"

#include <string>
#include <vector>

#include "binding.h"

using namespace explainfix;

constexpr unsigned kThreads = 32;

// shape: images, channels, pixels. Arrays lie in memory as the kernel is to see them.
template <class T>
static Pass pass(py::tuple shape, bool channels_last, const Array<T>& x, Array<T>& y, const Array<T>& a,
                 const Array<T>& b, const Array<T>& c, int act, double slope, Array<uint8_t>& bytes) {
  Pass p{};
  p.channels_last = channels_last;
  p.images = shape[0].cast<int64_t>();
  p.channels = shape[1].cast<int64_t>();
  p.pixels = shape[2].cast<int64_t>();
  p.x = x.data();
  p.y = y.mutable_data();
  p.a = a.data();
  p.b = b.data();
  p.c = c.data();
  p.act = act;
  p.slope = slope;
  p.bytes = bytes.mutable_data();
  return p;
}

template <PassKind kind, class T>
static void map_pass(const Pass& p, unsigned blocks) {
  with_act(p.act, [&](auto act) { launch({blocks}, {kThreads}, 0, device::map_kernel<kind, act(), T>, p); });
}

// `first`, `second`: sums, or the lowest values and the steps of int8.
template <class T>
static void run(const std::string& name, py::tuple shape, bool channels_last, Array<T> x, Array<T> y, Array<T> a,
                Array<T> b, Array<T> c, int act, double slope, Array<uint8_t> bytes, Array<T> first, Array<T> second,
                unsigned blocks, int64_t parts) {
  Pass p = pass<T>(shape, channels_last, x, y, a, b, c, act, slope, bytes);
  std::vector<double> sums(size_t(parts) * 2 * p.channels, NAN);
  p.sums = sums.data();
  p.low = first.mutable_data();
  p.step = second.mutable_data();
  T *one = first.mutable_data(), *two = second.mutable_data();
  if (name == "affine_act") map_pass<PassKind::kAffineAct, T>(p, blocks);
  if (name == "affine_act_backward") map_pass<PassKind::kAffineActGrad, T>(p, blocks);
  if (name == "channel_combine") launch({blocks}, {kThreads}, 0, device::map_kernel<PassKind::kCombine, 0, T>, p);
  if (name == "act_mask") launch({blocks}, {kThreads}, 0, device::mask_kernel<true, T>, p);
  if (name == "mask_backward") launch({blocks}, {kThreads}, 0, device::mask_kernel<false, T>, p);
  if (name == "dequantize") launch({blocks}, {kThreads}, 0, device::int8_kernel<false, T>, p);
  if (name == "quantize") {
    launch({blocks}, {kThreads}, 0, device::range_kernel<T>, p);
    launch({blocks}, {kThreads}, 0, device::int8_kernel<true, T>, p);
  }
  if (name == "batch_stats") {
    launch({blocks}, {kThreads}, 0, device::sums_kernel<true, T>, p, parts);
    launch({blocks}, {kThreads}, 0, device::finish_sums_kernel<true, T>, p, parts, one, two);
  }
  if (name == "batch_norm_sums") {
    launch({blocks}, {kThreads}, 0, device::sums_kernel<false, T>, p, parts);
    launch({blocks}, {kThreads}, 0, device::finish_sums_kernel<false, T>, p, parts, one, two);
  }
}

PYBIND11_MODULE(host_passes, m) {
  bind_emulation(m);
  m.def("run_float", &run<float>);
  m.def("run_double", &run<double>);
}
