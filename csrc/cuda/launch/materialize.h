// Launches the kernels that compose a weight.
#pragma once

#include "cuda/device/dense/materialize.cuh"
#include "cuda/launch/launch.h"

namespace explainfix {

// `steering` and `basis` are contiguous.
template <class T>
void launch_materialize(const WeightLayout& layout, const Tensor& steering, const double* basis, double scale,
                        T* weight) {
  const int64_t elements = layout.filters * layout.k2;
  if (steering.scalar_type() == ScalarType::Byte) {
    launch(steering, elements, materialize_index_kernel<T>, layout, steering.const_data_ptr<uint8_t>(), basis, scale,
           weight);
  } else {
    switch_floating(steering.scalar_type(), "steering", [&](auto tag) {
      using S = typename decltype(tag)::type;
      using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;
      launch(steering, elements, materialize_coeff_kernel<T, S, Acc>, layout, steering.const_data_ptr<S>(), basis,
             scale, weight);
    });
  }
}

}  // namespace explainfix
