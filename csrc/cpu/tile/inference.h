// The convolutions that a network needs which only infers, and what follows one, as plain data: what
// cpu/ops/inference.cpp works out once a call, and the kernels of an instruction set read (pointwise.h, plane_conv.h).
#pragma once

#include <cstdint>

#include "shared/passes.h"

namespace explainfix {

// y = act(scale * y + bias + residual), one scale and bias for each channel.
struct Finish {
  const float *scale, *bias;  // or null
  const float* residual;      // of y's shape and layout, or null
  int act;                    // an Act
  float slope;

  bool any() const { return scale || bias || residual || act; }
};

// Images are (N, C, H, W) float32 without gaps. Pixels of the output are numbered over all images, so that vectors are
// full where planes are small.
struct PointwiseConv {
  const float *x, *weight;  // weight (O, C)
  const float* gate;        // (N, C) that x is multiplied by, or null
  float* y;
  Finish finish;
  int64_t pixels, in_plane, out_plane;  // outputs' pixels of all images; pixels of one plane
  int in_channels, out_channels, width, out_width, stride;
  int tile_vectors, tiles, parts;  // a task has a tile of the pixels and a part of the outputs
};

// A depthwise convolution: a filter for each channel. Stride 1 or 2.
struct PlaneConv {
  const float *x, *weight;  // weight (C, kh, kw)
  float* y;
  Finish finish;
  int channels, height, width, out_height, out_width;
  int kernel[2], padding[2], stride;
  int band, pitch;  // rows of y that are computed together; floats of a line of scratch memory
};

}  // namespace explainfix
