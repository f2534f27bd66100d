// The low-rank family: each filter is a combination of all basis functions, of which there are few. An output is a sum
// of all rows of z times coefficients. Called through TileKernels.
#pragma once

#include "cpu/tile/tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Adds to each of four outputs all rows of z, each times a coefficient: row r of channel i times s[o][i * in + r].
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

// Task: a tile, and the outputs of its part, four at a time.
template <int sub>
void low_rank_tile(const TiledConv& c, int64_t number, float* scratch) {
  const Task t = task_of(c, number, sub);
  const int quads = (c.out_channels + 3) / 4;
  const int o_begin = 4 * part_begin(quads, t.part, c.parts), o_stop = 4 * part_begin(quads, t.part + 1, c.parts);
  const int o_end = o_stop < c.out_channels ? o_stop : c.out_channels;
  const float* group = c.coeff + int64_t(t.group) * c.group_coeff;
  run_tile<sub>(c, t, o_begin, o_end, scratch, [&](const Block& block, const float* z, auto&& open) {
    const int channels = block.channel_end - block.channel_begin;
    for (int o = o_begin; o < o_end; o += 4) {
      const float* s[4];
      int32_t output[4];
      for (int i = 0; i < 4; ++i) {
        output[i] = o + i < c.out_channels ? o + i : c.out_channels;
        const int real = o + i < c.out_channels ? o + i : c.out_channels - 1;
        s[i] = group + real * c.coeff_out + block.channel_begin * c.coeff_in;
      }
      for (int b = 0; b < t.subs; ++b) {  // innermost: many coefficients come from far, and are used for all of them
        with_vectors<sub>(t, b, [&](auto vectors) {
          const float* first = z + b * c.z_sub + sub * kLanes;
          multiply<sub, vectors()>(first, s, c.coeff_in, channels, c.rank, open(b, output));
        });
      }
    }
  });
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
