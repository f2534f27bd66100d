// Convolution with one basis function for each filter, or none: y[o] = scale * sum over the filters (o, i) that are not
// zero of z[i, f(o, i)], where z[i, f] is channel i filtered by function f of the DCT. Forward, and the input gradient
// with stride 1, by the same kernel.
#pragma once

#include "dct_transform.cuh"
#include "sparse_halo.cuh"
#include "sparse_lists.cuh"
#include "sparse_store.cuh"

namespace explainfix {

template <class T>
struct SparseCall {
  ConvShape shape;
  const T *x, *bias;  // bias or null
  const int32_t* packed;
  T* y;
  int width, tiles_of_panel;
  float scale;
  bool gradient, aligned;  // aligned: channels_last outputs can be stored kStoredAtOnce at a time
};

namespace device {

// Block after block of z, and what the lists take of it.
template <class V>
__device__ void add_blocks(const SparseCall<typename V::Element>& call, const SparseTile<V>& tile, unsigned char* memory,
                           int first_list, Sums<V> (&sums)[V::lists]) {
  const SparseShared<V> shared(blockDim.x);
  auto* x = reinterpret_cast<Vector<typename V::Element, 2>*>(memory + shared.x);
  auto* numbers = reinterpret_cast<int32_t*>(memory + shared.numbers);
  const int at_once = blockDim.x / V::pairs, pair = threadIdx.x % V::pairs, columns = tile.halo_columns();
  const int window = tile.top(tile.band_of(pair)) * columns + tile.column_of(pair) * V::stride;
  const int groups = int(call.shape.groups);
  const int lists = (int(call.shape.out_channels) / groups + kListOutputs - 1) / kListOutputs;

  const SparseBlock* end = blocks_of(call.packed, call.gradient, blockIdx.z + 1, groups);
  const SparseBlock* block = blocks_of(call.packed, call.gradient, blockIdx.z, groups);
  const HaloSource<V> source(tile, call.shape, call.x, reinterpret_cast<const Places*>(memory + shared.places));
  SparseChunk chunk = SparseChunk::first<V>(block, source.channels);
  HaloAhead<V> ahead;
  ahead.ask(source, chunk, call.packed);
  for (bool last = false; !last;) {
    ahead.put(source, chunk.channels(), x, numbers);
    __syncthreads();
    const SparseChunk here = chunk;
    last = here.ends_block && here.block + 1 == end;
    if (!last) {
      chunk = here.next<V>(source.channels);
      ahead.ask(source, chunk, call.packed);
    }
    WarpLists<V> warp_lists(call.packed, *here.block, first_list, lists);
    for (int channel = threadIdx.x / V::pairs; channel < here.channels(); channel += at_once) {
      transform<V>(x + channel * source.plane + window, columns, numbers + channel * V::numbers,
                   memory + shared.z + pair * 4);
    }
    __syncthreads();
    if (here.ends_block) warp_lists.add(memory + shared.z, sums);
  }
}

template <class V>
__global__ void __launch_bounds__(kSparseThreads) sparse_index_kernel(SparseCall<typename V::Element> call) {
  using T = typename V::Element;
  EXPLAINFIX_SHARED(memory);
  const ConvShape& s = call.shape;
  const SparseShared<V> shared(blockDim.x);
  const SparseTile<V> tile(s, call.width, call.tiles_of_panel, blockIdx.x);
  auto* pixels = reinterpret_cast<int64_t*>(memory + shared.pixels);
  find_pixels(tile, s, pixels);
  find_places(tile, s, reinterpret_cast<Places*>(memory + shared.places));
  for (int at = threadIdx.x; at < kBanks * V::row_bytes / 4; at += blockDim.x) {
    reinterpret_cast<uint32_t*>(memory + shared.z)[at] = 0;
  }
  __syncthreads();

  const int block_outputs = V::outputs(blockDim.x), block_output = blockIdx.y * block_outputs;
  const int warp_output = threadIdx.x / 32 * V::lists * kListOutputs;
  Sums<V> sums[V::lists] = {};
  add_blocks(call, tile, memory, (block_output + warp_output) / kListOutputs, sums);
  __syncthreads();

  const int group_outputs = int(s.out_channels) / int(s.groups), rest = group_outputs - block_output;
  const int outputs = rest < block_outputs ? rest : block_outputs;
  const int64_t output = blockIdx.z * int64_t(group_outputs) + block_output, plane = s.out_height * s.out_width;
  const float scale = call.scale * kResponseDivisor<V> / kFactor;
  const T* bias = call.bias ? call.bias + output : nullptr;
  T *result = reinterpret_cast<T*>(memory + shared.z), *y = call.y + output * (V::rows ? 1 : plane);
  put_sums<V>(sums, warp_output, outputs, scale, bias, result);
  __syncthreads();
  if constexpr (!V::rows) {
    store_planes<V>(result, pixels, outputs, plane, y);
  } else if (call.aligned) {
    store_rows<V, kStoredAtOnce>(result, pixels, outputs, y);
  } else {
    store_rows<V, 1>(result, pixels, outputs, y);
  }
}

}  // namespace device
}  // namespace explainfix
