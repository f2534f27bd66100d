// The kernel of cuda/device/sparse_index, compiled for the host and bound to numpy arrays. A variant takes a second to
// compile: here are some of bf16 and the first ones of the other types; sparse_index_all.cpp has all.
#include "cuda/device/sparse_index/sparse_index.cuh"

#include <string>

#include "binding.h"

using namespace explainfix;

#ifndef EXPLAINFIX_ALL_VARIANTS
#define EXPLAINFIX_ALL_VARIANTS false
#define EXPLAINFIX_MODULE host_sparse_index
#endif

// x, y, bias: arrays of the element's bits, as they lie in memory; no bias: an empty one.
struct Call {
  ConvShape shape;
  py::array x, packed, bias, y;
  float scale;
  bool input_grad;
  int processors;
};

// With an H100's shared memory.
static SparseDevice device_of(int processors) { return {processors, 227 << 10, 228 << 10}; }

template <class V>
constexpr bool kCompiled =
    EXPLAINFIX_ALL_VARIANTS || (std::is_same_v<typename V::Element, device::Bf16>
                                    ? V::kernel == 3 || V::channels_last == (V::stride == 1)
                                    : V::kernel == 3 && V::stride == 1 && V::channels_last == (V::terms == 3));

template <class T>
static bool run(const Call& call) {
  bool done = false;
  with_sparse_variant<T>(call.shape, [&](auto variant) {
    using V = decltype(variant);
    if constexpr (kCompiled<V>) {
      const auto grid = sparse_grid<V>(call.shape, device_of(call.processors));
      if (!grid) return;
      if (call.packed.size() < sparse_words<V>(call.shape)) throw std::invalid_argument("packed has too few words");
      const SparseCall<T> arguments{call.shape,
                                    static_cast<const T*>(call.x.data()),
                                    call.bias.size() ? static_cast<const T*>(call.bias.data()) : nullptr,
                                    static_cast<const int32_t*>(call.packed.data()),
                                    int(call.packed.size()),
                                    static_cast<T*>(call.y.request().ptr),
                                    *grid,
                                    call.scale,
                                    call.input_grad,
                                    call.shape.out_channels / call.shape.groups % kStoredAtOnce == 0};
      launch({grid->tiles, grid->output_blocks, grid->groups}, {grid->threads}, size_t(grid->shared_bytes),
             device::sparse_index_kernel<V>, arguments);
      done = true;
    }
  });
  return done;
}

// sizes: images, groups, in_channels, out_channels, height, width, out_height, out_width, kernel, stride, padding
// (two).
static bool sparse_index(const std::string& dtype, py::tuple sizes, bool channels_last, py::array x, py::array packed,
                         py::array bias, py::array y, double scale, bool input_grad, int processors) {
  const auto at = [&](int i) { return sizes[i].cast<int>(); };
  const ConvShape shape{
      at(0),        at(1), at(2), at(3), at(4), at(5), at(6), at(7), {at(8), at(8)}, {at(9), at(9)}, {at(10), at(11)},
      channels_last};
  const Call call{shape, x, packed, bias, y, float(scale), input_grad, processors};
  if (dtype == "bfloat16") return run<device::Bf16>(call);
  if (dtype == "float16") return run<device::Fp16>(call);
  return run<float>(call);
}

// Of a 3 x 3 convolution in bf16 -> width, tiles, threads, shared bytes; None: the kernel is not for it.
static py::object grid(py::tuple sizes, bool channels_last, py::tuple device) {
  const auto at = [&](int i) { return sizes[i].cast<int64_t>(); };
  const auto of = [&](int i) { return device[i].cast<int>(); };
  const ConvShape shape{at(0), 1, at(1), at(2), at(3), at(4), at(3), at(4), {3, 3}, {1, 1}, {1, 1}, channels_last};
  const SparseDevice found_device{of(0), of(1), of(2)};
  const auto found = channels_last ? sparse_grid<SparseVariant<device::Bf16, 3, 1, true>>(shape, found_device)
                                   : sparse_grid<SparseVariant<device::Bf16, 3, 1, false>>(shape, found_device);
  if (!found) return py::none();
  return py::make_tuple(found->width, found->tiles, found->threads, found->shared_bytes);
}

PYBIND11_MODULE(EXPLAINFIX_MODULE, m) {
  bind_emulation(m);
  m.attr("z_rows") = kSparseRows;
  m.def("sparse_index", &sparse_index);
  m.def("grid", &grid);
}
