// Sums of rows of floats, each times a number: the horizontal and the vertical filters of the hadamard kernel are this.
#pragma once

#include "cpu/tile/hadamard_conv.h"
#include "cpu/tile/staging.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

constexpr int kMostTaps = 7;  // that combine_some has registers for

EXPLAINFIX_INLINE int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
EXPLAINFIX_INLINE int at_least(int a, int b) { return a > b ? a : b; }
EXPLAINFIX_INLINE int at_most(int a, int b) { return a < b ? a : b; }

// What is combined: `taps` rows of floats, each times its tap. Lanes that a mask takes away count as zero; masks[k] has
// one for each vector of row k, or there are none.
struct Sources {
  int taps = 0;
  const float* from[kMaxHadamardKernel];
  float tap[kMaxHadamardKernel];
  const uint16_t* masks[kMaxHadamardKernel];

  EXPLAINFIX_INLINE void add(const float* row, float number, const uint16_t* mask = nullptr) {
    from[taps] = row;
    tap[taps] = number;
    masks[taps++] = mask;
  }
};

// to[i] = start + sum of tap[k] from[k][i] for i < count, and with `adds` what is there already; K of the sources from
// `begin` on.
template <int K, bool masked>
EXPLAINFIX_INLINE void combine_some(const Sources& sources, int begin, int count, float start, bool adds, float* to) {
  V taps[K];
  const float* from[K];
  const uint16_t* masks[K];
  EXPLAINFIX_UNROLL for (int k = 0; k < K; ++k) {
    taps[k] = splat(sources.tap[begin + k]);
    from[k] = sources.from[begin + k];
    if (masked) masks[k] = sources.masks[begin + k];
  }
  const V first = splat(start);
  const auto sum = [&](int i) {
    V value = first;
    EXPLAINFIX_UNROLL for (int k = 0; k < K; ++k) {
      value += taps[k] * (masked ? load(Mask(masks[k][i / kLanes]), from[k] + i) : load(from[k] + i));
    }
    return value;
  };
  int i = 0;
  if (adds) {
    for (; i + kLanes <= count; i += kLanes) store(to + i, sum(i) + load(to + i));
  } else {
    for (; i + kLanes <= count; i += kLanes) store(to + i, sum(i));
  }
  if (i >= count) return;
  const Mask rest = first_lanes(count - i);  // a source may be x itself, which ends here
  V value = first;
  EXPLAINFIX_UNROLL for (int k = 0; k < K; ++k) {
    value += taps[k] * load(masked ? rest & masks[k][i / kLanes] : rest, from[k] + i);
  }
  if (adds) value += load(rest, to + i);
  store(rest, to + i, value);
}

template <bool masked>
void combine(const Sources& sources, int count, float start, bool adds, float* to) {
  int begin = 0;
  for (; sources.taps - begin > kMostTaps; begin += kMostTaps, start = 0, adds = true) {
    combine_some<kMostTaps, masked>(sources, begin, count, start, adds, to);
  }
  switch (sources.taps - begin) {
    case 1:
      return combine_some<1, masked>(sources, begin, count, start, adds, to);
    case 2:
      return combine_some<2, masked>(sources, begin, count, start, adds, to);
    case 3:
      return combine_some<3, masked>(sources, begin, count, start, adds, to);
    case 4:
      return combine_some<4, masked>(sources, begin, count, start, adds, to);
    case 5:
      return combine_some<5, masked>(sources, begin, count, start, adds, to);
    case 6:
      return combine_some<6, masked>(sources, begin, count, start, adds, to);
    case 7:
      return combine_some<7, masked>(sources, begin, count, start, adds, to);
    default:  // no tap reaches the image: zeros
      for (int i = 0; i < count; ++i) to[i] = adds ? to[i] + start : start;
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
