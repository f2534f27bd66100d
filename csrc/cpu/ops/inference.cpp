// The ops of explainfix_ext/ops/inference.py on the CPU: what a network that only infers needs beside its convolutions.
// They check the arguments, and run the kernels of the instruction set in use on torch's threads. float32 without gaps;
// Python runs the references for anything else.
#include "cpu/tile/inference.h"

#include <algorithm>

#include "cpu/driver/driver.h"
#include "torch_api/pool_ops.h"

namespace explainfix {
namespace {

void check_images(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.scalar_type() == ScalarType::Float && t.is_contiguous(), name,
                  " must be Float [N, C, H, W], contiguous, got ", describe(t));
}

const float* numbers(const std::optional<Tensor>& t, const char* name, int64_t channels) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == channels && t->scalar_type() == ScalarType::Float && t->is_cpu() &&
                      t->is_contiguous(),
                  name, " must be Float [", channels, "], contiguous, got ", describe(*t));
  return t->const_data_ptr<float>();
}

Finish checked_finish(const Tensor& y, const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                      const std::optional<Tensor>& residual, int64_t act, double slope) {
  STD_TORCH_CHECK(act >= 0 && act < kActs, "act must be in [0, ", kActs, "), got ", act);
  Finish f{numbers(scale, "scale", y.size(1)), numbers(bias, "bias", y.size(1)), nullptr, int(act), float(slope)};
  if (residual) {
    check_images(*residual, "residual");
    check_device(*residual, y, "residual");
    for (int64_t axis = 0; axis < 4; ++axis) {
      STD_TORCH_CHECK(residual->size(axis) == y.size(axis), "residual must have y's shape, ", describe(y), ", got ",
                      describe(*residual));
    }
    f.residual = residual->const_data_ptr<float>();
  }
  return f;
}

// Subnormal numbers, which cost a hundred cycles each, count as zero within the kernels' loops.
class FlushSubnormals {
#if defined(__x86_64__)
 public:
  FlushSubnormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#else
 public:
  FlushSubnormals() {}
#endif
};

void finish_conv(const Tensor& y, const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& residual, int64_t act, double slope) {
  check_images(y, "y");
  const Finish f = checked_finish(y, scale, bias, residual, act, slope);
  const int64_t pixels = y.size(2) * y.size(3), planes = y.size(0) * y.size(1);
  float* data = static_cast<float*>(y.data_ptr());
  const int channels = int(y.size(1));
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(pixels, 1));
  const auto finish = kernels().finish;
  torch::stable::parallel_for(0, planes, grain, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    finish(f, channels, pixels, data, begin, end);
  });
}

constexpr int64_t kPartBytes = 1 << 18;  // of weights, so that a part's stay in the second-level cache
constexpr int kPartOutputs = 32;         // at least: the copy of x to the panel is then 1/8 of the loads

constexpr int64_t kPanelFloats = 1 << 15;  // of a tile: long runs of y are written, and x stays in the same cache

// Cuts the work into tiles of about equal length, and the outputs into parts: a few tasks for each thread.
void choose_tasks(PointwiseConv& c, int lanes, int sub) {
  const int64_t threads = torch::stable::get_num_threads(), vectors = (c.pixels + lanes - 1) / lanes;
  const int64_t subs = std::max<int64_t>(1, kPanelFloats / (int64_t(c.in_channels) * sub * lanes));
  int64_t tiles = (vectors + subs * sub - 1) / (subs * sub);
  const int64_t bytes = int64_t(c.out_channels) * c.in_channels * 4, wanted = threads == 1 ? 1 : 4 * threads;
  const int64_t most_parts = std::max(1, c.out_channels / kPartOutputs);
  const int64_t parts =
      std::min(std::max((bytes + kPartBytes - 1) / kPartBytes, (wanted + tiles - 1) / tiles), most_parts);
  tiles = std::max(tiles, std::min((wanted + parts - 1) / parts, (vectors + sub - 1) / sub));
  c.tile_vectors = int((vectors + tiles - 1) / tiles);
  c.tiles = int((vectors + c.tile_vectors - 1) / c.tile_vectors);
  c.parts = int(parts);
}

Tensor pointwise_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual, const std::optional<Tensor>& gate, int64_t stride,
                        int64_t act, double slope) {
  check_images(x, "x");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == x.size(1) && weight.scalar_type() == ScalarType::Float &&
                      weight.is_cpu() && weight.is_contiguous(),
                  "weight must be Float [O, ", x.size(1), "], contiguous, got ", describe(weight));
  const int64_t limit = int64_t(1) << 31;
  STD_TORCH_CHECK(stride >= 1 && stride < limit, "stride must be at least 1, and less than 2^31, got ", stride);
  STD_TORCH_CHECK(x.size(1) >= 1, "x must have a channel at least, got ", describe(x));
  STD_TORCH_CHECK(x.size(3) < limit && x.size(1) < limit && weight.size(0) < limit, "x is too large");
  const int64_t height = (x.size(2) + stride - 1) / stride, width = (x.size(3) + stride - 1) / stride;
  Tensor y = empty_in(x, {x.size(0), weight.size(0), height, width}, MemoryFormat::Contiguous);
  const TileKernels& k = kernels();
  PointwiseConv c{};
  c.finish = checked_finish(y, std::nullopt, bias, residual, act, slope);
  if (y.numel() == 0) return y;
  c.x = x.const_data_ptr<float>();
  c.weight = weight.const_data_ptr<float>();
  if (gate) {
    check_images(*gate, "gate");
    check_device(*gate, x, "gate");
    STD_TORCH_CHECK(gate->size(0) == x.size(0) && gate->numel() == x.size(0) * x.size(1), "gate must be [", x.size(0),
                    ", ", x.size(1), ", 1, 1], got ", describe(*gate));
    c.gate = gate->const_data_ptr<float>();
  }
  c.y = y.mutable_data_ptr<float>();
  c.in_plane = x.size(2) * x.size(3);
  c.out_plane = height * width;
  c.pixels = x.size(0) * c.out_plane;
  STD_TORCH_CHECK(c.pixels < limit, "x is too large");
  c.in_channels = int(x.size(1));
  c.out_channels = int(weight.size(0));
  c.width = int(x.size(3));
  c.out_width = int(width);
  c.stride = int(stride);
  choose_tasks(c, k.lanes, k.pointwise_vectors);
  const int64_t row = int64_t(k.pointwise_vectors) * k.lanes;  // pixels of a sub-tile
  const int64_t floats = int64_t(c.in_channels) * row * ((int64_t(c.tile_vectors) * k.lanes + row - 1) / row);
  const int64_t operations = int64_t(c.in_channels) * c.tile_vectors * std::max(c.out_channels / c.parts, 1);
  run_tasks(std::vector<PointwiseConv>{c}, int64_t(c.tiles) * c.parts, std::max<int64_t>(1, 20000 / operations), floats,
            k.pointwise);
  return y;
}

constexpr int kBandFloats = 4096;  // of sums: they and the lines of x stay in the first-level cache

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual, int64_t stride, const std::vector<int64_t>& padding,
                        int64_t act, double slope) {
  check_images(x, "x");
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) == x.size(1) && weight.scalar_type() == ScalarType::Float &&
                      weight.is_cpu() && weight.is_contiguous(),
                  "weight must be Float [", x.size(1), ", kh, kw], contiguous, got ", describe(weight));
  STD_TORCH_CHECK((stride == 1 || stride == 2) && padding.size() == 2 && padding[0] >= 0 && padding[1] >= 0,
                  "stride must be 1 or 2, padding two integers >= 0");
  PlaneConv c{};
  int64_t out[2];
  for (int a = 0; a < 2; ++a) {
    const int64_t size = x.size(2 + a) + 2 * padding[a] - weight.size(1 + a);
    STD_TORCH_CHECK(weight.size(1 + a) >= 1 && size >= 0 && x.size(2 + a) < 1 << 24 && padding[a] < 1 << 24,
                    "x must be as large as weight at least, padded, and smaller than 2^24, got ", describe(x));
    out[a] = size / stride + 1;
    c.kernel[a] = int(weight.size(1 + a));
    c.padding[a] = int(padding[a]);
  }
  Tensor y = empty_in(x, {x.size(0), x.size(1), out[0], out[1]}, MemoryFormat::Contiguous);
  c.finish = checked_finish(y, std::nullopt, bias, residual, act, slope);
  c.x = x.const_data_ptr<float>();
  c.weight = weight.const_data_ptr<float>();
  c.y = y.mutable_data_ptr<float>();
  c.channels = int(x.size(1));
  c.height = int(x.size(2));
  c.width = int(x.size(3));
  c.out_height = int(out[0]);
  c.out_width = int(out[1]);
  c.stride = int(stride);
  const TileKernels& k = kernels();
  // A line holds a padded row of x, or of its phase, and what a vector reads beyond the last output.
  c.pitch = int(round_up((c.width + 2 * c.padding[1]) / c.stride + k.lanes + c.kernel[1]));
  c.band = std::min(c.out_height, std::max(4, kBandFloats / c.pitch / 4 * 4));
  const int64_t rows = c.band + int64_t((c.band - 1) * c.stride + c.kernel[0]) * c.stride;
  const int64_t operations = int64_t(c.out_height) * c.out_width * c.kernel[0] * c.kernel[1] / k.lanes;
  run_tasks(std::vector<PlaneConv>{c}, x.size(0) * x.size(1), 1 + 5000 / (operations + 1), rows * c.pitch,
            k.plane_conv);
  return y;
}

Tensor mean_planes(const Tensor& x) {
  check_images(x, "x");
  Tensor y = empty_in(x, {x.size(0), x.size(1), 1, 1}, MemoryFormat::Contiguous);
  const int64_t pixels = x.size(2) * x.size(3), grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(pixels, 1));
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const auto mean = kernels().mean_planes;
  torch::stable::parallel_for(0, y.numel(), grain, [&](int64_t begin, int64_t end) {
    mean(from + begin * pixels, pixels, to + begin, end - begin);
  });
  return y;
}

Tensor max_pool_values(const Tensor& x, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, bool ceil_mode) {
  check_images(x, "x");
  const Pooling p = pooling_of(x, kernel, stride, padding, ceil_mode);
  Tensor y = empty_in(x, {p.images, p.channels, p.out_height, p.out_width}, MemoryFormat::Contiguous);
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(p.height * p.width, 1));
  const auto max_pool = kernels().max_pool;
  torch::stable::parallel_for(0, p.images * p.channels, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> line(p.width);
    max_pool(p, from, to, begin, end, line.data());
  });
  return y;
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CPU, m) {
  m.impl("finish_conv", TORCH_BOX(&explainfix::finish_conv));
  m.impl("depthwise_conv2d", TORCH_BOX(&explainfix::depthwise_conv2d));
  m.impl("mean_planes", TORCH_BOX(&explainfix::mean_planes));
  m.impl("max_pool_values", TORCH_BOX(&explainfix::max_pool_values));
  m.impl("pointwise_conv2d", TORCH_BOX(&explainfix::pointwise_conv2d));
}
