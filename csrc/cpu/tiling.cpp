#include "tiling.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "basis.h"
#include "blocks.h"
#include "grid.h"
#include "tiled_conv.h"

namespace explainfix {

// Levels of cpu_isa: 0 plain, 1 AVX2, 2 AVX-512.
namespace plain {
extern const TileKernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const TileKernels kernels;
}
namespace avx512 {
extern const TileKernels kernels;
}
#endif

namespace {

int best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return 2;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

std::atomic<int> isa_limit{2};

const TileKernels& kernels() {
#if defined(__x86_64__)
  switch (cpu_isa(-1)) {
    case 2:
      return avx512::kernels;
    case 1:
      return avx2::kernels;
  }
#endif
  return plain::kernels;
}

Planes planes_of(const Tensor& t) {
  return {t.data_ptr(), t.scalar_type() == ScalarType::BFloat16, t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

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
  return c;
}

// `in_order`: only the full DCT in raster order counts as separable.
Basis read_basis(TiledConv& c, const Correlation& conv, bool in_order) {
  const Tensor basis = torch::stable::contiguous(conv.basis);
  const double* data = basis.const_data_ptr<double>();
  return Basis(c, std::vector<double>(data, data + basis.numel()), conv.flipped, conv.scale, in_order);
}

bool is_grid(const TiledConv& c, const Planes& p, int height, int width) {
  return !p.bf16 && height == c.grid_h && width == c.grid_w && p.w == 1 && p.h == width;
}

// Cost of copying a vector of x into scratch, in the vector operations that Blocks::work counts. Measured.
constexpr double kStageCost = 6;

// Whether x is read in place, and how many images share a flat range. Packing images fills the lanes of small planes.
void choose_spans(TiledConv& c, int lanes, double work_per_channel, bool may_pack) {
  const int64_t plane = int64_t(c.grid_h) * c.grid_w, vectors = (plane + lanes - 1) / lanes;
  const bool in_place = c.stride == 1 && is_grid(c, c.x, c.height, c.width) && c.offset_y == 0 && c.offset_x == 0;
  const double waste = double(vectors * lanes) / double(plane) - 1;
  const bool pack = may_pack && c.images > 1 && waste * work_per_channel > (in_place ? kStageCost : 0);
  c.span_images = pack ? c.images : 1;
  c.staged = !in_place || pack;
  c.direct_store = !pack && is_grid(c, c.y, c.out_height, c.out_width) && c.origin_y == 0 && c.origin_x == 0;
  c.span_pixels = plane * c.span_images;
  c.vectors = int((c.span_pixels + lanes - 1) / lanes);
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};

int64_t round_up(int64_t floats) { return (floats + 15) / 16 * 16; }

using Tile = void (*)(const TiledConv&, int64_t task, float* scratch);

void run_tasks(const TiledConv& c, int64_t tasks, int64_t grain, int64_t floats, Tile tile) {
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float, Free> scratch(static_cast<float*>(std::aligned_alloc(64, floats * 4)));
    STD_TORCH_CHECK(scratch, "no memory for ", floats * 4, " bytes of scratch");
    for (int64_t task = begin; task < end; ++task) tile(c, task, scratch.get());
  });
}

constexpr int64_t kScratchFloats = 1 << 18;  // 1 MB a thread
// A longer tile reads fewer halo rows, but fills the cache. The low-rank family also reads its coefficients once a
// tile.
constexpr int kIndexSubTiles = 2, kLowRankSubTiles = 5;

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

// `wanted`: tasks a thread. Where there are fewer, the outputs are split, and every part transforms the input anew.
void run(TiledConv& c, const Blocks& b, int lanes, int sub, Tile tile, int max_subs, int max_parts, int wanted) {
  choose_spans(c, lanes, b.work / std::max(c.in_channels, 1), true);
  c.block = b.blocks.data();
  c.block_begin = b.begin.data();
  c.group_blocks = b.per_group;
  size_scratch(c, b, sub, lanes, max_subs);
  const Masks masks(c, lanes);
  const int64_t tasks = int64_t(c.groups) * (c.images / c.span_images) * c.tiles;
  const int64_t threads = torch::stable::get_num_threads();
  c.parts = int(std::max<int64_t>(1, std::min<int64_t>(max_parts, (wanted * threads + tasks - 1) / tasks)));
  const int64_t floats = c.z_size + c.y_size + c.stage_size + c.kernel * c.stride * c.line_size;
  // Where the whole call is less work than waking a thread, it stays on this one.
  const double operations = b.work * c.vectors / std::max(c.tiles, 1);
  const int64_t grain = std::max<int64_t>(1, int64_t(2e4 / std::max(operations, 1.0)));
  run_tasks(c, tasks * c.parts, grain, floats, tile);
}

constexpr int kDepthwiseVectors = 32;  // of a tile: its line and planes stay in the first-level cache

void run_planes(TiledConv& c, const TileKernels& k) {
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
  run_tasks(c, int64_t(c.images) * c.groups * c.out_channels, grain, floats, k.depthwise);
}

// float32 of a bias of either dtype; keeps it alive.
struct Bias {
  std::vector<float> values;

  Bias(TiledConv& c, const std::optional<Tensor>& bias) {
    if (!bias) return;
    const Tensor b = torch::stable::contiguous(*bias);
    for (int64_t i = 0; i < b.numel(); ++i) {
      values.push_back(b.scalar_type() == ScalarType::Float
                           ? b.const_data_ptr<float>()[i]
                           : float(b.const_data_ptr<torch::headeronly::BFloat16>()[i]));
    }
    c.bias = values.data();
  }
};

}  // namespace

int64_t cpu_isa(int64_t level) {
  if (level >= 0) isa_limit = int(std::min<int64_t>(level, 2));
  static const int best = best_isa();
  return std::min(best, isa_limit.load());
}

bool tiles_fit(const Tensor& x, const Tensor& basis, const std::vector<int64_t>& stride,
               const std::vector<int64_t>& dilation) {
  const int64_t kernel = basis.size(1);
  const bool odd = kernel == basis.size(2) && (kernel == 3 || kernel == 5 || kernel == 7);
  const bool steps = stride[0] == stride[1] && stride[0] <= 2 && dilation[0] == 1 && dilation[1] == 1;
  return odd && steps && (x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16);
}

void run_index(const Correlation& conv, const Tensor& packed, bool transposed) {
  if (conv.y.numel() == 0) return;
  TiledConv c = lay_out(conv);
  const Basis basis = read_basis(c, conv, true);
  const Bias bias(c, conv.bias);
  const Blocks blocks = read_index_blocks(packed.const_data_ptr<int32_t>(), transposed);
  const TileKernels& k = kernels();
  c.chunks = (c.out_channels + kChunk - 1) / kChunk;
  run(c, blocks, k.lanes, k.index_vectors, k.index, kIndexSubTiles, c.chunks, 1);
}

bool run_depthwise(const Correlation& conv, const Tensor& index) {
  TiledConv c = lay_out(conv);
  const Basis basis = read_basis(c, conv, true);
  if (!c.separable || conv.y.numel() == 0) return c.separable;
  const Bias bias(c, conv.bias);
  const Tensor names = torch::stable::contiguous(index);
  c.index = names.const_data_ptr<uint8_t>();
  run_planes(c, kernels());
  return true;
}

void run_low_rank(const Correlation& conv, const Tensor& coeff, bool transposed) {
  if (conv.y.numel() == 0) return;
  TiledConv c = lay_out(conv);
  const Basis basis = read_basis(c, conv, false);
  const Bias bias(c, conv.bias);
  const Tensor s = torch::stable::contiguous(coeff);  // (O, I/groups, L)
  const int64_t row = s.size(1) * s.size(2);
  c.coeff = s.const_data_ptr<float>();
  c.coeff_out = transposed ? s.size(2) : row;
  c.coeff_in = transposed ? row : s.size(2);
  c.group_coeff = s.size(0) / conv.groups * row;
  const Blocks blocks = make_low_rank_blocks(c, basis.names);
  const TileKernels& k = kernels();
  run(c, blocks, k.lanes, k.low_rank_vectors, k.low_rank, kLowRankSubTiles, std::max(1, c.out_channels / 8), 2);
}

}  // namespace explainfix
