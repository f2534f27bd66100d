// The kernels of cuda/device/depthwise, compiled for the host and bound to numpy arrays.
#pragma GCC optimize("O0")  // there are 135 kernels, which take longer to optimise than to run

#include "cuda/device/depthwise/depthwise.cuh"

#include <string>

#include "binding.h"

using namespace explainfix;

// sizes: images, channels, height, width, out_height, out_width, kernel, stride, padding (two each); as CudaConv has
// them.
static ConvShape shape_of(py::tuple sizes, bool channels_last) {
  auto at = [&](int i) { return sizes[i].cast<int64_t>(); };
  auto small = [&](int i) { return sizes[i].cast<int>(); };
  return {at(0),
          at(1),
          at(1),
          at(1),
          at(2),
          at(3),
          at(4),
          at(5),
          {small(6), small(7)},
          {small(8), small(9)},
          {small(10), small(11)},
          channels_last};
}

// As the launcher's. segment_steps: another number of steps a thread, or 0.
static std::optional<DepthwiseGrid> grid_of(const ConvShape& s, const DepthwiseVariant& v, bool input_grad,
                                            int segment_steps) {
  auto g = depthwise_grid(s, v, input_grad && s.stride[0] == 1);
  if (!g || segment_steps == 0 || g->threads == 0) return g;
  g->threads /= g->segments;
  g->segment_steps = segment_steps;
  g->segments = (g->down.steps + segment_steps - 1) / segment_steps;
  g->threads *= g->segments;
  return g;
}

// Arrays are the bits of T, as they lie in memory.
template <class T>
static void run(const ConvShape& s, bool input_grad, bool separable, int segment_steps, const py::array& x,
                const Array<float>& filters, const py::array& bias, py::array& y) {
  const DepthwiseVariant variant = depthwise_variant(s, input_grad, separable);
  const auto grid = grid_of(s, variant, input_grad, segment_steps);
  if (!depthwise_fits(s) || !grid) throw std::invalid_argument("not for such a convolution");
  const unsigned blocks = unsigned((grid->threads + kDepthwiseThreads - 1) / kDepthwiseThreads);
  launch({blocks}, {kDepthwiseThreads}, 0, device::depthwise_kernel_of<T>(variant), *grid,
         static_cast<const T*>(x.data()), filters.data(), static_cast<const T*>(bias.size() ? bias.data() : nullptr),
         static_cast<T*>(y.mutable_data()));
}

static void depthwise(const std::string& dtype, py::tuple sizes, bool channels_last, bool input_grad, bool separable,
                      int segment_steps, py::array x, Array<float> filters, py::array bias, py::array y) {
  const auto typed = dtype == "fp32" ? run<float> : dtype == "bf16" ? run<device::Bf16> : run<device::Fp16>;
  typed(shape_of(sizes, channels_last), input_grad, separable, segment_steps, x, filters, bias, y);
}

// The launch of a call, or None if it is not for the kernel.
static py::object grid(py::tuple sizes, bool channels_last, bool input_grad, bool separable) {
  const ConvShape s = shape_of(sizes, channels_last);
  if (!depthwise_fits(s)) return py::none();
  const auto g = depthwise_grid(s, depthwise_variant(s, input_grad, separable), false);
  if (!g) return py::none();
  return py::dict(py::arg("threads") = g->threads, py::arg("lanes") = g->lanes, py::arg("chunks") = g->chunks,
                  py::arg("tiles") = g->across.steps, py::arg("segments") = g->segments,
                  py::arg("segment_steps") = g->segment_steps);
}

PYBIND11_MODULE(host_depthwise, m) {
  bind_emulation(m);
  m.def("depthwise", &depthwise);
  m.def("grid", &grid);
}
