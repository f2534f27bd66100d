// The driver of the input gradient with stride 2; cpu/driver/tiling.h says what each function does, and
// cpu/tile/stride2_taps.h how the gradient is computed.
#include "cpu/driver/driver.h"
#include "cpu/driver/low_rank_blocks.h"
#include "cpu/driver/packed_blocks.h"

namespace explainfix {
namespace {

// The rows of dx with h + offset even (parity 0) or odd (1), as a grid of twice the width sees them.
TiledConv rows_of(const TiledConv& grid, const Tensor& dx, int parity, int offset_y) {
  TiledConv c = grid;
  const int height = int(dx.size(2)), first = (parity + offset_y) & 1;
  c.y = planes_of(dx);
  c.y.data = static_cast<char*>(c.y.data) + first * c.y.h * (c.y.bf16 ? 2 : 4);
  c.y.h *= 2;
  c.y_is_grid = false;
  c.out_channels = int(dx.size(1) / c.groups);
  c.out_height = (height - first + 1) / 2;
  c.out_width = int(dx.size(3));
  c.origin_y = (first + offset_y) / 2;
  c.grid_w *= 2;
  c.span_pixels *= 2;
  return c;
}

Panels cut_columns(const Correlation& conv) {
  return Panels::of_input({conv.y.size(3), conv.x.size(3), conv.basis.size(1), 2, conv.padding[1]});
}

// All columns, on the grid of the panels. Here conv.x is dy and conv.y is dx. The grid is the forward convolution's.
Stride2Grad lay_out(const Correlation& conv, const Panels& panels, int lanes) {
  Stride2Grad t{};
  TiledConv& c = t.grid;
  c.x = planes_of(conv.x);
  c.images = int(conv.x.size(0));
  c.groups = int(conv.groups);
  c.in_channels = int(conv.x.size(1) / conv.groups);
  c.height = int(conv.x.size(2));
  c.width = int(conv.x.size(3));
  c.kernel = int(conv.basis.size(1));
  c.stride = 1;
  int offset_y;  // of dx; dy lies on the grid from the output's origin on
  lay_axis(conv.y.size(2), c.height, c.kernel, 2, conv.padding[0], c.offset_y, offset_y, c.grid_h);
  c.grid_w = panels.grid_w;
  c.x_is_grid = panels.panels.size() == 1 && is_grid(c, c.x, c.height, c.width);
  // Images share a range of pixels where that fills lanes which would idle: dy is copied anyway.
  const int64_t plane = int64_t(c.grid_h) * c.grid_w, lanes_used = (plane + lanes - 1) / lanes * lanes;
  c.span_images = lanes_used * 16 > plane * 17 ? c.images : 1;
  c.span_pixels = plane * c.span_images;
  c.vectors = int((c.span_pixels + lanes - 1) / lanes);
  for (int parity = 0; parity < 2; ++parity) t.parities[parity] = rows_of(c, conv.y, parity, offset_y);
  return t;
}

// The gradient for the columns of a panel; `t` has all of them.
Stride2Grad columns_of(Stride2Grad t, const Panel& p) {
  t.grid.x = from_column(t.grid.x, p.out);
  t.grid.width = int(p.out_size);
  t.grid.offset_x = p.origin;
  for (TiledConv& rows : t.parities) {
    rows.y = from_column(rows.y, p.in);
    rows.out_width = int(p.in_size);
    rows.origin_x = p.offset;
  }
  return t;
}

constexpr int kTilePixels = 448;  // of a tile, at least where scratch memory has room

// A tile needs dy in its halo too, so tiles should be long; but all of dy's channels must fit the cache.
void size_scratch(Stride2Grad& t, const Stride2Blocks& b, int sub, int lanes) {
  TiledConv& c = t.grid;
  const int reach = c.kernel / 2, up = (reach + 1) / 2, down = reach / 2, pixels = c.grid_w + 1;
  t.after = (up * pixels + lanes - 1) / lanes;
  t.before = (down * pixels + lanes - 1) / lanes;
  const int halo = t.before + t.after;
  for (int subs = std::max(kTilePixels / lanes, 3 * halo) / sub + 1;; --subs) {
    const int longest = c.vectors <= subs * sub ? c.vectors : subs * sub - halo;
    c.tiles = (c.vectors + longest - 1) / longest;
    c.tile_vectors = (c.vectors + c.tiles - 1) / c.tiles;
    const int wide = std::min(c.vectors, c.tile_vectors + halo), wide_subs = (wide + sub - 1) / sub;
    t.line = int64_t(wide_subs) * sub * lanes;
    t.z_sub = int64_t(c.in_channels + 1) * sub * lanes;
    t.z_size = round_up(wide_subs * t.z_sub + lanes);  // copies end in whole vectors
    t.g_size = (b.max_rows + 2) * t.line;
    t.dx_parity = round_up(2 * int64_t(c.tile_vectors) * lanes);
    if ((subs - 1) * sub <= 2 * halo || t.z_size + t.g_size <= kScratchFloats) return;
  }
}

void run(Stride2Grad& t, const Panels& panels, const Stride2Blocks& b, int lanes, int sub,
         void (*tile)(const Stride2Grad&, int64_t task, float* scratch)) {
  TiledConv& c = t.grid;
  t.block = b.blocks.data();
  t.blocks = b.per_group;
  t.out_blocks = b.out_blocks;
  t.functions = b.functions;
  t.group_blocks = b.group_blocks;
  size_scratch(t, b, sub, lanes);
  c.stage_channel = c.stage_phase = int64_t(sub) * lanes;
  const Masks masks(c, lanes);
  const int64_t tiles = int64_t(c.groups) * (c.images / c.span_images) * c.tiles;
  c.parts = parts_of(tiles * int64_t(panels.panels.size()), b.per_group, 1);
  const int64_t taps = int64_t(c.kernel) * c.kernel * t.line;
  // One vector more, for copies to dx read whole vectors.
  const int64_t floats = round_up(t.z_size + t.g_size + taps + 2 * b.max_channels * t.dx_parity + lanes);
  const double operations = b.work * c.vectors / std::max(c.tiles, 1);
  run_tasks(each_panel(t, panels, columns_of), tiles * c.parts,
            std::max<int64_t>(1, int64_t(2e4 / std::max(operations, 1.0))), floats, tile);
}

}  // namespace

void run_sparse_index_stride2_grad(const Correlation& conv, const Tensor& packed) {
  if (conv.y.numel() == 0) return;
  const TileKernels& k = kernels();
  const Panels panels = cut_columns(conv);
  Stride2Grad t = lay_out(conv, panels, k.lanes);
  const PackedWords words(packed);
  const Basis basis = read_index_basis(t.grid, conv, words);
  run(t, panels, read_sparse_index_stride2_blocks(words, t), k.lanes, k.sparse_index_vectors,
      k.sparse_index_stride2_grad);
}

void run_low_rank_stride2_grad(const Correlation& conv, const Tensor& coeff) {
  if (conv.y.numel() == 0) return;
  const TileKernels& k = kernels();
  const Panels panels = cut_columns(conv);
  Stride2Grad t = lay_out(conv, panels, k.lanes);
  const Basis basis = read_basis(t.grid, conv, Functions::kDistinct);
  const Tensor s = dense_in(coeff);  // (O, I/groups, L)
  t.grid.coeff = s.const_data_ptr<float>();
  t.grid.coeff_in = s.size(1) * s.size(2);  // z's channels are the outputs
  t.grid.group_coeff = s.size(0) / conv.groups * t.grid.coeff_in;
  run(t, panels, make_low_rank_stride2_blocks(t, basis.names), k.lanes, k.low_rank_vectors, k.low_rank_stride2_grad);
}

}  // namespace explainfix
