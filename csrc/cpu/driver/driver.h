// What the drivers of the tile kernels (tiling.cpp, stride2_grad.cpp) and the CPU's passes share: which kernels to run,
// how x and y are laid on the grid, and threads with scratch memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "cpu/driver/basis.h"
#include "cpu/driver/grid.h"
#include "cpu/driver/panels.h"
#include "cpu/driver/tiling.h"
#include "cpu/tile/tiled_conv.h"

namespace explainfix {

// The tile kernels of the instruction set in use.
const TileKernels& kernels();

inline Planes planes_of(const Tensor& t) {
  return {t.data_ptr(), t.scalar_type() == ScalarType::BFloat16, t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// Fills in c's basis. Keep the result while c is used: c.taps points into it.
inline Basis read_basis(TiledConv& c, const Correlation& conv, Functions wanted) {
  const Tensor basis = dense_in(conv.basis);
  const double* data = basis.const_data_ptr<double>();
  return Basis(c, std::vector<double>(data, data + basis.numel()), conv.flipped, conv.scale, wanted);
}

// Are the plane's pixels the grid's, one row after the other without gaps?
inline bool is_grid(const TiledConv& c, const Planes& p, int height, int width) {
  return height == c.grid_h && width == c.grid_w && p.h == width * p.w;
}

// May a tile read x in place?
inline bool in_place(const TiledConv& c) { return c.x_is_grid && !c.x.bf16 && c.x.w == 1; }

// Cost of copying a vector of x into scratch, in the vector operations that Blocks::work counts. Measured.
constexpr double kStageCost = 6;

// Decides whether x is read in place, and how many images share a flat range of pixels (a span): putting all images in
// one fills the lanes that small planes leave idle, but x must then be copied.
inline void choose_spans(TiledConv& c, int lanes, double work_per_channel, bool may_pack) {
  const int64_t plane = int64_t(c.grid_h) * c.grid_w, vectors = (plane + lanes - 1) / lanes;
  const double waste = double(vectors * lanes) / double(plane) - 1;
  const bool pack = may_pack && c.images > 1 && waste * work_per_channel > (in_place(c) ? kStageCost : 0);
  c.span_images = pack ? c.images : 1;
  c.staged = !in_place(c) || pack;
  c.direct_store = !pack && c.y_is_grid && !c.y.bf16 && c.y.w == 1;
  c.span_pixels = plane * c.span_images;
  c.vectors = int((c.span_pixels + lanes - 1) / lanes);
}

// Tasks that share the outputs of a tile, `most` at most: more than one where there would be fewer than `wanted` tasks
// for each thread.
inline int parts_of(int64_t tiles, int64_t most, int64_t wanted) {
  const int64_t tasks = wanted * thread_count();
  return int(std::max<int64_t>(1, std::min<int64_t>(most, (tasks + tiles - 1) / tiles)));
}

// The convolutions of all panels; `c` has all columns.
template <class Conv>
std::vector<Conv> each_panel(const Conv& c, const Panels& panels, Conv (*columns_of)(Conv, const Panel&)) {
  std::vector<Conv> convs;
  for (const Panel& p : panels.panels) convs.push_back(columns_of(c, p));
  return convs;
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};

inline int64_t round_up(int64_t floats) { return (floats + 15) / 16 * 16; }

// Calls work(next) on each of the host's threads. next() gives it the number of a task, `tasks` when all are taken:
// threads take them one by one, `grain` together, so that none waits long for one that the system has stopped.
template <class Work>
void share_tasks(int64_t tasks, int64_t grain, Work&& work) {
  std::atomic<int64_t> taken{0};
  const int64_t most = (tasks + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(thread_count(), most);
  parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    int64_t task = 0, end = 0;
    work([&]() {
      if (task == end) {
        task = taken.fetch_add(grain);
        end = task + grain;
      }
      return std::min(task++, tasks);
    });
  });
}

// Calls tile(panel, task, scratch) for all `tasks` of each panel on the host's threads, each with scratch memory of
// `floats` of its own.
template <class Conv>
void run_tasks(const std::vector<Conv>& panels, int64_t tasks, int64_t grain, int64_t floats,
               void (*tile)(const Conv&, int64_t task, float* scratch)) {
  const int64_t all = int64_t(panels.size()) * tasks;
  share_tasks(all, grain, [&](auto&& next) {
    const std::unique_ptr<float, Free> scratch(static_cast<float*>(std::aligned_alloc(64, round_up(floats) * 4)));
    EXPLAINFIX_CHECK(scratch, "no memory for ", floats * 4, " bytes of scratch");
    for (int64_t task; (task = next()) < all;) tile(panels[task / tasks], task % tasks, scratch.get());
  });
}

constexpr int64_t kScratchFloats = 1 << 18;  // that tiles are sized for: 1 MB a thread

}  // namespace explainfix
