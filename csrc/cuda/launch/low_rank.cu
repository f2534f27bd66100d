// Launches the low-rank kernel (cuda/device/low_rank). Called by fixed_conv2d.cu.
#include "cuda/device/low_rank/low_rank.cuh"
#include "cuda/launch/conv_kernels.h"
#include "cuda/launch/launch.h"

namespace explainfix {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A call, with its tensors as the kernel reads them.
struct Call {
  LowRank p;
  Tensor x;
  std::optional<Tensor> bias;
  bool products;        // each function is the product of a column and a row
  const void* factors;  // columns and rows of the functions if they are products, else the basis
  const void* packed;   // the coefficients for this direction
};

// Is the kernel for this call? It counts in 32 bits, has room for kMaxRank functions of 7 x 7, and reads channels 16
// bytes at a time.
bool fits(const CudaConv& conv) {
  const ConvShape& s = conv.shape;
  const int64_t unit = 16 / int64_t(conv.x.element_size()), limit = int64_t(1) << 30, channels = 1 << 22;
  const bool strides = s.stride[0] <= 2 && s.stride[1] <= 2 && (!conv.input_grad || s.stride[0] * s.stride[1] == 1);
  return s.channels_last && strides && conv.basis.size(0) <= kMaxRank && s.kernel[0] <= 7 && s.kernel[1] <= 7 &&
         s.in_channels / s.groups % unit == 0 && s.out_channels / s.groups % unit == 0 && s.in_channels <= channels &&
         s.out_channels <= channels && s.images <= limit && kTilePixels * s.height * s.width <= limit &&
         4 * s.out_height * s.out_width <= limit;
}

// False if it does not fit: in shared memory, or in the number of blocks.
template <class Product, int kOutputs>
bool launch_low_rank(const Call& call, Tensor& y) {
  using T = typename Product::Element;
  bool launched = false;
  device::with_responses<Product>(call.p, call.products, [&](auto responses) {
    using Responses = decltype(responses);
    const LowRankShared shared(call.p, kOutputs, Responses::taps(call.p), sizeof(T));
    const int64_t blocks = blocks_of(call.p, kOutputs);
    if (shared.end > device_attribute(y, cudaDevAttrMaxSharedMemoryPerBlockOptin) || blocks > INT32_MAX) return;
    launch_grid(y, dim3(unsigned(blocks)), 2 * kRoleThreads, size_t(shared.end),
                device::low_rank_kernel<Product, kOutputs, Responses>, call.p, static_cast<const T*>(call.x.data_ptr()),
                static_cast<const T*>(call.packed), static_cast<typename Responses::Factors>(call.factors),
                static_cast<const T*>(call.bias ? call.bias->data_ptr() : nullptr), static_cast<T*>(y.data_ptr()));
    launched = true;
  });
  return launched;
}

template <class Product>
bool launch_low_rank(const Call& call, Tensor& y) {
  constexpr bool kStrict = std::is_same_v<Product, device::Fp32Product>;
  const int outputs = choose_outputs(call.p, kStrict, device_attribute(y, cudaDevAttrMultiProcessorCount));
  // 128 may need more shared memory than there is.
  if (outputs == 128 && launch_low_rank<Product, kStrict ? 64 : 128>(call, y)) return true;
  return launch_low_rank<Product, 64>(call, y);
}

bool launch_low_rank(const Call& call, Tensor& y, bool tf32) {
  switch (y.scalar_type()) {
    case ScalarType::BFloat16:
      return launch_low_rank<device::Bf16Product>(call, y);
    case ScalarType::Half:
      return launch_low_rank<device::Fp16Product>(call, y);
    case ScalarType::Float:
      return tf32 ? launch_low_rank<device::Tf32Product>(call, y) : launch_low_rank<device::Fp32Product>(call, y);
    default:
      return false;
  }
}

// Finds this call's parts of `packed`, as Python's pack_low_rank lays it out; false if its size does not fit the call.
// It holds numbers only, nothing is found by them.
bool find_packed(const CudaConv& conv, const Tensor& packed, Call* call) {
  const ConvShape& s = conv.shape;
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups, rank = conv.basis.size(0);
  const int bytes = int(conv.x.element_size());
  const int64_t mine = packed_elements(s.groups, in, out, rank, bytes);
  const int64_t other = packed_elements(s.groups, out, in, rank, bytes);
  const int64_t factors = (rank * (s.kernel[0] + s.kernel[1]) + kLowRankFactorMultiple - 1) / kLowRankFactorMultiple *
                          kLowRankFactorMultiple * int64_t(sizeof(float)) / bytes;
  const int64_t head = packed.numel() - mine - other;
  call->products = head == factors;
  call->packed = static_cast<const char*>(packed.data_ptr()) + (head + (conv.input_grad ? other : 0)) * bytes;
  return head == 0 || head == factors;
}

}  // namespace

std::optional<Tensor> run_low_rank(const CudaConv& conv, bool tf32) {
  if (!conv.packed || conv.packed->scalar_type() != conv.x.scalar_type() || !fits(conv)) return std::nullopt;
  Call call{{conv.shape, int(conv.basis.size(0)), 0, 0, conv.input_grad, false, float(conv.scale)},
            torch::stable::contiguous(conv.x, MemoryFormat::ChannelsLast)};
  const Tensor basis = torch::stable::contiguous(conv.basis), packed = torch::stable::contiguous(*conv.packed);
  if (!find_packed(conv, packed, &call)) return std::nullopt;
  call.products &= device::products_fit(conv.shape, conv.x.scalar_type() == ScalarType::Float && !tf32);
  call.factors = call.products ? packed.data_ptr() : basis.data_ptr();
  if (conv.bias) call.bias = torch::stable::contiguous(*conv.bias);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!aligned(call.x.data_ptr()) || !aligned(call.packed)) return std::nullopt;
  choose_tile(&call.p, call.products);
  Tensor y = empty_planes(conv.x, conv.shape.out_channels, conv.shape.out_height, conv.shape.out_width);
  if (!launch_low_rank(call, y, tf32)) return std::nullopt;
  return y;
}

}  // namespace explainfix
