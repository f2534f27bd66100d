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
  SparseGrid grid;
  float scale;
  bool gradient, aligned;  // aligned: channels_last outputs can be stored kStoredAtOnce at a time
};

namespace device {

// Block after block of z, and what the lists take of it.
template <class V>
__device__ void add_blocks(const SparseCall<typename V::Element>& call, const SparseTile<V>& tile,
                           unsigned char* memory, int first_list, Sums<V> (&sums)[V::lists]) {
  const SparseShared<V> shared(blockDim.x);
  auto* x = reinterpret_cast<PixelPair<typename V::Element>*>(memory + shared.x);
  const auto numbers_of = [&](int turn) {
    return reinterpret_cast<int32_t*>(memory + shared.numbers) + turn % 2 * V::most_channels * V::numbers;
  };
  const int at_once = blockDim.x / V::pairs, pair = threadIdx.x % V::pairs, columns = tile.halo_columns();
  const int window = tile.window_of(pair);

  const SparsePacked packed{call.packed, int(call.grid.groups), call.gradient};
  const int end = packed.first_of(blockIdx.z + 1), block = packed.first_of(blockIdx.z);
  const ConvShape& s = call.shape;
  const HaloSource<V> source{opaque(call.x + tile.image * s.in_channels * s.height * s.width),
                             reinterpret_cast<const Places*>(memory + shared.places), V::rows ? 1 : s.height * s.width,
                             call.grid.staging};
  SparseChunk<V> chunk(packed, block, packed.block(block).begin, source.staging.channels);
  HaloAhead<V> ahead;
  WarpLists<V> lists;
  ahead.ask(source, chunk);
  chunk.copy_numbers(packed, numbers_of(0));
  bool last = false;
  for (int turn = 0; !last; ++turn) {
    const SparseChunk<V> here = chunk;
    last = here.ends_block() && here.block + 1 == end;
    if (!last) chunk = here.next(packed, source.staging.channels);
    ahead.put(source, here.channels(), x);
    wait_for_copies();
    __syncthreads();
    if (!last) {
      ahead.ask(source, chunk);
      chunk.copy_numbers(packed, numbers_of(turn + 1));
    }
    if (here.ends_block()) lists.open(call.packed, packed.block(here.block).bounds, first_list, call.grid.lists);
    for (int channel = threadIdx.x / V::pairs; channel < here.channels(); channel += at_once) {
      transform<V>(x + channel * source.staging.plane() + window, columns, numbers_of(turn) + channel * V::numbers,
                   memory + shared.z + pair * 4);
    }
    __syncthreads();
    if (here.ends_block()) lists.add(call.packed, memory + shared.z, sums);
  }
}

template <class V>
__global__ void __launch_bounds__(kSparseThreads) sparse_index_kernel(SparseCall<typename V::Element> call) {
  using T = typename V::Element;
  EXPLAINFIX_SHARED(memory);
  const ConvShape& s = call.shape;
  const SparseShared<V> shared(blockDim.x);
  const SparseTile<V> tile(s, call.grid.width, call.grid.tiles_of_panel, blockIdx.x);
  auto* pixels = reinterpret_cast<int64_t*>(memory + shared.pixels);
  find_pixels(tile, s, pixels);
  find_places(tile, s, call.grid.staging.pairs, reinterpret_cast<Places*>(memory + shared.places));
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
