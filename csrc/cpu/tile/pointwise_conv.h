// A learned 1x1 convolution as plain data: what cpu/ops/inference.cpp works out once a call, and the kernels of an
// instruction set read.
#pragma once

#include <cstdint>

#include "cpu/tile/tiled_conv.h"

namespace explainfix {

// Images are (N, C, H, W) float32 without gaps. Pixels of the output are numbered over all images, so that vectors are
// full where planes are small.
struct PointwiseConv {
  const float *x, *weight;  // weight (O, C)
  float* y;
  Finish finish;
  int64_t pixels, in_plane, out_plane;  // outputs' pixels of all images; pixels of one plane
  int in_channels, out_channels, width, out_width, stride;
  int tile_vectors, tiles, parts;  // a task has a tile of the pixels and a part of the outputs
};

}  // namespace explainfix
