// The ops explainfix::hadamard_conv2d and hadamard_conv2d_input_grad on CUDA: hands a call to the kernel of
// cuda/device/hadamard, or composes the weight and calls torch's convolution (torch_api/dense_plan.h).
//
// The kernel takes a bank whose inputs and outputs take their places in turn, as the initialisation gives them:
// Python's plan has seen to that, since their values are on the device. It reads channels_last, to which NCHW is
// turned.
#include "cuda/device/dense/compose_hadamard.cuh"
#include "cuda/device/hadamard/hadamard.cuh"
#include "cuda/device/hadamard/turn.cuh"
#include "cuda/launch/launch.h"
#include "host/hadamard_checks.h"
#include "torch_api/dense_plan.h"

namespace explainfix {
namespace {

Tensor compose(const HadamardBank& bank, const Tensor& like) {
  const MemoryFormat format = memory_format_of(like);
  const std::vector<int64_t> shape = bank.shape();
  Tensor weight = empty_in(like, shape, format);
  const Tensor columns = dense_in(bank.columns), rows = dense_in(bank.rows);
  const Tensor outputs = dense_in(bank.outputs), inputs = dense_in(bank.inputs);
  const HadamardParts parts{columns.const_data_ptr<float>(),
                            rows.const_data_ptr<float>(),
                            outputs.const_data_ptr<int16_t>(),
                            inputs.const_data_ptr<int16_t>(),
                            columns.size(0),
                            rows.size(1),
                            rows.size(2),
                            shape[0],
                            shape[2],
                            shape[3],
                            unsigned(bank.order),
                            unsigned(bank.stages)};
  const WeightLayout layout = weight_layout(shape, 1, format);
  switch_floating(like.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(weight, layout.filters * layout.k2, compose_hadamard_kernel<T>, layout, parts, bank.scale,
           weight.mutable_data_ptr<T>());
  });
  return weight;
}

Tensor weight_of(const HadamardBank& bank, const std::optional<Tensor>& packed, const Tensor& x) {
  const std::optional<Tensor> kept = kept_weight(packed, x, bank.shape());
  return kept ? *kept : compose(bank, x);
}

HadamardShape shape_of(const HadamardBank& bank, const Tensor& in, const std::vector<int64_t>& out_size,
                       const ConvParams& conv, bool input_grad) {
  const int64_t inputs = bank.per_group(), outputs = bank.out_channels() / conv.groups;
  return {in.size(0),
          conv.groups,
          input_grad ? outputs : inputs,
          input_grad ? inputs : outputs,
          {in.size(2), in.size(3)},
          {out_size[0], out_size[1]},
          bank.kernel()[0],
          {conv.stride[0], conv.stride[1]},
          {conv.padding[0], conv.padding[1]},
          bank.order,
          bank.stages,
          bank.rows.size(1),
          input_grad};
}

// Are the filters packed as Python's pack_hadamard does?
bool is_packed(const HadamardBank& bank, const std::optional<Tensor>& packed) {
  return packed && packed->scalar_type() == ScalarType::Float && packed->dim() == 1 &&
         packed->numel() == bank.rows.numel() + bank.columns.numel();
}

// t in another memory format, of channels_last and contiguous.
template <class T>
Tensor turned(const Tensor& t, MemoryFormat format) {
  constexpr int64_t kMostImages = 65535;  // of a grid
  const int64_t pixels = t.size(2) * t.size(3);
  const bool last = format == MemoryFormat::ChannelsLast;
  if (t.size(0) > kMostImages) return torch::stable::contiguous(t, format);
  const Tensor from = dense_in(t, last ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
  Tensor to = empty_in(t, {t.size(0), t.size(1), t.size(2), t.size(3)}, format);
  const int rows = int(last ? t.size(1) : pixels), columns = int(last ? pixels : t.size(1));
  const unsigned tiles = unsigned((rows + kTurnTile - 1) / kTurnTile * ((columns + kTurnTile - 1) / kTurnTile));
  launch_grid(t, dim3(tiles, unsigned(t.size(0))), kTurnThreads, turn_shared_bytes(sizeof(T)), device::turn_kernel<T>,
              static_cast<const T*>(from.const_data_ptr()), static_cast<T*>(to.mutable_data_ptr()), rows, columns);
  return to;
}

template <class T>
std::optional<Tensor> run(const Tensor& in, const Tensor& filters, const std::optional<Tensor>& bias,
                          const HadamardShape& s) {
  constexpr MemoryFormat kLast = MemoryFormat::ChannelsLast;
  const bool last = memory_format_of(in) == kLast;
  const Tensor x = last ? dense_in(in, kLast) : turned<T>(in, kLast);
  Tensor y = empty_in(x, {s.images, s.groups * s.out_channels, s.out_size[0], s.out_size[1]}, kLast);
  const auto aligned = [](const Tensor& t) { return device::is_aligned(static_cast<const T*>(t.const_data_ptr())); };
  if (!aligned(x) || !aligned(y) || !aligned(filters)) return std::nullopt;
  std::optional<Tensor> starts;
  if (bias) starts = dense_in(*bias);
  const HadamardLaunch l = hadamard_launch(s, sizeof(T), device_attribute(x, cudaDevAttrMultiProcessorCount));
  launch_grid(y, dim3(l.grid[0], l.grid[1], l.grid[2]), l.threads, l.shared_bytes, device::hadamard_kernel_of<T>(l),
              l.walk, static_cast<const T*>(x.const_data_ptr()), filters.const_data_ptr<float>(),
              static_cast<const T*>(starts ? starts->const_data_ptr() : nullptr),
              static_cast<T*>(y.mutable_data_ptr()));
  return last ? y : turned<T>(y, MemoryFormat::Contiguous);
}

// The result of the kernel, or nullopt if it is not for this call.
std::optional<Tensor> run_kernel(int64_t plan, const HadamardBank& bank, const Tensor& in,
                                 const std::optional<Tensor>& packed, const std::optional<Tensor>& bias,
                                 const ConvParams& conv, const HadamardShape& s) {
  const bool empty = s.images == 0 || s.out_size[0] == 0 || s.out_size[1] == 0;
  const bool one_term = bank.columns.size(0) == 1 && bank.kernel()[0] == bank.kernel()[1];
  if ((plan & ~kAuto) != kHadamard || empty || !one_term || conv.dilation[0] != 1 || conv.dilation[1] != 1 ||
      !is_packed(bank, packed) || !hadamard_fits(s)) {
    return std::nullopt;
  }
  const Tensor filters = dense_in(*packed);
  return with_element(in.scalar_type(),
                      [&](auto tag) { return run<typename decltype(tag)::type>(in, filters, bias, s); });
}

Tensor hadamard_conv2d_cuda(const Tensor& x, const Tensor& columns, const Tensor& rows, const Tensor& outputs,
                            const Tensor& inputs, const std::optional<Tensor>& packed,
                            const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
                            const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                            int64_t order, int64_t stages, double scale, int64_t plan) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const HadamardBank bank{columns, rows, outputs, inputs, order, stages, scale};
  const ConvParams conv{stride, padding, dilation, groups};
  const std::vector<int64_t> out = check_hadamard_forward(x, bank, packed, bias, conv, plan);
  if (auto y = run_kernel(plan, bank, x, packed, bias, conv, shape_of(bank, x, out, conv, false))) return *y;
  return dense_forward(x, weight_of(bank, packed, x), bias, conv);
}

Tensor hadamard_conv2d_input_grad_cuda(const Tensor& grad, const Tensor& columns, const Tensor& rows,
                                       const Tensor& outputs, const Tensor& inputs, const std::optional<Tensor>& packed,
                                       const std::vector<int64_t>& input_size, const std::vector<int64_t>& stride,
                                       const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                                       int64_t groups, int64_t order, int64_t stages, double scale, int64_t plan) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const HadamardBank bank{columns, rows, outputs, inputs, order, stages, scale};
  const ConvParams conv{stride, padding, dilation, groups};
  check_hadamard_input_grad(grad, bank, packed, input_size, conv, plan);
  const HadamardShape shape = shape_of(bank, grad, input_size, conv, true);
  if (auto dx = run_kernel(plan, bank, grad, packed, std::nullopt, conv, shape)) return *dx;
  return dense_input_grad(grad, weight_of(bank, packed, grad), input_size, conv);
}

}  // namespace
}  // namespace explainfix

STABLE_TORCH_LIBRARY_IMPL(explainfix, CUDA, m) {
  m.impl("hadamard_conv2d", TORCH_BOX(&explainfix::hadamard_conv2d_cuda));
  m.impl("hadamard_conv2d_input_grad", TORCH_BOX(&explainfix::hadamard_conv2d_input_grad_cuda));
}
