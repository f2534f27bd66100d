// Composes the weight of the dense plan from a hadamard bank, as filters/hadamard.py's formula says; see
// materialize.cuh for the other banks.
#pragma once

#include "cuda/device/dense/materialize.cuh"

namespace explainfix {

// The parts of the bank: columns (T, O, kh), rows (T, J, groups, I/groups, kw), outputs (O,), inputs (groups,
// I/groups).
struct HadamardParts {
  const float *columns, *rows;
  const int16_t *outputs, *inputs;
  int64_t terms, chunks, groups, out_channels, kh, kw;
  unsigned order, stages;
};

// The places come from a tensor, whose values nobody has checked: none reads outside of the rows.
template <class T>
__global__ void compose_hadamard_kernel(WeightLayout w, HadamardParts p, double scale, T* weight) {
  using Acc = WideType<T>;
  const int64_t step = int64_t(gridDim.x) * blockDim.x, of_group = p.out_channels / p.groups;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < w.filters * w.k2; at += step) {
    int64_t filter, pixel;
    locate(w, at, &filter, &pixel);
    const int64_t o = filter / w.per_group, i = filter % w.per_group, group = o / of_group;
    const unsigned out = uint16_t(p.outputs[o]), in = uint16_t(p.inputs[group * w.per_group + i]);
    const int64_t chunk = out / p.order < p.chunks ? out / p.order : p.chunks - 1;
    Acc sum = 0;
    for (int64_t t = 0; t < p.terms; ++t) {
      const float column = p.columns[(t * p.out_channels + o) * p.kh + pixel / p.kw];
      const int64_t row = ((t * p.chunks + chunk) * p.groups + group) * w.per_group + i;
      sum += static_cast<Acc>(column) * static_cast<Acc>(p.rows[row * p.kw + pixel % p.kw]);
    }
    unsigned ones = out & in & p.stages, odd = 0;
    for (; ones; ones &= ones - 1) odd ^= 1;
    const bool zero = (out ^ in) & (p.order - 1) & ~p.stages;
    const Acc sign = zero ? 0 : odd ? -1 : 1;
    weight[at] = static_cast<T>(static_cast<Acc>(scale) * sign * sum);
  }
}

}  // namespace explainfix
