// The kernels of cuda/device/dense/materialize.cuh, compiled for the host and bound to numpy arrays.
#include "cuda/device/dense/materialize.cuh"

#include "binding.h"

using explainfix::WeightLayout;

static WeightLayout layout(py::ssize_t filters, int64_t per_group, const Array<double>& basis, bool channels_last) {
  const int64_t k2 = basis.shape(1);
  return {filters, per_group, k2, basis.shape(0), channels_last ? 1 : k2, channels_last ? per_group : 1};
}

// `weight` comes poisoned: an element that no thread writes stays NaN.
static void materialize_index(const Array<uint8_t>& index, const Array<double>& basis, double scale, bool channels_last,
                              Array<float> weight, unsigned blocks) {
  launch({blocks}, {32}, 0, explainfix::materialize_index_kernel<float>,
         layout(index.size(), index.shape(1), basis, channels_last), index.data(), basis.data(), scale,
         weight.mutable_data());
}

static void materialize_coeff(const Array<float>& coeff, const Array<double>& basis, double scale, bool channels_last,
                              Array<float> weight, unsigned blocks) {
  launch({blocks}, {32}, 0, explainfix::materialize_coeff_kernel<float, float>,
         layout(coeff.shape(0) * coeff.shape(1), coeff.shape(1), basis, channels_last), coeff.data(), basis.data(),
         scale, weight.mutable_data());
}

PYBIND11_MODULE(host_materialize, m) {
  bind_emulation(m);
  m.def("materialize_index", &materialize_index);
  m.def("materialize_coeff", &materialize_coeff);
}
