// The passes of shared/passes.h that compute each element by itself. Torch-free: nvcc compiles this for
// cuda/launch/passes.cu, and the emulation's tests compile it with g++.
//
// Bandwidth is the bound: each element is read once and written once. A thread takes eight neighbours at a time, and
// loads several such vectors before it computes the first. With channels_last the launcher makes the grid so wide that
// a thread meets the same eight channels at each step, and holds their factors in registers.
#pragma once

#include "cuda/device/common/eight.cuh"

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

// What a thread does: a pass over the whole tensor, or where each image has factors of its own (int8) over one image.
template <PassKind kind, class T>
class Map {
 public:
  static constexpr bool kReadsX = kind == PassKind::kAffineAct || kind == PassKind::kAffineActGrad ||
                                  kind == PassKind::kBatchNormGrad || kind == PassKind::kMask;
  static constexpr bool kReadsGrad =
      kind == PassKind::kAffineActGrad || kind == PassKind::kBatchNormGrad || kind == PassKind::kMaskGrad;
  static constexpr bool kReadsCodes = kind == PassKind::kDequantize, kReadsBits = kind == PassKind::kMaskGrad;
  static constexpr bool kHasFactors = kind != PassKind::kMask && kind != PassKind::kMaskGrad;
  static constexpr int kLoads = kReadsX && kHasFactors ? 2 : 4;  // vectors of each input before the first is used

  // What a thread loads; fields that the kind does not name take no registers.
  struct Loaded {
    Eight<T> x, grad;
    Eight<uint8_t> codes;
    uint8_t bits;
  };

  __device__ Map(const Pass& p, int64_t image) : p_(p) {
    const int64_t first = kReadsCodes ? image * p.channels * p.pixels : 0;
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
    const bool same_channels =
        p_.channels_last && p_.channels % kTogether == 0 && step % (p_.channels / kTogether) == 0;
    int64_t at = first_thread();
    EightFactors factors;
    if (kHasFactors && kTogether * at < count_) load_factors(at, factors);
    if (!kHasFactors || same_channels) {
      for (; at + (kLoads - 1) * step < whole; at += kLoads * step) {
        Loaded loaded[kLoads];
#pragma unroll
        for (int i = 0; i < kLoads; ++i) loaded[i] = load<true>(at + i * step);
        finish<true, kLoads>(at, step, loaded, factors);
      }
    }
    for (; kTogether * at < count_; at += step) {
      if (kHasFactors && !same_channels) load_factors(at, factors);
      const Loaded one[] = {at < whole ? load<true>(at) : load<false>(at)};
      at < whole ? finish<true, 1>(at, step, one, factors) : finish<false, 1>(at, step, one, factors);
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

  // Computes and writes vectors at, at + step ...
  template <bool whole, int count>
  __device__ __forceinline__ void finish(int64_t at, int64_t step, const Loaded (&loaded)[count],
                                         const EightFactors& f) const {
    with_activation([&](auto act) __attribute__((always_inline)) {
#pragma unroll
      for (int n = 0; n < count; ++n) {
        const int64_t here = at + n * step, left = count_ - kTogether * here;
        if constexpr (kind == PassKind::kMask) {
          p_.bytes[here] = mask_of<act()>(loaded[n].x, left);
        } else {
          float y[kTogether];
          compute<act()>(loaded[n], f, y);
          write<whole>(y_ + kTogether * here, pack<T>(y), left);
        }
      }
    });
  }

  // Calls f with the activation where it decides what is computed.
  template <class F>
  __device__ __forceinline__ void with_activation(F f) const {
    if constexpr (kind == PassKind::kAffineAct || kind == PassKind::kAffineActGrad) {
      with_act(p_.act, f);
    } else if constexpr (kind == PassKind::kMask || kind == PassKind::kMaskGrad) {
      p_.act == kRelu ? f(Constant<kRelu>()) : p_.act == kRelu6 ? f(Constant<kRelu6>()) : f(Constant<kLeakyRelu>());
    } else {
      f(Constant<kIdentity>());
    }
  }

  template <int act>
  __device__ __forceinline__ uint8_t mask_of(const Eight<T>& eight, int64_t count) const {
    float x[kTogether];
    unpack(eight, x);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) bits |= uint32_t(is_inside(act, x[i])) << i;
    }
    return uint8_t(bits);
  }

  template <int act>
  __device__ __forceinline__ void compute(const Loaded& loaded, const EightFactors& f, float (&y)[kTogether]) const {
    const float slope = float(p_.slope);
    float x[kTogether], grad[kTogether];
    if constexpr (kReadsX) unpack(loaded.x, x);
    if constexpr (kReadsGrad) unpack(loaded.grad, grad);
    if constexpr (kReadsCodes) unpack(loaded.codes, x);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if constexpr (kind == PassKind::kAffineAct) {
        y[i] = activate<act, float>(f.a[i] * x[i] + f.b[i], slope);
      } else if constexpr (kind == PassKind::kAffineActGrad) {
        y[i] = times_derivative<act, float>(grad[i], f.a[i] * x[i] + f.b[i], slope);
      } else if constexpr (kind == PassKind::kBatchNormGrad) {
        y[i] = f.a[i] * grad[i] + f.b[i] * x[i] + f.c[i];
      } else if constexpr (kind == PassKind::kDequantize) {
        y[i] = f.a[i] + f.b[i] * x[i];
      } else {
        y[i] = loaded.bits >> i & 1 ? grad[i] : act == kLeakyRelu ? grad[i] * slope : 0.0f;
      }
    }
  }

  // The factors of vector `at`, whose elements may be of several channels.
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
__global__ void __launch_bounds__(256, 2) map_kernel(const Pass p) {
  const int64_t images = kind == PassKind::kDequantize ? p.images : 1;
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) Map<kind, T>(p, image).run();
}

}  // namespace device
}  // namespace explainfix
