// z -> y: four outputs by up to `sub` vectors are summed in registers over the rows of a block.
#pragma once

#include "cpu/tile/simd.h"
#include "cpu/tile/tiled_conv.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Where four outputs go to. In the first block they start at the bias, in the last one they are final.
struct Accumulators {
  float* y[4];      // their rows in scratch
  float* final[4];  // in the output itself, or null
  float bias[4];    // zero but in the first block
  bool first;
  int tail;  // lanes of the last vector that exist, for `final`
};

template <int P, class Add>
EXPLAINFIX_INLINE void accumulate(const Accumulators& a, Add&& add) {
  V acc[4][P];
  if (a.final[0]) {
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      EXPLAINFIX_UNROLL for (int p = 0; p < P * kLanes; p += 16) __builtin_prefetch(a.final[o] + p, 1, 3);
    }
  }
  EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
    const V start = splat(a.bias[o]);
    EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] = start;
  }
  add(acc);
  // A block's sum is added as a whole: one long chain of additions would round sqrt(blocks) times as much.
  if (!a.first) {
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] += load(a.y[o] + p * kLanes);
    }
  }
  if (!a.final[0]) {
    EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
      EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) store(a.y[o] + p * kLanes, acc[o][p]);
    }
    return;
  }
  EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
    EXPLAINFIX_UNROLL for (int p = 0; p < P - 1; ++p) store(a.final[o] + p * kLanes, acc[o][p]);
    if (a.tail == kLanes) {
      store(a.final[o] + (P - 1) * kLanes, acc[o][P - 1]);
    } else {
      store((1u << a.tail) - 1, a.final[o] + (P - 1) * kLanes, acc[o][P - 1]);
    }
  }
}

// Index family: each output adds the rows that its list names, one 64-bit load for the next row of each of the four.
template <int sub, int P>
void gather(const float* z, const uint16_t* rows, int count, const Accumulators& a) {
  accumulate<P>(a, [&](V(&acc)[4][P]) __attribute__((always_inline)) {
    constexpr uint64_t pitch = sub * kLanes * sizeof(float);
    const char* base = reinterpret_cast<const char*>(z);
    uint64_t next;
    memcpy(&next, rows, 8);
    for (int i = 0; i < count; ++i) {
      const uint64_t now = next;
      memcpy(&next, rows + 4 * (i + 1), 8);  // lists end in four rows more
      const float* r[4];
      EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
        r[o] = reinterpret_cast<const float*>(base + (now >> 16 * o & 0xffff) * pitch);
      }
      EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
        EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] += load(r[o] + p * kLanes);
      }
    }
  });
}

// Low-rank family: each output is a combination of all rows. Row r of channel i has coefficient s[o][i * in + r].
template <int sub, int P>
void multiply(const float* z, const float* const s[4], int64_t in, int channels, int rank, const Accumulators& a) {
  accumulate<P>(a, [&](V(&acc)[4][P]) __attribute__((always_inline)) {
    for (int i = 0; i < channels; ++i) {
      for (int r = 0; r < rank; ++r, z += sub * kLanes) {
        V row[P];
        EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) row[p] = load(z + p * kLanes);
        EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
          const float factor = s[o][i * in + r];
          EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) acc[o][p] += factor * row[p];
        }
      }
    }
  });
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
