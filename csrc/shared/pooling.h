// The geometry of max pooling, as plain data for the kernels of both devices. torch_api/pool_ops.h fills it in.
#pragma once

#include <cstdint>

namespace explainfix {

struct Pooling {
  int64_t images, channels, height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];  // of height and width
  bool channels_last;
};

// How many windows there are along one axis, as torch counts them.
inline int64_t pooled_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, bool ceil_mode) {
  const int64_t steps = size + 2 * padding - kernel;
  int64_t out = (steps + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + padding) --out;  // the last window must begin inside
  return out;
}

}  // namespace explainfix
