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
  int width;  // of panels
  float scale;
  bool gradient, aligned;  // aligned: channels_last outputs can be stored kStoredAtOnce at a time
};

namespace device {

// Some channels of a block: those that are staged at once.
struct SparseChunk {
  const SparseBlock* block;
  int begin, end;

  __device__ SparseChunk(const SparseBlock* block, int begin, int most)
      : block(block), begin(begin), end(begin + most < block->end ? begin + most : block->end) {}
  __device__ int channels() const { return end - begin; }
  __device__ bool ends_block() const { return end == block->end; }
  __device__ SparseChunk next(int most) const {
    return ends_block() ? SparseChunk(block + 1, block[1].begin, most) : SparseChunk(block, end, most);
  }
};

// The blocks of z and of lists, one after the other; what is added goes to `sums`.
template <class V>
__device__ void add_blocks(const SparseCall<typename V::Element>& call, const SparseTile<V>& tile,
                           const SparseShared<V>& shared, unsigned char* memory, int first_list, Sums<V> (&sums)[V::lists]) {
  using T = typename V::Element;
  auto* x = reinterpret_cast<Vector<T, 2>*>(memory + shared.x);
  auto* numbers = reinterpret_cast<int32_t*>(memory + shared.rows);
  const int at_once = blockDim.x / V::pairs, pair = threadIdx.x % V::pairs;
  const int columns = tile.halo_columns();
  const int window = tile.top(tile.band_of(pair)) * columns + tile.column_of(pair) * V::stride;
  const int lists = int((call.shape.out_channels / call.shape.groups + kListOutputs - 1) / kListOutputs);
  const SparseSection section(call.packed, call.gradient, int(call.shape.groups));
  const SparseBlock* last = section.blocks_of(blockIdx.z + 1) - 1;
  const HaloSource<V> source(call.x, call.shape, tile, reinterpret_cast<const Places*>(memory + shared.places));

  SparseChunk chunk(section.blocks_of(blockIdx.z), section.blocks_of(blockIdx.z)->begin, source.channels);
  HaloAhead<V> ahead;
  ahead.ask(source, section, chunk);
  for (;;) {
    ahead.put(source, chunk.channels(), x, numbers);
    __syncthreads();
    const SparseChunk here = chunk;
    const bool done = chunk.ends_block() && chunk.block == last;
    if (!done) {
      chunk = chunk.next(source.channels);
      ahead.ask(...);
    }
    WarpLists<V> warp_lists(call.packed, *here.block, first_list, lists);
    for (int channel = threadIdx.x / V::pairs; channel < here.channels(); channel += at_once) {
      transform<V>(x + channel * source.plane + window, columns, numbers + channel * V::kernel * V::pitch,
                   memory + shared.z + pair * 4);
    }
    __syncthreads();
    if (here.ends_block()) warp_lists.add(memory + shared.z, sums);
    if (done) return;
  }
}
