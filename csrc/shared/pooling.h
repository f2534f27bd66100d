// A pooling's geometry. `rows`: channels_last.
#pragma once

#include <cstdint>

namespace explainfix {

struct Pooling {
  int64_t images, channels, height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2];
  bool rows;
};

}  // namespace explainfix
