// The passes of shared/passes.h that compute each element by itself. Torch-free: nvcc compiles this for
// cuda/launch/passes.cu, and the emulation's tests compile it with g++.
//
// Bandwidth is the bound: each element is read once and written once. A thread takes eight neighbours at a time, and
// loads several such vectors before it computes the first. With channels_last the launcher makes the grid so wide that
// a thread meets the same eight channels at each step, and holds their factors in registers.
#pragma once

#include "cuda/device/passes/vectors.cuh"

// What activations.h is compiled for.
#define EXPLAINFIX_ISA device
#define EXPLAINFIX_INLINE __device__ inline
#include "shared/activations.h"
#include "shared/batch_norm.h"
#include "shared/passes.h"

namespace explainfix {
namespace device {

// The factors of eight elements: y = a x + b, or a grad + b x + c, or low + step * code.
struct EightFactors {
  float a[kTogether], b[kTogether], c[kTogether];
};

// What kind of pass works on, by the position of an element: of the whole tensor, or for int8 of one image.
template <PassKind kind, class T>
class Map {
 public:
  static constexpr bool kReadsX = kind == PassKind::kAffineAct || kind == PassKind::kAffineActGrad ||
                                  kind == PassKind::kBatchNormGrad || kind == PassKind::kMask;
  static constexpr bool kReadsGrad =
      kind == PassKind::kAffineActGrad || kind == PassKind::kBatchNormGrad || kind == PassKind::kMaskGrad;
  static constexpr bool kReadsCodes = kind == PassKind::kDequantize, kReadsBits = kind == PassKind::kMaskGrad;
  static constexpr bool kHasFactors = kind != PassKind::kMask && kind != PassKind::kMaskGrad;
  static constexpr int kLoads = kReadsX && kReadsGrad ? 2 : 4;  // vectors of each input before the first is used

  // What a thread loads; fields that the kind does not name take no registers.
  struct Loaded {
    Eight<T> x, grad;
    Eight<uint8_t> codes;
    uint8_t bits;
  };

  __device__ Map(const Pass& p, int64_t image) : p_(p) {
    const int64_t first = image * p.channels * p.pixels;
    x_ = static_cast<const T*>(p.x);
    grad_ = static_cast<const T*>(p.grad);
    y_ = kind == PassKind::kMask ? nullptr : static_cast<T*>(p.y) + first;
    codes_ = kReadsCodes ? p.bytes + first : nullptr;
    channel0_ = image * p.channels;
    count_ = (kReadsCodes ? 1 : p.images) * p.channels * p.pixels;
  }

  // All vectors of this thread.
  __device__ void run() {
    const bool aligned = (!kReadsX || is_aligned(x_)) && (!kReadsGrad || is_aligned(grad_)) && is_aligned(y_) &&
                         (!kReadsCodes || is_aligned(codes_));
    const int64_t step = all_threads(), whole = aligned ? count_ / kTogether : 0;
    const int64_t groups = p_.channels / kTogether;
    const bool same_channels = p_.channels_last && p_.channels % kTogether == 0 && step % groups == 0;
    int64_t at = first_thread();
    EightFactors factors;
    if (kHasFactors && kTogether * at < count_) load_factors(at, factors);
    for (; at + (kLoads - 1) * step < whole; at += kLoads * step) {
      Loaded loaded[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) loaded[i] = load<true>(at + i * step);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (kHasFactors && !same_channels) load_factors(at + i * step, factors);
        finish<true>(at + i * step, loaded[i], factors);
      }
    }
    for (; kTogether * at < count_; at += step) {
      if (kHasFactors && !same_channels) load_factors(at, factors);
      at < whole ? finish<true>(at, load<true>(at), factors) : finish<false>(at, load<false>(at), factors);
    }
  }

 private:
  template <bool whole>
  __device__ __forceinline__ Loaded load(int64_t at) const {
    const int64_t first = kTogether * at, left = count_ - first;
    Loaded loaded;
    if constexpr (kReadsX) loaded.x = read<whole>(x_ + first, left);
    if constexpr (kReadsGrad) loaded.grad = read<whole>(grad_ + first, left);
    if constexpr (kReadsCodes) loaded.codes = read<whole>(codes_ + first, left);
    if constexpr (kReadsBits) loaded.bits = p_.bytes[at];
    return loaded;
  }

  template <bool whole>
  __device__ __forceinline__ void finish(int64_t at, const Loaded& loaded, const EightFactors& f) const {
    const int64_t first = kTogether * at, left = count_ - first;
    if constexpr (kind == PassKind::kMask) {
      uint32_t bits = 0;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (i < left) bits |= uint32_t(is_inside(p_.act, static_cast<float>(loaded.x.at[i]))) << i;
      }
      p_.bytes[at] = uint8_t(bits);
    } else {
      float y[kTogether];
      compute(loaded, f, y);
      write<whole>(y_ + first, rounded<T>(y), left);
    }
  }

  __device__ __forceinline__ void compute(const Loaded& loaded, const EightFactors& f, float (&y)[kTogether]) const {
    const float slope = float(p_.slope);
    if constexpr (kind == PassKind::kAffineAct || kind == PassKind::kAffineActGrad) {
      with_act(p_.act, [&](auto act) __attribute__((always_inline)) {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const float z = f.a[i] * static_cast<float>(loaded.x.at[i]) + f.b[i];
          if constexpr (kReadsGrad) {
            y[i] = times_derivative<act(), float>(static_cast<float>(loaded.grad.at[i]), z, slope);
          } else {
            y[i] = activate<act(), float>(z, slope);
          }
        }
      });
    } else {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) y[i] = linear(loaded, f, i, slope);
    }
  }

  __device__ __forceinline__ float linear(const Loaded& loaded, const EightFactors& f, int i, float slope) const {
    if constexpr (kind == PassKind::kDequantize) return f.a[i] + f.b[i] * float(loaded.codes.at[i]);
    const float grad = static_cast<float>(loaded.grad.at[i]);
    if constexpr (kind == PassKind::kBatchNormGrad) {
      return f.a[i] * grad + f.b[i] * static_cast<float>(loaded.x.at[i]) + f.c[i];
    }
    return loaded.bits >> i & 1 ? grad : p_.act == kLeakyRelu ? grad * slope : 0.0f;
  }

  // The channel of vector `at`, and from where in it on the channels are the next ones.
  __device__ __forceinline__ void load_factors(int64_t at, EightFactors& f) const {
    const uint64_t run = p_.channels_last ? 1 : uint64_t(p_.pixels), first = uint64_t(kTogether * at);
    const uint64_t plane = first / run;  // nvcc divides 32 bits where both are so small
    int64_t channel = int64_t(plane % uint64_t(p_.channels)), left = int64_t(run - (first - plane * run));
    BatchNormGrad<float> now = factors_of(channel);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      f.a[i] = now.a;
      f.b[i] = now.b;
      f.c[i] = now.c;
      if (--left == 0 && i + 1 < kTogether) {
        left = int64_t(run);
        channel = channel + 1 == p_.channels ? 0 : channel + 1;
        now = factors_of(channel);
      }
    }
  }

  __device__ __forceinline__ BatchNormGrad<float> factors_of(int64_t channel) const {
    if constexpr (kind == PassKind::kBatchNormGrad) {  // a: the factors of a BatchNorm, b: its sums
      return batch_norm_grad(static_cast<const float*>(p_.a), static_cast<const float*>(p_.b), p_.channels, channel,
                             float(p_.count));
    } else if constexpr (kReadsCodes) {
      return {static_cast<const float*>(p_.low)[channel0_ + channel],
              static_cast<const float*>(p_.step)[channel0_ + channel], 0.0f};
    } else {
      return {static_cast<const float*>(p_.a)[channel], static_cast<const float*>(p_.b)[channel], 0.0f};
    }
  }

  const Pass& p_;
  const T *x_, *grad_;
  T* y_;
  const uint8_t* codes_;
  int64_t channel0_, count_;
};

// The grid's rows are images where they have factors of their own.
template <PassKind kind, class T>
__global__ void __launch_bounds__(256) map_kernel(const Pass p) {
  const int64_t images = kind == PassKind::kDequantize ? p.images : 1;
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) Map<kind, T>(p, image).run();
}

}  // namespace device
}  // namespace explainfix
