// The hadamard kernel's entry, called by cpu/ops/hadamard_conv2d.cpp: the filters as numbers, and a convolution by them
// on the host's threads.
#pragma once

#include <vector>

#include "cpu/tile/tiled_conv.h"
#include "host/hadamard_checks.h"
#include "shared/conv_params.h"

namespace explainfix {

// A HadamardBank in plain memory. The places are checked.
struct HadamardFilters {
  int64_t terms, chunks, groups, outputs, per_group, kh, kw, order, stages;
  double scale;
  std::vector<float> columns, rows;          // (T, O, kh), (T, J, groups, I/groups, kw)
  std::vector<int16_t> out_place, in_place;  // (O,) in [0, J order), (groups, I/groups) in [0, order)

  explicit HadamardFilters(const HadamardBank& bank);

  int64_t group_of(int64_t output) const { return output / (outputs / groups); }
  const float* column(int64_t term, int64_t output) const { return &columns[(term * outputs + output) * kh]; }
  const float* row(int64_t term, int64_t chunk, int64_t group, int64_t input) const {
    return &rows[(((term * chunks + chunk) * groups + group) * per_group + input) * kw];
  }
  // Filter (output, input), kh x kw.
  void filter(int64_t output, int64_t input, double* to) const;
};

// Is there a kernel for this geometry and dtype?
bool hadamard_fits(const Tensor& x, const HadamardFilters& f, const ConvParams& conv);

// Convolves x to y; or, with `transposed`, the output's gradient x to the input's gradient y.
void run_hadamard(const Tensor& x, Tensor& y, const std::optional<Tensor>& bias, const HadamardFilters& f,
                  const ConvParams& conv, bool transposed, const Finish& finish = {});

}  // namespace explainfix
