// The input gradient with stride 2, of the sparse index and the low-rank family. A task is a tile of dy's grid and a
// part of the input channels: dy is copied to z; the families sum it to g, which has, for each function of each input
// channel, what the outputs give that use it; stride2_taps.h filters g to dx. Called through TileKernels.
#pragma once

#include "cpu/tile/low_rank.h"
#include "cpu/tile/sparse_index.h"
#include "cpu/tile/stride2_taps.h"

namespace explainfix {
namespace EXPLAINFIX_ISA {

// Copies the gradients of all outputs at the pixels of `t` to rows 1, 2, ... of z; row 0 is zero.
template <int sub>
EXPLAINFIX_INLINE void stage_outputs(const Stride2Grad& c, const Task& t, float* z) {
  const auto stage_from = c.grid.x.bf16 ? stage<uint16_t> : stage<float>;
  for (int b = 0; b < t.subs; ++b) {
    const int64_t begin = int64_t(t.vector + b * sub) * kLanes;
    stage_from(c.grid, t.span, t.group * c.grid.in_channels, c.grid.in_channels, begin, begin + sub * kLanes,
               z + b * c.z_sub + sub * kLanes);
  }
  // Zeros come last, for copies end in whole vectors and may write here.
  for (int b = 0; b < t.subs; ++b) memset(z + b * c.z_sub, 0, sub * kLanes * sizeof(float));
}

// Accumulators of four rows of g at sub-tile b. The row after the last one is read by nobody: four may be more than are
// left.
template <int sub>
EXPLAINFIX_INLINE Accumulators open_sums(const Stride2Grad& c, int b, const int32_t* row, float* g, bool first) {
  Accumulators a{};
  a.first = first;
  for (int i = 0; i < 4; ++i) a.y[i] = g + (1 + row[i]) * c.line + b * sub * kLanes;
  return a;
}

// Does the task, block after block of input channels, where the family sums z to g: combine(t, block, z, g), and t is
// the tile with its halo.
template <int sub, class Combine>
EXPLAINFIX_INLINE void run_stride2_grad_tile(const Stride2Grad& c, int64_t number, float* scratch, Combine&& combine) {
  const Task t = task_of(c.grid, number, sub);
  Task wide = t;
  wide.vector = t.vector > c.before ? t.vector - c.before : 0;
  const int end = t.vector + t.vectors + c.after;
  wide.vectors = (end < c.grid.vectors ? end : c.grid.vectors) - wide.vector;
  wide.subs = (wide.vectors + sub - 1) / sub;
  float *z = scratch, *g = z + c.z_size, *taps = g + c.g_size, *dx = taps + c.grid.kernel * c.grid.kernel * c.line;
  stage_outputs<sub>(c, wide, z);
  memset(g, 0, c.line * sizeof(float));
  const int64_t pixel = 2 * int64_t(t.vector) * kLanes, pixel_end = pixel + 2 * t.vectors * kLanes;
  const Source s = source_of(c.grid, t, t.vectors);
  const Stride2Block* blocks = c.block + (c.group_blocks ? t.group * c.blocks : 0);
  const int block_end = part_begin(c.blocks, t.part + 1, c.grid.parts);
  for (int i = part_begin(c.blocks, t.part, c.grid.parts); i < block_end; ++i) {
    const Stride2Block& block = blocks[i];
    combine(wide, block, z, g);
    for (int channel = block.channel_begin; channel < block.channel_end; ++channel) {
      const int32_t* row = block.row + (channel - block.channel_begin) * c.functions;
      float* to = dx + (channel - block.channel_begin) * 2 * c.dx_parity;
      for (int parity = 0; parity < 2; ++parity) {
        prefetch_output(c.parities[parity], t.span, t.group * c.parities[0].out_channels + channel, pixel, pixel_end);
      }
      const float* tile_taps = taps + (t.vector - wide.vector) * kLanes;
      with_kernel(c.grid.kernel, [&](auto K) {
        (c.grid.separable ? compose_taps<K()> : compose_any_taps<K()>)(c, row, g, wide.vectors, taps);
        add_taps<K()>(c, s, tile_taps, t.vectors, to);
      });
    }
    for (int parity = 0; parity < 2; ++parity) {
      const TiledConv& rows = c.parities[parity];
      const auto unstage_to = rows.y.bf16 ? unstage<uint16_t> : unstage<float>;
      unstage_to(rows, t.span, t.group * rows.out_channels, block.channel_begin, block.channel_end, pixel, pixel_end,
                 dx + parity * c.dx_parity - block.channel_begin * 2 * c.dx_parity, 2 * c.dx_parity);
    }
  }
}

template <int sub>
void sparse_index_stride2_grad_tile(const Stride2Grad& c, int64_t number, float* scratch) {
  run_stride2_grad_tile<sub>(
      c, number, scratch, [&](const Task& t, const Stride2Block& block, const float* z, float* g) {
        for (int b = 0; b < t.subs; ++b) {
          with_vectors<sub>(t, b, [&](auto vectors) {
            for (int k = 0; k < c.out_blocks; ++k) {
              const uint16_t* rows = block.list[k].rows;
              for (int i = 0; i < block.list[k].size; ++i) {
                const Quad& quad = block.list[k].quad[i];
                gather<sub, vectors()>(z + b * c.z_sub, rows, quad, open_sums<sub>(c, b, quad.output, g, k == 0));
                rows += 4 * rows_of(quad);
              }
            }
          });
        }
      });
}

template <int sub>
void low_rank_stride2_grad_tile(const Stride2Grad& c, int64_t number, float* scratch) {
  const TiledConv& grid = c.grid;
  run_stride2_grad_tile<sub>(
      c, number, scratch, [&](const Task& t, const Stride2Block& block, const float* z, float* g) {
        const int sums = (block.channel_end - block.channel_begin) * grid.rank;
        const float* coeff = grid.coeff + t.group * grid.group_coeff + block.channel_begin * grid.rank;
        for (int k = 0; k < c.out_blocks; ++k) {
          const int o_begin = part_begin(grid.in_channels, k, c.out_blocks);
          const int o_end = part_begin(grid.in_channels, k + 1, c.out_blocks);
          for (int first = 0; first < sums; first += 4) {
            const float* s[4];
            int32_t row[4];
            for (int i = 0; i < 4; ++i) {
              row[i] = first + i < sums ? first + i : sums;
              s[i] = coeff + o_begin * grid.coeff_in + (row[i] < sums ? row[i] : sums - 1);
            }
            for (int b = 0; b < t.subs; ++b) {
              with_vectors<sub>(t, b, [&](auto vectors) {
                const float* from = z + b * c.z_sub + (1 + o_begin) * sub * kLanes;
                multiply<sub, vectors()>(from, s, grid.coeff_in, o_end - o_begin, 1,
                                         open_sums<sub>(c, b, row, g, k == 0));
              });
            }
          }
        }
      });
}

}  // namespace EXPLAINFIX_ISA
}  // namespace explainfix
