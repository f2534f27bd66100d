// The convolutions that the library brings to ONNX Runtime: what their nodes have, and what computes them.
//
// All of that comes from a model's file, which anyone may have written. So `run` checks whatever a kernel indexes by.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "onnx/ort_host.h"

namespace explainfix {

// A node's attributes.
struct Attributes {
  std::vector<int64_t> stride, padding;  // of height and width
  int64_t groups = 1;
  std::string activation;         // a name of convs.cpp's list
  int64_t order = 0, stages = 0;  // of HadamardConv
};

using Inputs = std::vector<std::optional<Tensor>>;                      // those that may be left out may be missing
using MakeOutput = std::function<Tensor(const std::vector<int64_t>&)>;  // given its sizes

struct Input {
  ScalarType type;
  bool optional = false;
};

// Where a size is found: an axis of an input.
struct Place {
  int input, axis;
};

struct Conv {
  const char* name;
  std::vector<Input> inputs;  // x first
  bool transforms;            // has the attributes order and stages
  Place outputs, kernel[2];   // the number of outputs, the kernel's height and width
  void (*run)(const Attributes& attributes, const Inputs& inputs, const MakeOutput& make_output);
};

const std::vector<Conv>& convs();

}  // namespace explainfix
