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

// Calls f(TypeTag<A>{}) with the type of a channel's numbers.
template <class F>
void with_wide(const Pass& p, F&& f) {
  p.type == PassType::kDouble ? f(TypeTag<double>{}) : f(TypeTag<float>{});
}

// A value of each channel. It is subtracted before squares are summed: where a channel's mean is large beside its
// deviation, the variance would otherwise be a difference of nearly equal numbers.
template <class A>
std::vector<A> first_pixel(const Pass& p, ScalarType dtype) {
  std::vector<A> values(p.channels);
  switch_floating(dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* data = static_cast<const T*>(p.x);
    for (int64_t c = 0; c < p.channels; ++c) values[c] = A(data[c * (p.channels_last ? 1 : p.pixels)]);
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

  static void factors(Pass& p, const BatchNorm& norm, const Tensor& x) {
    with_wide(p, [&](auto tag) {
      using A = typename decltype(tag)::type;
      const std::vector<A> shift = first_pixel<A>(p, x.scalar_type());
      p.a = shift.data();
      const std::vector<double> sums = channel_sums(p);
      for (int64_t c = 0; c < p.channels; ++c) {
        const double offset = sums[c] / norm.count, var = sums[p.channels + c] / norm.count - offset * offset;
        finish_batch_norm<A>(norm, c, A(shift[c] + offset), A(var < 0 ? 0 : var));  // NaN stays
      }
    });
  }

  static void sums(Pass& p, Tensor& result) {
    const std::vector<double> sums = channel_sums(p);
    with_wide(p, [&](auto tag) {
      using A = typename decltype(tag)::type;
      std::copy_n(sums.begin(), 2 * p.channels, static_cast<A*>(result.data_ptr()));
    });
  }

  static void input_grad(Pass& p, const void* factors, const void* sums, double count, const Tensor& like) {
    with_wide(p, [&](auto tag) {
      using A = typename decltype(tag)::type;
      std::vector<A> rows(3 * p.channels);
      for (int64_t c = 0; c < p.channels; ++c) {
        const BatchNormGrad<A> grad =
            batch_norm_grad(static_cast<const A*>(factors), static_cast<const A*>(sums), p.channels, c, A(count));
        rows[c] = grad.a;
        rows[p.channels + c] = grad.b;
        rows[2 * p.channels + c] = grad.c;
      }
      p.a = rows.data();
      p.b = rows.data() + p.channels;
      p.c = rows.data() + 2 * p.channels;
      run(p, like);
    });
  }
};

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CPU, m) { EXPLAINFIX_REGISTER_PASSES(m, explainfix::CpuPasses); }
