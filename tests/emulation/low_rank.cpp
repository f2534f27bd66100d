// The kernels of cuda/device/low_rank, compiled for the host and bound to numpy arrays.
#include "cuda/device/low_rank/low_rank.cuh"

#include <string>

#include "binding.h"

using namespace explainfix;

// x, y, bias, packed: arrays of the element's bits. sizes: images, groups, in_channels, out_channels, height, width,
// out_height, out_width, kernel, stride, padding (two each).
struct Call {
  LowRank p;
  py::array x, packed, bias, y, factors;
  int outputs;
  bool products;
};

template <class Product, int kOutputs>
static void run(const Call& call) {
  using T = typename Product::Element;
  const T* bias = call.bias.size() ? static_cast<const T*>(call.bias.data()) : nullptr;
  device::with_responses<Product>(call.p, call.products, [&](auto responses) {
    using Responses = decltype(responses);
    const LowRankShared shared(call.p, kOutputs, Responses::taps(call.p), sizeof(T));
    const void* factors = call.factors.data();
    launch({unsigned(blocks_of(call.p, kOutputs))}, {unsigned(2 * kRoleThreads)}, size_t(shared.end),
           device::low_rank_kernel<Product, kOutputs, Responses>, call.p, static_cast<const T*>(call.x.data()),
           static_cast<const T*>(call.packed.data()), static_cast<typename Responses::Factors>(factors), bias,
           static_cast<T*>(call.y.request().ptr));
  });
}

template <class Product>
static void run(const Call& call) {
  constexpr bool kStrict = std::is_same_v<Product, device::Fp32Product>;
  call.outputs == 64 ? run<Product, 64>(call) : run<Product, kStrict ? 64 : 128>(call);
}

static void low_rank(const std::string& product, py::tuple sizes, py::array x, py::array packed, py::array factors,
                     py::array bias, py::array y, double scale, bool flipped, bool relu, int outputs) {
  auto at = [&](int i) { return sizes[i].cast<int>(); };
  const ConvShape shape{
      at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), {at(8), at(9)}, {at(10), at(11)}, {at(12), at(13)}, true};
  const bool products = py::isinstance<py::array_t<float>>(factors);  // (L, 2 K), or the basis, double
  Call call{{shape, int(factors.shape(0)), 0, 0, flipped, relu, float(scale)},
            x,
            packed,
            bias,
            y,
            factors,
            outputs,
            products};
  choose_tile(&call.p, products);
  if (product == "bf16") run<device::Bf16Product>(call);
  if (product == "fp16") run<device::Fp16Product>(call);
  if (product == "tf32") run<device::Tf32Product>(call);
  if (product == "fp32") run<device::Fp32Product>(call);
}

// -> rows, columns, images of the tile, and how many tiles.
static py::tuple tile(py::tuple out, py::tuple kernel, int stride) {
  LowRank p{};
  p.shape.images = out[0].cast<int64_t>();
  p.shape.out_height = out[1].cast<int64_t>();
  p.shape.out_width = out[2].cast<int64_t>();
  for (int a = 0; a < 2; ++a) {
    p.shape.kernel[a] = kernel[a].cast<int>();
    p.shape.stride[a] = stride;
  }
  choose_tile(&p, false);
  return py::make_tuple(p.rows(), p.columns(), p.images(), p.tiles());
}

PYBIND11_MODULE(host_low_rank, m) {
  bind_emulation(m);
  m.def("low_rank", &low_rank);
  m.def("tile", &tile);
}
