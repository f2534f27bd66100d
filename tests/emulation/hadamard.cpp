// The kernels of cuda/device/hadamard, compiled for the host and bound to numpy arrays.
#include "cuda/device/hadamard/hadamard.cuh"

#include <string>

#include "binding.h"

using namespace explainfix;

// sizes: images, groups, channels of a group in and out, size in (two), size out (two), kernel, stride (two), padding
// (two), order, stages, chunks; as HadamardShape has them.
static HadamardShape shape_of(py::tuple sizes, bool input_grad) {
  auto at = [&](int i) { return sizes[i].cast<int64_t>(); };
  return {at(0),  at(1),  at(2),  at(3),     {at(4), at(5)}, {at(6), at(7)}, at(8), {at(9), at(10)}, {at(11), at(12)},
          at(13), at(14), at(15), input_grad};
}

// Arrays are the bits of T, as they lie in memory. multiprocessors: of the card; more of them cut lines
// more finely.
template <class T>
static void run(const HadamardShape& s, int multiprocessors, const py::array& x, const Array<float>& packed,
                const py::array& bias, py::array& y) {
  if (!hadamard_fits(s)) throw std::invalid_argument("not for such a convolution");
  const HadamardLaunch l = hadamard_launch(s, sizeof(T), multiprocessors);
  launch({l.grid[0], l.grid[1], l.grid[2]}, {l.threads}, l.shared_bytes, device::hadamard_kernel_of<T>(l), l.walk,
         static_cast<const T*>(x.data()), packed.data(), static_cast<const T*>(bias.size() ? bias.data() : nullptr),
         static_cast<T*>(y.mutable_data()));
}

static void hadamard(const std::string& dtype, py::tuple sizes, bool input_grad, int multiprocessors, py::array x,
                     Array<float> packed, py::array bias, py::array y) {
  const auto typed = dtype == "fp32" ? run<float> : dtype == "bf16" ? run<device::Bf16> : run<device::Fp16>;
  typed(shape_of(sizes, input_grad), multiprocessors, x, packed, bias, y);
}

PYBIND11_MODULE(host_hadamard, m) {
  bind_emulation(m);
  m.def("hadamard", &hadamard);
  m.def("fits", [](py::tuple sizes, bool input_grad) { return hadamard_fits(shape_of(sizes, input_grad)); });
}
