// Launches the kernels that compose a weight (cuda/device/dense/materialize.cuh), for the dense plan and, where a
// depthwise bank has not been packed, for the depthwise one.
#pragma once

#include "cuda/device/dense/materialize.cuh"
#include "cuda/launch/launch.h"

namespace explainfix {

// `steering` (index or coefficients) and `basis` are contiguous.
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
      launch(steering, elements, materialize_coeff_kernel<T, S>, layout, steering.const_data_ptr<S>(), basis, scale,
             weight);
    });
  }
}

}  // namespace explainfix
