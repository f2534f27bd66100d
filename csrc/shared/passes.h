// Passes over an activation: what BatchNorm, activations and int8 need so that nothing of the size of an activation is
// allocated beside the result. One pass is one struct, run on a range of its work by the instruction set in use.
#pragma once

#include <cstdint>

namespace explainfix {

enum class PassKind {
  kStats,          // sums of x - shift and of its square
  kBatchNormSums,  // sums of y and of y * (x - a) * b
  kAffineAct,      // y = act(a x + b)
  kAffineActGrad,  // y *= act'(a x + b)
  kCombine,        // y = a y + b x + c
  kMask,           // bits = where act's derivative is 1 at x
  kMaskGrad,       // y *= slope where the bit is 0
  kQuantize,       // codes of x, with the lowest value and the step of each block
  kDequantize,     // y = low + step * code
};

enum class PassType { kFloat, kDouble, kBFloat16, kHalf };

// Factors, statistics and sums are float, or double where the tensor is. Planes: [images * channels][pixels]. Rows (of
// channels_last): [images * pixels][channels].
struct Pass {
  PassKind kind;
  PassType type;
  bool rows;
  int64_t images, channels, pixels;
  const void* x;
  void* y;
  const void *a, *b, *c;  // by channel; for int8 by image and channel
  int act;
  double slope;
  uint8_t* bytes;  // bits or codes
  double* sums;    // [2][channels], of rows [kRowParts][2][channels]
  void *low, *step;
};

constexpr int kRowParts = 16;  // sums over rows: a fixed number of parts, so that they do not depend on the threads

template <int n>
struct Constant {
  constexpr int operator()() const { return n; }
};

// Calls f with the number of an activation as a constant.
template <class F>
void with_act(int act, F&& f) {
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

// Units of work: channels of sums over planes, parts of sums over rows, bytes of a mask, blocks of int8, else planes or
// rows.
using RunPass = void (*)(const Pass&, int64_t begin, int64_t end);

}  // namespace explainfix
