// The sparse index family: each filter is one basis function, or its negative, or zero. An output adds or subtracts the
// rows of z that its filters name; the lists of them are Python's (pack_index). Called through TileKernels.
#pragma once

#include "cpu/tile/tile.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Adds to each of four outputs the rows of z that its list names, and then subtracts. One 64-bit load brings the
// numbers of the next row of all four, a step before they are used.
template <int sub, int P>
void gather(const float* z, const uint16_t* rows, const Quad& quad, const Accumulators& a) {
  accumulate<P>(a, [&](V(&acc)[4][P]) __attribute__((always_inline)) {
    constexpr uint64_t pitch = sub * kLanes * sizeof(float);
    const char* base = reinterpret_cast<const char*>(z);
    uint64_t next;
    memcpy(&next, rows, 8);
    const auto each_row = [&](int count, auto subtract) __attribute__((always_inline)) {
      for (int i = 0; i < count; ++i) {
        const uint64_t now = next;
        memcpy(&next, rows += 4, 8);  // the row after the list: the next quad's, or padding
        const float* r[4];
        EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
          r[o] = reinterpret_cast<const float*>(base + (now >> 16 * o & 0xffff) * pitch);
        }
        EXPLAINFIX_UNROLL for (int o = 0; o < 4; ++o) {
          EXPLAINFIX_UNROLL for (int p = 0; p < P; ++p) {
            const V row = load(r[o] + p * kLanes);
            acc[o][p] = subtract ? acc[o][p] - row : acc[o][p] + row;
          }
        }
      }
    };
    each_row(quad.added, std::false_type());
    each_row(quad.subtracted, std::true_type());
  });
}

EXPLAINFIX_INLINE int rows_of(const Quad& quad) { return quad.added + quad.subtracted; }

// The largest of the numbers of rows that lists name: the driver checks it before anything is gathered. That takes a
// few percent of the smallest calls, which is why it is compiled for each instruction set.
inline uint16_t largest(const uint16_t* number, int64_t count) {
  uint16_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = number[i] > most ? number[i] : most;
  return most;
}

// Task: a tile, and the chunks of outputs of its part.
template <int sub>
void sparse_index_tile(const TiledConv& c, int64_t number, float* scratch) {
  const Task t = task_of(c, number, sub);
  const int chunk_begin = part_begin(c.chunks, t.part, c.parts), chunk_end = part_begin(c.chunks, t.part + 1, c.parts);
  const int o_begin = chunk_begin * kIndexChunkOutputs, o_end = chunk_end * kIndexChunkOutputs;
  run_tile<sub>(c, t, o_begin, o_end < c.out_channels ? o_end : c.out_channels, scratch,
                [&](const Block& block, const float* z, auto&& open) {
                  for (int b = 0; b < t.subs; ++b) {
                    with_vectors<sub>(t, b, [&](auto vectors) {
                      for (int k = chunk_begin; k < chunk_end; ++k) {
                        const uint16_t* rows = block.list[k].rows;
                        for (int i = 0; i < block.list[k].size; ++i) {
                          const Quad& quad = block.list[k].quad[i];
                          gather<sub, vectors()>(z + b * c.z_sub, rows, quad, open(b, quad.output));
                          rows += 4 * rows_of(quad);
                        }
                      }
                    });
                  }
                });
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
