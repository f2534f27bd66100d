// The ops of torch_api/pass_ops.h on the CPU: cuts a pass into units of work and runs them on torch's threads, by the
// kernels of the instruction set in use (cpu/tile/passes.h).
#include "shared/passes.h"

#include <algorithm>

#include "cpu/driver/driver.h"
#include "torch_api/pass_ops.h"

namespace explainfix {
namespace {

// Runs the pass over `units` of about `elements` each (RunPass says what a unit is). A thread takes 32 thousand
// elements at least: for fewer, waking it costs more than it brings.
void run_units(const Pass& p, int64_t units, int64_t elements) {
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(elements, 1));
  const RunPass pass = kernels().pass;
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) { pass(p, begin, end); });
}

void store(const std::vector<double>& values, int64_t begin, Tensor& to) {
  for (int64_t i = 0; i < to.size(0); ++i) {
    const double value = values[begin + i];
    if (to.scalar_type() == ScalarType::Double) {
      to.mutable_data_ptr<double>()[i] = value;
    } else {
      to.mutable_data_ptr<float>()[i] = float(value);
    }
  }
}

// The two sums of each channel: [first | second].
std::vector<double> channel_sums(Pass& p) {
  const int parts = p.channels_last ? kPixelParts : 1;
  std::vector<double> sums(2 * p.channels * parts);
  p.sums = sums.data();
  p.channels_last ? run_units(p, kPixelParts, p.images * p.pixels * p.channels / kPixelParts)
                  : run_units(p, p.channels, p.images * p.pixels);
  for (int64_t i = 0; i < 2 * p.channels; ++i) {
    for (int part = 1; part < parts; ++part) sums[i] += sums[part * 2 * p.channels + i];
  }
  return sums;
}

// A value of each channel. It is subtracted before squares are summed: where a channel's mean is large beside its
// deviation, the variance would otherwise be a difference of nearly equal numbers.
std::vector<double> first_pixel(const Tensor& x, const Pass& p) {
  std::vector<double> values(p.channels);
  switch_floating(x.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* data = static_cast<const T*>(x.data_ptr());
    for (int64_t c = 0; c < p.channels; ++c) values[c] = double(data[c * (p.channels_last ? 1 : p.pixels)]);
  });
  return values;
}

struct CpuPasses {
  static void run(const Pass& p, const Tensor& /* like */) {
    const int64_t planes = p.images * p.channels;
    if (p.kind == PassKind::kMask || p.kind == PassKind::kMaskGrad) {
      run_units(p, (p.pixels + 7) / 8, 8);
    } else if (p.channels_last && p.kind == PassKind::kQuantize) {
      run_units(p, p.images, p.channels * p.pixels);
    } else {
      p.channels_last ? run_units(p, p.images * p.pixels, p.channels) : run_units(p, planes, p.pixels);
    }
  }

  static void stats(Pass& p, const Tensor& x, Tensor& mean, Tensor& var) {
    const double count = double(p.images * p.pixels);
    const std::vector<double> shift = first_pixel(x, p);
    store(shift, 0, mean);
    p.a = mean.data_ptr();
    std::vector<double> sums = channel_sums(p);
    for (int64_t c = 0; c < p.channels; ++c) {
      const double offset = sums[c] / count;
      const double var = sums[p.channels + c] / count - offset * offset;
      sums[p.channels + c] = var < 0 ? 0 : var;  // NaN stays
      sums[c] = shift[c] + offset;
    }
    store(sums, 0, mean);
    store(sums, p.channels, var);
  }

  static void sums(Pass& p, Tensor& first, Tensor& second) {
    const std::vector<double> sums = channel_sums(p);
    store(sums, 0, first);
    store(sums, p.channels, second);
  }
};

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CPU, m) { EXPLAINFIX_REGISTER_PASSES(m, explainfix::CpuPasses); }
