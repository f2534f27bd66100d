// The activation functions and their gradients, one text for the CPU and the GPU. Whoever includes this says first
// what it is compiled for: EXPLAINFIX_ISA is the namespace of an instruction set of the CPU, or `device`;
// EXPLAINFIX_INLINE is how its functions are declared. cpu/tile/elements.h and cuda/device/passes/passes.cuh include
// it.
#pragma once

#include <math.h>

#include <cstdint>

#include "shared/passes.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

EXPLAINFIX_INLINE double exponential(double x) { return exp(x); }
#ifdef __CUDACC__
EXPLAINFIX_INLINE float exponential(float x) { return expf(x); }
#else
EXPLAINFIX_INLINE float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
EXPLAINFIX_INLINE uint32_t to_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

// e^x = 2^n e^r with |r| <= ln 2 / 2, and e^r by its power series. Off by 1 to 2 units in the last place; unlike expf,
// loops over it vectorise. Above 88 it is infinite, below -87 zero.
EXPLAINFIX_INLINE float exponential(float exponent) {
  const float x = exponent > 88.0f ? 88.0f : exponent < -87.0f ? -87.0f : exponent;
  const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;  // the addition rounds to an integer
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const float value = series * from_bits((to_bits(shifted) << 23) + 0x3f800000);
  return exponent > 88.0f ? INFINITY : exponent < -87.0f ? 0.0f : value;
}
#endif

template <class A>
EXPLAINFIX_INLINE A sigmoid(A z) {
  return A(1) / (A(1) + exponential(-z));
}

constexpr double kSqrtHalf = 0.70710678118654752, kInvSqrt2Pi = 0.39894228040143268, kSqrt2OverPi = 0.79788456080286536;

EXPLAINFIX_INLINE float gauss_error(float z) { return erff(z); }
EXPLAINFIX_INLINE double gauss_error(double z) { return erf(z); }

template <int act, class A>
EXPLAINFIX_INLINE A activate(A z, A slope) {
  if constexpr (act == kRelu) return z < 0 ? A(0) : z;  // NaN stays, as in torch
  if constexpr (act == kRelu6) return z < 0 ? A(0) : z > 6 ? A(6) : z;
  if constexpr (act == kLeakyRelu) return z > 0 ? z : slope * z;
  if constexpr (act == kSilu) return z * sigmoid(z);
  if constexpr (act == kHardswish) return z * (z < -3 ? A(0) : z > 3 ? A(6) : z + A(3)) / A(6);
  if constexpr (act == kGelu) return z * A(0.5) * (A(1) + gauss_error(z * A(kSqrtHalf)));
  if constexpr (act == kGeluTanh) return z * sigmoid(A(2 * kSqrt2OverPi) * (z + A(0.044715) * z * z * z));
  return z;
}

// Is the derivative of ReLU or its kin 1? As in torch, ReLU's is at NaN, and the others' is not.
template <class A>
EXPLAINFIX_INLINE bool is_inside(int act, A z) {
  return act == kRelu ? !(z <= 0) : z > 0 && (act != kRelu6 || z < 6);
}

// grad times the derivative at z. Where that is zero for a whole range of z, the result is zero for any grad, as in
// torch: also for NaN and infinity.
template <int act, class A>
EXPLAINFIX_INLINE A times_derivative(A grad, A z, A slope) {
  if constexpr (act == kRelu || act == kRelu6) return is_inside(act, z) ? grad : A(0);
  if constexpr (act == kLeakyRelu) return z > 0 ? grad : grad * slope;
  if constexpr (act == kSilu) {
    const A s = sigmoid(z);
    return grad * (s * (A(1) + z * (A(1) - s)));
  }
  if constexpr (act == kHardswish) return z <= -3 ? A(0) : z >= 3 ? grad : grad * (z / A(3) + A(0.5));
  if constexpr (act == kGelu) {
    const A density = exponential(A(-0.5) * z * z) * A(kInvSqrt2Pi);
    return grad * (A(0.5) * (A(1) + gauss_error(z * A(kSqrtHalf))) + z * density);
  }
  if constexpr (act == kGeluTanh) {
    const A s = sigmoid(A(2 * kSqrt2OverPi) * (z + A(0.044715) * z * z * z));
    return grad * (s + z * s * (A(1) - s) * A(2 * kSqrt2OverPi) * (A(1) + A(3 * 0.044715) * z * z));
  }
  return grad;
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
