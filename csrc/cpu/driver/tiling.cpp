// The driver of convolutions and of input gradients with stride 1; tiling.h says what each function does.
#include "cpu/driver/tiling.h"

#include <algorithm>

#include "cpu/driver/driver.h"
#include "cpu/driver/low_rank_blocks.h"
#include "cpu/driver/packed_blocks.h"

namespace explainfix {
namespace {

// Everything that follows from the sizes; the callers set the family's own, and the functions that run it spans and
// scratch memory.
TiledConv lay_out(const Correlation& conv) {
  TiledConv c{};
  c.x = planes_of(conv.x);
  c.y = planes_of(conv.y);
  c.images = int(conv.x.size(0));
  c.groups = int(conv.groups);
  c.in_channels = int(conv.x.size(1) / conv.groups);
  c.out_channels = int(conv.y.size(1) / conv.groups);
  c.height = int(conv.x.size(2));
  c.width = int(conv.x.size(3));
  c.out_height = int(conv.y.size(2));
  c.out_width = int(conv.y.size(3));
  c.kernel = int(conv.basis.size(1));
  c.stride = int(conv.stride[0]);
  lay_axis(c.height, c.out_height, c.kernel, c.stride, conv.padding[0], c.origin_y, c.offset_y, c.grid_h);
  lay_axis(c.width, c.out_width, c.kernel, c.stride, conv.padding[1], c.origin_x, c.offset_x, c.grid_w);
  c.x_is_grid = c.stride == 1 && is_grid(c, c.x, c.height, c.width);
  c.y_is_grid = is_grid(c, c.y, c.out_height, c.out_width);
  c.finish = conv.finish;
  return c;
}

// Cuts the columns into panels where x cannot be read in place. `c` gets their grid.
Panels cut_columns(TiledConv& c, const Correlation& conv) {
  const Columns columns{c.width, c.out_width, c.kernel, c.stride, conv.padding[1]};
  if (in_place(c) || panel_count(c.out_width) == 1) return Panels::whole(columns);
  const Panels panels = Panels::of_output(columns);
  c.grid_w = panels.grid_w;
  c.x_is_grid = c.y_is_grid = false;
  return panels;
}

// The convolution of a panel; `c` has all columns.
TiledConv columns_of(TiledConv c, const Panel& p) {
  c.x = from_column(c.x, p.in);
  c.y = from_column(c.y, p.out);
  if (c.finish.residual) c.finish.residual += p.out;  // which lies as y does
  c.width = int(p.in_size);
  c.out_width = int(p.out_size);
  c.origin_x = p.origin;
  c.offset_x = p.offset;
  return c;
}

// Sub-tiles of a tile. A longer tile reads fewer halo rows, but fills the cache; and the low-rank family reads all its
// coefficients once a tile.
constexpr int kSparseIndexSubTiles = 2, kLowRankSubTiles = 5;
// Of a panel: its halo is copied, and wide images have enough tiles for all threads.
constexpr int kPanelSubTiles = 6;

// Finds the longest tile whose scratch memory fits the cache.
void size_scratch(TiledConv& c, const Blocks& b, int sub, int lanes, int max_subs) {
  const int64_t pitch = int64_t(sub) * lanes;
  c.z_sub = b.max_rows * pitch;
  c.y_sub = (c.out_channels + 1) * pitch;
  const int most = (c.vectors + sub - 1) / sub;
  int subs = std::min(max_subs, most);
  for (;; --subs) {
    const int tiles = (most + subs - 1) / subs;
    c.tile_vectors = (most + tiles - 1) / tiles * sub;  // of about equal length, or a thread waits for another
    c.stage_phase = round_up(int64_t(c.tile_vectors + 3) * lanes + 2 * int64_t(c.kernel / 2) * c.grid_w);
    c.stage_channel = c.stage_phase * c.stride * c.stride;
    c.z_size = round_up(subs * c.z_sub);
    c.y_size = round_up(subs * c.y_sub);
    c.stage_size = c.staged ? b.max_channels * c.stage_channel : 0;
    if (subs == 1 || c.z_size + c.y_size + c.stage_size <= kScratchFloats) break;
  }
  c.line_size = round_up(int64_t(c.tile_vectors + 2) * lanes);
  c.tiles = (c.vectors + c.tile_vectors - 1) / c.tile_vectors;
}

using Tile = void (*)(const TiledConv&, int64_t task, float* scratch);

// Runs the tiles of a whole call. `wanted` is the number of tasks for each thread: where there are fewer, the outputs
// are split in up to `max_parts`, and every part transforms the input anew.
void run(TiledConv& c, const Correlation& conv, const Blocks& b, int lanes, int sub, Tile tile, int max_subs,
         int max_parts, int wanted) {
  const Panels panels = cut_columns(c, conv);
  choose_spans(c, lanes, b.work / std::max(c.in_channels, 1), true);
  c.block = b.blocks.data();
  c.block_begin = b.begin.data();
  c.group_blocks = b.group_blocks;
  size_scratch(c, b, sub, lanes, panels.panels.size() > 1 ? kPanelSubTiles : max_subs);
  const Masks masks(c, lanes);
  const int64_t tiles = int64_t(c.groups) * (c.images / c.span_images) * c.tiles;
  c.parts = parts_of(tiles * int64_t(panels.panels.size()), max_parts, wanted);
  const int64_t floats = c.z_size + c.y_size + c.stage_size + c.kernel * c.stride * c.line_size;
  // Where the whole call is less work than waking a thread (20,000 vector operations), it stays on this one.
  const double operations = b.work * c.vectors / std::max(c.tiles, 1);
  const int64_t grain = std::max<int64_t>(1, int64_t(2e4 / std::max(operations, 1.0)));
  run_tasks(each_panel(c, panels, columns_of), tiles * c.parts, grain, floats, tile);
}

constexpr int kDepthwiseVectors = 32;  // of a tile, whose line and planes then stay in the first-level cache

void run_planes(TiledConv& c, const Correlation& conv, const TileKernels& k) {
  const Panels panels = cut_columns(c, conv);
  choose_spans(c, k.lanes, 0, false);
  c.tiles = (c.vectors + kDepthwiseVectors - 1) / kDepthwiseVectors;
  c.tile_vectors = (c.vectors + c.tiles - 1) / c.tiles;
  c.line_size = round_up(int64_t(c.tile_vectors + 2) * k.lanes);
  c.y_size = c.line_size;
  c.stage_phase = round_up(int64_t(c.tile_vectors + 3) * k.lanes + 2 * int64_t(c.kernel / 2) * c.grid_w);
  c.stage_channel = c.stage_phase * c.stride * c.stride;
  const Masks masks(c, k.lanes);
  const int64_t floats = c.stride * c.line_size + c.y_size + (c.staged ? c.stage_channel : 0);
  const int64_t grain = std::max<int64_t>(1, 2000 / c.vectors);
  run_tasks(each_panel(c, panels, columns_of), int64_t(c.images) * c.groups * c.out_channels, grain, floats,
            k.depthwise);
}

// The bias as float32, whichever dtype it had; keeps the memory alive that c.bias points to.
struct Bias {
  std::vector<float> values;

  Bias(TiledConv& c, const std::optional<Tensor>& bias) {
    if (!bias) return;
    values = floats_of(*bias);
    c.bias = values.data();
  }
};

}  // namespace

bool tiles_fit(const Tensor& x, const Tensor& basis, const std::vector<int64_t>& stride,
               const std::vector<int64_t>& dilation) {
  const int64_t kernel = basis.size(1);
  const bool odd = kernel == basis.size(2) && (kernel == 3 || kernel == 5 || kernel == 7);
  const bool steps = stride[0] == stride[1] && stride[0] <= 2 && dilation[0] == 1 && dilation[1] == 1;
  return odd && steps && (x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16);
}

void run_sparse_index(const Correlation& conv, const Tensor& packed, bool input_grad) {
  if (conv.y.numel() == 0) return;
  TiledConv c = lay_out(conv);
  const PackedWords words(packed);
  const Basis basis = read_index_basis(c, conv, words);
  const Bias bias(c, conv.bias);
  c.chunks = (c.out_channels + kIndexChunkOutputs - 1) / kIndexChunkOutputs;
  const Blocks blocks = read_sparse_index_blocks(words, c, input_grad);
  const TileKernels& k = kernels();
  run(c, conv, blocks, k.lanes, k.sparse_index_vectors, k.sparse_index, kSparseIndexSubTiles, c.chunks, 1);
}

bool run_depthwise(const Correlation& conv, const Tensor& index) {
  TiledConv c = lay_out(conv);
  const Basis basis = read_basis(c, conv, Functions::kDct);
  if (!c.separable || conv.y.numel() == 0) return c.separable;
  const Bias bias(c, conv.bias);
  const Tensor functions = dense_in(index);
  std::vector<int32_t> names;
  for (int64_t o = 0; o < functions.numel(); ++o) {
    const int l = functions.const_data_ptr<uint8_t>()[o];
    names.push_back(l < c.rank ? basis.names[l] : kNoFunction);
  }
  c.names = names.data();
  run_planes(c, conv, kernels());
  return true;
}

void run_low_rank(const Correlation& conv, const Tensor& coeff, bool input_grad) {
  if (conv.y.numel() == 0) return;
  TiledConv c = lay_out(conv);
  const Basis basis = read_basis(c, conv, Functions::kDistinct);
  const Bias bias(c, conv.bias);
  const Tensor s = dense_in(coeff);  // (O, I/groups, L)
  const int64_t row = s.size(1) * s.size(2);
  c.coeff = s.const_data_ptr<float>();
  c.coeff_out = input_grad ? s.size(2) : row;
  c.coeff_in = input_grad ? row : s.size(2);
  c.group_coeff = s.size(0) / conv.groups * row;
  const Blocks blocks = make_low_rank_blocks(c, basis.names);
  const TileKernels& k = kernels();
  run(c, conv, blocks, k.lanes, k.low_rank_vectors, k.low_rank, kLowRankSubTiles, std::max(1, c.out_channels / 8), 2);
}

}  // namespace explainfix
