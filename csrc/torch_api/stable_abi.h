// Helpers over the LibTorch Stable ABI, for the CPU and the CUDA binary, and torch as a host (host/host.h). Only the
// stable headers are included anywhere, so that one binary serves every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#define EXPLAINFIX_CHECK STD_TORCH_CHECK
#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // not in torch 2.10's headers
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace explainfix {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;

inline int64_t thread_count() { return torch::stable::get_num_threads(); }

// A C++ type as an argument of a lambda.
template <class T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>{}) with the C++ type of a floating dtype.
template <class F>
decltype(auto) switch_floating(ScalarType dtype, const char* what, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Double:
      return f(TypeTag<double>{});
    case ScalarType::Half:
      return f(TypeTag<torch::headeronly::Half>{});
    case ScalarType::BFloat16:
      return f(TypeTag<torch::headeronly::BFloat16>{});
    default:
      STD_TORCH_CHECK(false, what, " must be floating, got ", torch::headeronly::toString(dtype));
  }
}

// dtype and shape, for messages.
inline std::string describe(const Tensor& t) {
  std::string text = torch::headeronly::toString(t.scalar_type());
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : " [") + std::to_string(t.size(i));
  return text + (t.dim() ? "]" : " []");
}

inline void check_device(const Tensor& t, const Tensor& x, const char* name) {
  const bool same =
      t.is_cuda() ? x.is_cuda() && t.get_device_index() == x.get_device_index() : t.is_cpu() && x.is_cpu();
  STD_TORCH_CHECK(same, name, " must be on the device of the other tensors");
}

// The memory format of x, as Python's memory_format_of finds it for the ops' fake implementations: strides decide,
// sizes of 1 do not matter, and (N, 1, 1, 1) is contiguous.
inline MemoryFormat memory_format_of(const Tensor& x) {
  if (x.dim() != 4 || x.stride(1) == 0) return MemoryFormat::Contiguous;
  int64_t expected = 0;
  for (int64_t axis : {1, 3, 2, 0}) {
    const int64_t size = x.size(axis), stride = x.stride(axis);
    if (size == 0 || stride < expected || (axis == 0 && expected == x.stride(1))) {
      return MemoryFormat::Contiguous;
    }
    expected = size > 1 ? stride * size : stride;
  }
  return MemoryFormat::ChannelsLast;
}

// t itself or a copy, so that its memory is dense and in the format. To ask torch takes a microsecond even where there
// is nothing to copy, which is most of the time.
inline Tensor dense_in(const Tensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  bool is = format == MemoryFormat::Contiguous && t.is_contiguous();
  if (format == MemoryFormat::ChannelsLast && t.dim() == 4) {
    is = t.stride(1) == 1 && t.stride(3) == t.size(1) && t.stride(2) == t.size(3) * t.size(1) &&
         t.stride(0) == t.size(2) * t.stride(2);
  }
  return is ? t : torch::stable::contiguous(t, format);
}

// The numbers as float32, whichever floating dtype they have.
inline std::vector<float> floats_of(const Tensor& t) {
  std::vector<float> values;
  values.reserve(t.numel());
  const Tensor dense = dense_in(t);
  switch_floating(t.scalar_type(), "values", [&](auto tag) {
    const auto* data = dense.const_data_ptr<typename decltype(tag)::type>();
    for (int64_t i = 0; i < t.numel(); ++i) values.push_back(float(data[i]));
  });
  return values;
}

// Calls an operator of torch by name; returns its first result, a tensor.
template <size_t n>
Tensor call_aten(const char* op, std::array<StableIValue, n> stack, const char* overload = "") {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// An uninitialised tensor in a memory format, on x's device and of its dtype or another. It is made as such and not as
// a permuted view: the result of an autograd.Function that is a view cannot be written to in place. torch's operator
// new_empty, which the dispatcher finds by name, takes twice the time.
inline Tensor empty_in(const Tensor& x, const std::vector<int64_t>& size, MemoryFormat format,
                       std::optional<ScalarType> dtype = std::nullopt) {
  std::vector<int64_t> stride(size.size());
  int64_t step = 1;
  const auto next = [&](size_t axis) {
    stride[axis] = step;
    step *= std::max<int64_t>(size[axis], 1);
  };
  if (format == MemoryFormat::Contiguous) {
    for (size_t axis = size.size(); axis-- > 0;) next(axis);
  } else {
    for (size_t axis : {1, 3, 2, 0}) next(axis);
  }
  int32_t type = 0, device = 0;
  if (dtype.has_value()) {
    type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &type));
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(size.size()), size.data(), stride.data(), type, device,
                                                         x.get_device_index(), &made));
  return Tensor(made);
}

// The same like x, in x's memory format.
inline Tensor empty_planes(const Tensor& x, int64_t channels, int64_t height, int64_t width,
                           std::optional<ScalarType> dtype = std::nullopt) {
  return empty_in(x, {x.size(0), channels, height, width}, memory_format_of(x), dtype);
}

}  // namespace explainfix
