// The passes over an activation that memory saving needs (batch normalisation, activation functions, int8), as plain
// data for both devices. Each of them works in place or in one sweep, so that nothing of the size of an activation is
// allocated beside the result.
//
// torch_api/pass_ops.h turns a call of an op into a `Pass`; cpu/tile/passes.h and cuda/device/passes/passes.cuh run it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define EXPLAINFIX_BOTH __host__ __device__
#else
#define EXPLAINFIX_BOTH
#endif

namespace explainfix {

enum class PassKind {
  kStats,          // sums of x - a and of its square, for mean and variance
  kBatchNormSums,  // sums of grad and of grad * (x - a) * b
  kAffineAct,      // y = act(a x + b)
  kAffineActGrad,  // y = grad * act'(a x + b)
  kBatchNormGrad,  // y = a grad + b x + c
  kMask,           // a bit is 1 where act's derivative is 1 at x
  kMaskGrad,       // y = grad * (1, or where the bit is 0 slope or 0)
  kQuantize,       // int8 codes of x, and the lowest value and the step of each image and channel
  kDequantize,     // y = low + step * code
};

enum class PassType { kFloat, kDouble, kBFloat16, kHalf };

// The type that elements of type T are computed in; factors, statistics and sums are stored in it.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <class T>
using WideType = typename Wide<T>::type;

// One pass over one tensor. Memory is [images * channels][pixels], or with channels_last [images * pixels][channels].
struct Pass {
  PassKind kind;
  PassType type;
  bool channels_last;
  int64_t images, channels, pixels;
  const void *x, *grad;
  void* y;                // may be grad: each element is read before it is written
  const void *a, *b, *c;  // factors, one for each channel
  int act;                // an Act
  double slope;           // of leaky ReLU
  double count;           // kBatchNormGrad on CUDA, where a and b are a BatchNorm's factors and sums: of the pixels
  uint8_t* bytes;         // bits or codes
  double* sums;           // CPU: [parts][2][channels]; 1 part, or with channels_last kPixelParts
  void *low, *step;       // of int8: one for each image and channel
};

// With channels_last, pixels are summed in a fixed number of parts, so that sums do not depend on the number of
// threads.
constexpr int kPixelParts = 16;

template <int n>
struct Constant {
  EXPLAINFIX_BOTH constexpr int operator()() const { return n; }
};

// The activations of activations.h, by the numbers that Python's ACTIVATIONS gives them.
enum Act { kIdentity, kRelu, kRelu6, kLeakyRelu, kSilu, kHardswish, kGelu, kGeluTanh };
constexpr int kActs = 8;  // how many there are

// Calls f with an activation as a constant. A new Act needs a line here, or nothing is called.
template <class F>
EXPLAINFIX_BOTH inline void with_act(int act, F&& f) {
  switch (act) {
#define EXPLAINFIX_ACT(n) \
  case n:                 \
    return f(Constant<n>());
    EXPLAINFIX_ACT(0)
    EXPLAINFIX_ACT(1)
    EXPLAINFIX_ACT(2)
    EXPLAINFIX_ACT(3)
    EXPLAINFIX_ACT(4)
    EXPLAINFIX_ACT(5)
    EXPLAINFIX_ACT(6)
    EXPLAINFIX_ACT(7)
#undef EXPLAINFIX_ACT
  }
}

// Runs units [begin, end) of a pass on the CPU. A unit is a channel (sums), a part of the pixels (sums with
// channels_last), a byte (masks), an image and channel, or with channels_last an image (quantising); for all other
// passes it is a plane, or with channels_last a pixel.
using RunPass = void (*)(const Pass&, int64_t begin, int64_t end);

}  // namespace explainfix
