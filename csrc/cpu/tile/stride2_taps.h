// From sums g of output gradients to the input gradient dx, for stride 2: the transpose of transform.h. Called by
// stride2_grad.h.
//
// With stride 2, tap a of a filter reads input row 2 m + a - K/2 for output row m. So dx falls apart into four phases,
// its even and odd rows and columns, and tap (a, b) adds to one of them, shifted by whole grid pixels. First the K x K
// taps are composed at each pixel: tap t = sum over functions l of basis[l][t] * g[l]. Then they are shifted and added.
#pragma once

#include "cpu/tile/staging.h"
#include "cpu/tile/transform.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// All taps of one axis: out[a] = sum over v of table[v][a] * g[v]. Taps a and K - 1 - a differ in the odd functions'
// sign only.
template <int K>
EXPLAINFIX_INLINE void compose_axis(const V (*row)[K / 2 + 1], const V* g, int step, V* out, int out_step) {
  EXPLAINFIX_UNROLL for (int a = 0; a <= K / 2; ++a) {
    V even = row[0][a] * g[0], odd{};
    EXPLAINFIX_UNROLL for (int v = 2; v < K; v += 2) even += row[v][a] * g[v * step];
    if (a == K / 2) {
      out[a * out_step] = even;  // odd functions are zero in the middle
      continue;
    }
    EXPLAINFIX_UNROLL for (int v = 1; v < K; v += 2) odd += row[v][a] * g[v * step];
    out[a * out_step] = even + odd;
    out[(K - 1 - a) * out_step] = even - odd;
  }
}

// taps[a * K + b][vector] of one channel, for the DCT. `row`: the row of g of each function; row 0 is zero.
template <int K>
void compose_taps(const Stride2Grad& c, const int32_t* row, const float* g, int vectors, float* taps) {
  V down[K][K / 2 + 1], across[K][K / 2 + 1];
  EXPLAINFIX_UNROLL for (int u = 0; u < K; ++u) {
    load_row<K>(c.grid.table + u * K, c.grid.scale, down[u]);
    load_row<K>(c.grid.table + u * K, 1.0f, across[u]);
  }
  for (int k = 0; k < vectors; ++k, g += kLanes, taps += kLanes) {
    V sums[K * K], half[K * K], tap[K * K];
    EXPLAINFIX_UNROLL for (int u = 0; u < K; ++u) {
      EXPLAINFIX_UNROLL for (int v = 0; v < K; ++v) sums[u * K + v] = load(g + row[u * K + v] * c.line);
      compose_axis<K>(across, sums + u * K, 1, half + u * K, 1);
    }
    EXPLAINFIX_UNROLL for (int b = 0; b < K; ++b) {
      compose_axis<K>(down, half + b, K, tap + b, K);
      EXPLAINFIX_UNROLL for (int a = 0; a < K; ++a) store(taps + (a * K + b) * c.line, tap[a * K + b]);
    }
  }
}

// The same for any basis: L multiply-adds for each tap.
template <int K>
void compose_any_taps(const Stride2Grad& c, const int32_t* row, const float* g, int vectors, float* taps) {
  for (int t = 0; t < K * K; ++t) {
    for (int k = 0; k < vectors * kLanes; k += kLanes) {
      V sum{};
      for (int l = 0; l < c.grid.rank; ++l) sum += c.grid.taps[l * K * K + t] * load(g + row[l] * c.line + k);
      store(taps + t * c.line + k, sum);
    }
  }
}

// Stores even[0], odd[0], even[1], odd[1] ...
template <int... l>
EXPLAINFIX_INLINE void store_interleaved(float* to, V even, V odd, std::integer_sequence<int, l...>) {
  store(to, EXPLAINFIX_SHUFFLE(even, odd, (l / 2 + (l & 1) * kLanes)...));
  store(to + kLanes, EXPLAINFIX_SHUFFLE(even, odd, (kLanes / 2 + l / 2 + (l & 1) * kLanes)...));
}

// Shifts and adds the taps, to vectors [0, vectors) of the tile: dx[parity of the row][column]. `s` has the tile's
// masks.
template <int K>
void add_taps(const Stride2Grad& c, const Source& s, const float* taps, int vectors, float* dx) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  for (int k = 0; k < vectors; ++k) {
    V phase[2][2] = {};
    EXPLAINFIX_UNROLL for (int a = 0; a < K; ++a) {
      const int y = (a - K / 2) >> 1;  // floor: tap a of output row m reads grid row m + y
      EXPLAINFIX_UNROLL for (int b = 0; b < K; ++b) {
        const int x = (b - K / 2) >> 1;
        const Mask mask = s.rows[kMaxShift - y][k] & s.cols[kMaxShift - x][k];
        const float* tap = taps + (a * K + b) * c.line + k * kLanes - y * c.grid.grid_w - x;
        phase[(a - K / 2) & 1][(b - K / 2) & 1] += load(mask, tap);
      }
    }
    store_interleaved(dx + 2 * k * kLanes, phase[0][0], phase[0][1], lanes);
    store_interleaved(dx + c.dx_parity + 2 * k * kLanes, phase[1][0], phase[1][1], lanes);
  }
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
