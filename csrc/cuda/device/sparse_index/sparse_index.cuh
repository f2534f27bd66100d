// Sparse index convolution, for banks whose filters are each one DCT function or zero: with f(o, i) the function of
// filter (o, i) and z[i, f] input channel i filtered by function f,
//   y[o] = scale * sum of z[i, f(o, i)] over the inputs i whose filter (o, i) is not zero.
// One kernel for the forward pass and for the input gradient with stride 1. Torch-free: nvcc compiles this for
// cuda/launch/sparse_index.cu, and the emulation's tests compile it with g++.
//
// A thread block computes z of some input channels at a tile of 64 pixels in shared memory, as far as it is read. Then
// each warp adds those rows of z that the lists of its outputs name, 16 rows to 16 outputs a step, on tensor cores.
// Their left operand is 2, -2 or 0, so that sums are exact up to float's rounding. A row that several of the 16 outputs
// add is read once: without zero filters the work is that of a dense product.
//
// Bounds for 64 pixels of a channel in 16 bits, in clocks of a multiprocessor: shared memory moves a row of z (128
// bytes) in one. z is written once (up to 9 rows) and read once by each list that has it: 24 rows at 10 % of 256 x 256
// filters of 3 x 3, 2.5 at 1 %. The dense product takes O K^2 64 / 1330: 111 for 256 outputs, 222 for 512. Bytes: x and
// y once, and 8 for an entry of a list, from L2.
//
// By the instructions for sm_90 (4 a clock), channels_last bf16: 51 clocks a channel to bring it to shared memory, 66
// to 93 for its responses, 31 for a step. The larger of these and of the rows moved through shared memory, at 256 / 512
// channels: 55 / 82 clocks at 10 %, 33 / 36 at 1 %, if all overlaps.
#pragma once

#include "cuda/device/sparse_index/dct_matrix.cuh"
#include "cuda/device/sparse_index/dct_transform.cuh"
#include "cuda/device/sparse_index/grid.h"
#include "cuda/device/sparse_index/halo.cuh"
#include "cuda/device/sparse_index/lists.cuh"
#include "cuda/device/sparse_index/store.cuh"

namespace explainfix {

// A call, as the kernel gets it.
template <class T>
struct SparseCall {
  ConvShape shape;
  const T *x, *bias;  // bias or null
  const int32_t* packed;
  int packed_words;  // sparse_words at least
  T* y;
  SparseGrid grid;
  float scale;
  bool input_grad, aligned;  // aligned: channels_last outputs can be stored kStoredAtOnce at a time
};

namespace device {

// The thread block's shared memory; SparseShared says what each part is.
template <class V>
struct SparseMemory {
  using T = typename V::Element;
  unsigned char* z;
  PixelPair<T>* x;
  int32_t* numbers;
  DctOperands* operands;
  const T** images;
  int* windows;
  int64_t* pixels;
  Places* places;

  __device__ explicit SparseMemory(unsigned char* memory) {
    const SparseShared<V> shared(blockDim.x);
    z = memory + shared.z;
    x = reinterpret_cast<PixelPair<T>*>(memory + shared.x);
    numbers = reinterpret_cast<int32_t*>(memory + shared.numbers);
    operands = reinterpret_cast<DctOperands*>(memory + shared.operands);
    images = reinterpret_cast<const T**>(memory + shared.images);
    windows = reinterpret_cast<int*>(memory + shared.windows);
    pixels = reinterpret_cast<int64_t*>(memory + shared.pixels);
    places = reinterpret_cast<Places*>(memory + shared.places);
  }

  // Fills in what stays the same for all channels.
  __device__ void fill(const SparseTile<V>& tile, const SparseCall<T>& call) const {
    const ConvShape& s = call.shape;
    if (threadIdx.x == 0) *images = call.x + tile.image * s.in_channels * s.height * s.width;
    for (int at = threadIdx.x; at < kSparseBanks * V::row_bytes / 4; at += blockDim.x) {
      reinterpret_cast<uint32_t*>(z)[at] = 0;
    }
    if constexpr (V::by_matrix) {
      for (int at = threadIdx.x; at < 32; at += blockDim.x) operands[at] = DctOperands::of(V{}, at);
    }
    for (int pair = threadIdx.x; pair < V::pairs; pair += blockDim.x) windows[pair] = tile.window_of(pair);
    find_pixels(tile, s, pixels);
    find_places(tile, s, call.grid.staging.pairs, places);
  }

  __device__ int32_t* numbers_of(int chunk) const { return numbers + chunk % 2 * V::most_channels * V::numbers; }
};

// Chunk after chunk of input channels: x is stored to shared memory, the next chunk is loaded, responses are made; and
// at the end of each block the lists add what they name of z.
template <class V>
__device__ void add_blocks(const SparseCall<typename V::Element>& call, const SparseTile<V>& tile,
                           const SparseMemory<V>& memory, int first_list, Sums<V> (&sums)[V::lists]) {
  const int plane = call.grid.staging.plane(), most = call.grid.staging.channels, columns = tile.halo_columns();
  const SparsePacked packed{call.packed, call.packed_words, int(call.grid.groups), call.input_grad};
  const int begin = blockIdx.z * call.grid.channels, end = opaque(begin + call.grid.channels);  // or it spills
  const HaloReads<V> reads{memory.images, memory.places, V::channels_last ? 1 : call.shape.height * call.shape.width,
                           call.grid.staging};
  SparseChunk<V> chunk(packed, packed.first_of(blockIdx.z), begin, most, end);
  HaloAhead<V> ahead;
  WarpLists<V> lists;
  ahead.load(reads, chunk);
  chunk.copy_numbers(packed, memory.numbers_of(0));
  bool last = false;
  for (int turn = 0; !last; ++turn) {
    const SparseChunk<V> here = chunk;
    last = here.end == end;
    ahead.store(reads, here.channels(), memory.x);
    if (!last) chunk = here.next(packed, most, end);  // only now that `ahead` is stored: or there are too few registers
    wait_for_copies();
    here.bound_numbers(memory.numbers_of(turn));
    __syncthreads();
    if (!last) {
      ahead.load(reads, chunk);
      chunk.copy_numbers(packed, memory.numbers_of(turn + 1));
    }
    if (here.ends_block) lists.open(packed, packed.block(here.block).bounds, first_list, call.grid.lists);
    const int32_t* numbers = memory.numbers_of(turn);
    if constexpr (V::by_matrix) {
      make_responses<V>(memory.x, plane, columns, memory.windows, memory.operands, here.channels(), numbers, memory.z);
    } else {
      make_responses<V>(memory.x, plane, columns, memory.windows, here.channels(), numbers, memory.z);
    }
    __syncthreads();
    if (here.ends_block) lists.add(call.packed, memory.z, sums);
  }
}

template <class V>
__global__ void __launch_bounds__(kSparseThreads) sparse_index_kernel(SparseCall<typename V::Element> call) {
  using T = typename V::Element;
  EXPLAINFIX_SHARED(bytes);
  const ConvShape& s = call.shape;
  const SparseMemory<V> memory(bytes);
  const SparseTile<V> tile(s, call.grid.width, call.grid.tiles_of_panel, blockIdx.x);
  memory.fill(tile, call);
  __syncthreads();

  const int block_outputs = V::outputs(blockDim.x), block_output = blockIdx.y * block_outputs;
  const int warp_output = threadIdx.x / 32 * V::lists * kSparseListOutputs;
  Sums<V> sums[V::lists] = {};
  add_blocks(call, tile, memory, (block_output + warp_output) / kSparseListOutputs, sums);
  __syncthreads();

  const int group_outputs = int(s.out_channels) / int(s.groups), rest = group_outputs - block_output;
  const int outputs = rest < block_outputs ? rest : block_outputs;
  const int64_t output = blockIdx.z * int64_t(group_outputs) + block_output, plane = s.out_height * s.out_width;
  const float scale = call.scale * kResponseDivisor<V> / kFactor;
  const T* bias = call.bias ? call.bias + output : nullptr;
  T *result = reinterpret_cast<T*>(memory.z), *y = call.y + output * (V::channels_last ? 1 : plane);
  put_sums<V>(sums, warp_output, outputs, scale, bias, result);
  __syncthreads();
  if constexpr (!V::channels_last) {
    store_planes<V>(result, memory.pixels, outputs, plane, y);
  } else if (call.aligned) {
    store_channels_last<V, kStoredAtOnce>(result, memory.pixels, outputs, y);
  } else {
    store_channels_last<V, 1>(result, memory.pixels, outputs, y);
  }
}

}  // namespace device
}  // namespace explainfix
