// Launches the sparse index kernel (cuda/device/sparse_index). Called by fixed_conv2d.cu.
#include "cuda/device/sparse_index/sparse_index.cuh"
#include "cuda/launch/conv_kernels.h"
#include "cuda/launch/launch.h"

namespace explainfix {
namespace {

bool aligned(const Tensor& t, size_t bytes) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % bytes == 0; }

template <class V>
std::optional<Tensor> run(const CudaConv& conv, V) {
  using T = typename V::Element;
  const ConvShape& s = conv.shape;
  const Tensor x =
      torch::stable::contiguous(conv.x, V::channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  const Tensor packed = torch::stable::contiguous(*conv.packed);
  const int64_t least = sparse_words<V>(s);
  STD_TORCH_CHECK(packed.numel() >= least, "packed must have ", least, " words at least for this convolution, got ",
                  packed.numel());
  const auto grid = sparse_grid<V>(s, {device_attribute(x, cudaDevAttrMultiProcessorCount),
                                       device_attribute(x, cudaDevAttrMaxSharedMemoryPerBlockOptin),
                                       device_attribute(x, cudaDevAttrMaxSharedMemoryPerMultiprocessor)});
  if (!grid || !aligned(x, V::channels * sizeof(T)) || !aligned(packed, 16)) return std::nullopt;

  Tensor y = empty_planes(x, s.out_channels, s.out_height, s.out_width);
  std::optional<Tensor> bias;
  if (conv.bias) bias = torch::stable::contiguous(*conv.bias);
  const bool several = s.out_channels / s.groups % kStoredAtOnce == 0 && aligned(y, kStoredAtOnce * sizeof(T));
  const SparseCall<T> call{s,
                           static_cast<const T*>(x.data_ptr()),
                           static_cast<const T*>(bias ? bias->data_ptr() : nullptr),
                           packed.const_data_ptr<int32_t>(),
                           int(std::min<int64_t>(packed.numel(), INT32_MAX)),
                           static_cast<T*>(y.data_ptr()),
                           *grid,
                           float(conv.scale),
                           conv.input_grad,
                           several};
  launch_grid(y, dim3(grid->tiles, grid->output_blocks, grid->groups), grid->threads, size_t(grid->shared_bytes),
              device::sparse_index_kernel<V>, call);
  return y;
}

template <class T>
std::optional<Tensor> run(const CudaConv& conv) {
  std::optional<Tensor> y;
  with_sparse_variant<T>(conv.shape, [&](auto variant) { y = run(conv, variant); });
  return y;
}

}  // namespace

// Not for the gradient with stride 2: the four outputs of an input pixel would read different taps.
std::optional<Tensor> run_sparse_index(const CudaConv& conv) {
  if (!conv.packed || conv.packed->scalar_type() != ScalarType::Int || conv.packed->dim() != 1) return std::nullopt;
  if (conv.input_grad && conv.shape.stride[0] != 1) return std::nullopt;
  return with_element(conv.x.scalar_type(), [&](auto tag) { return run<typename decltype(tag)::type>(conv); });
}

}  // namespace explainfix
