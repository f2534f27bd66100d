// A convolution as a kernel of csrc/kernels sees it: sizes, in elements.
#pragma once

#include <cstdint>

namespace explainfix {

// Of what is computed: a forward pass, or an input gradient with stride 1, which is a forward pass of the gradient with
// the flipped filters, channels exchanged. `in` is read and `out` written; both are contiguous or (rows) channels_last.
struct ConvShape {
  int64_t images, groups, in_channels, out_channels;  // channels of all groups
  int64_t height, width, out_height, out_width;
  int kernel[2], stride[2], padding[2];
  bool rows;
};

}  // namespace explainfix
