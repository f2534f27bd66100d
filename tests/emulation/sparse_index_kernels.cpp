// The filter-sparse kernel, compiled for the host and bound to numpy arrays.
#include <string>

#include "binding.h"
#include "kernels/sparse_index.cuh"

using namespace explainfix;

// x, y, bias: arrays of the element's bits, as they lie in memory; no bias: an empty one.
struct Call {
  ConvShape shape;
  py::array x, packed, bias, y;
  float scale;
  bool gradient;
  int processors;
};

template <class T>
static bool run(const Call& call) {
  bool done = false;
  with_sparse_variant<T>(call.shape, [&](auto variant) {
    using V = decltype(variant);
    const auto grid = sparse_grid<V>(call.shape, call.processors);
    if (!grid) return;
    const SparseCall<T> arguments{call.shape,
                                  static_cast<const T*>(call.x.data()),
                                  call.bias.size() ? static_cast<const T*>(call.bias.data()) : nullptr,
                                  static_cast<const int32_t*>(call.packed.data()),
                                  static_cast<T*>(call.y.request().ptr),
                                  grid->width,
                                  grid->tiles_of_panel,
                                  call.scale,
                                  call.gradient,
                                  call.shape.out_channels / call.shape.groups % kStoredAtOnce == 0};
    launch({grid->tiles, grid->output_blocks, grid->groups}, {grid->threads}, size_t(grid->shared_bytes),
           device::sparse_index_kernel<V>, arguments);
    done = true;
  });
  return done;
}

// sizes: images, groups, in_channels, out_channels, height, width, out_height, out_width, kernel, stride, padding (two).
static bool sparse_index(const std::string& dtype, py::tuple sizes, bool rows, py::array x, py::array packed,
                         py::array bias, py::array y, double scale, bool gradient, int processors) {
  const auto at = [&](int i) { return sizes[i].cast<int>(); };
  const ConvShape shape{
      at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), {at(8), at(8)}, {at(9), at(9)}, {at(10), at(11)}, rows};
  const Call call{shape, x, packed, bias, y, float(scale), gradient, processors};
  if (dtype == "bfloat16") return run<device::Bf16>(call);
  if (dtype == "float16") return run<device::Fp16>(call);
  return run<float>(call);
}

PYBIND11_MODULE(host_sparse_index_kernels, m) {
  bind_emulation(m);
  m.attr("rows") = kSparseRows;
  m.def("sparse_index", &sparse_index);
}
