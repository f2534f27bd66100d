// The ops explainfix::batch_norm_factors, affine_act and so on, which memory saving needs: checks the arguments, makes
// the results, and describes the work as a `Pass` (shared/passes.h). A backend (cpu/ops/passes.cpp,
// cuda/launch/passes.cu) runs it:
//   Backend::run(p, like)             a whole pass, on like's device
//   Backend::factors(p, norm, x)   mean and variance of each channel of x, and what BatchNorm makes of them
//   Backend::sums(p, result)          the two sums of each channel
//   Backend::input_grad(p, factors, sums, count, like)
#pragma once

#include <tuple>

#include "shared/batch_norm.h"
#include "shared/passes.h"
#include "torch_api/stable_abi.h"

namespace explainfix {

inline PassType type_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return PassType::kFloat;
    case ScalarType::Double:
      return PassType::kDouble;
    case ScalarType::BFloat16:
      return PassType::kBFloat16;
    case ScalarType::Half:
      return PassType::kHalf;
    default:
      STD_TORCH_CHECK(false, name, " must be floating, got ", torch::headeronly::toString(t.scalar_type()));
  }
}

inline ScalarType wide_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool is_channels_last(const Tensor& t) {
  return t.dim() == 4 && memory_format_of(t) == MemoryFormat::ChannelsLast;
}

// t itself or a copy, so that its memory is dense and in the format.
inline Tensor in_layout(const Tensor& t, bool channels_last) {
  return dense_in(t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Numbers that are not of the size of an activation.
inline Tensor empty_numbers(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype) {
  return empty_in(like, size, MemoryFormat::Contiguous, dtype);
}

inline Tensor empty_as(const Tensor& t, std::optional<ScalarType> dtype = std::nullopt) {
  return empty_planes(t, t.size(1), t.size(2), t.size(3), dtype);
}

// A pass over t; the caller fills in the pointers.
inline Pass pass_over(PassKind kind, const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, name, " must be [N, C, H, W], got ", t.dim(), " dimensions");
  Pass p{};
  p.kind = kind;
  p.type = type_of(t, name);
  p.channels_last = is_channels_last(t);
  p.images = t.size(0);
  p.channels = t.size(1);
  p.pixels = t.size(2) * t.size(3);
  return p;
}

// An Act of activations.h: the kernels know no other.
inline int checked_act(int64_t act) {
  STD_TORCH_CHECK(act >= 0 && act < kActs, "act must be 0 to ", kActs - 1, ", got ", act);
  return int(act);
}

// Checks a row of numbers for each channel, or several, and returns where they are.
inline const void* by_channel(const Tensor& t, const char* name, int64_t rows, const Pass& p, const Tensor& x) {
  const ScalarType dtype = wide_type(x);
  check_device(t, x, name);
  const bool shape = t.dim() == (rows > 1 ? 2 : 1) && (rows == 1 || t.size(0) == rows) && t.size(-1) == p.channels;
  const std::string expected =
      (rows > 1 ? "[" + std::to_string(rows) + ", C = " : "[C = ") + std::to_string(p.channels);
  STD_TORCH_CHECK(shape && t.is_contiguous() && t.scalar_type() == dtype, name, " must be ",
                  torch::headeronly::toString(dtype), " ", expected, "], contiguous, got ", describe(t));
  return t.data_ptr();
}

inline const void* by_channel(const std::optional<Tensor>& t, const char* name, const Pass& p, const Tensor& x) {
  return t.has_value() ? by_channel(*t, name, 1, p, x) : nullptr;
}

inline void check_same(const Tensor& t, const char* name, const Tensor& like, const char* other) {
  bool same = t.dim() == like.dim() && t.scalar_type() == like.scalar_type();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  STD_TORCH_CHECK(same, name, " must have the shape and dtype of ", other);
  check_device(t, like, name);
}

// May a pass overwrite t in place?
inline void check_writable(const Tensor& t, const char* name) {
  bool dense = t.is_contiguous();
  if (!dense && is_channels_last(t)) {
    dense = t.stride(1) == 1 && t.stride(3) == t.size(1) && t.stride(2) == t.size(3) * t.size(1) &&
            (t.size(0) == 1 || t.stride(0) == t.numel() / t.size(0));
  }
  STD_TORCH_CHECK(dense, name, " is overwritten: it must be contiguous or channels_last");
}

// A pass over the memory of t in any format, for masks: bits are in the order of the memory.
inline Pass flat_pass(PassKind kind, const Tensor& t, const char* name) {
  Pass p{};
  p.kind = kind;
  p.type = type_of(t, name);
  p.images = p.channels = 1;
  p.pixels = t.numel();
  return p;
}

template <class Backend>
struct PassOps {
  static Tensor batch_norm_factors(const Tensor& input, const std::optional<Tensor>& weight,
                                   const std::optional<Tensor>& bias, const std::optional<Tensor>& running_mean,
                                   const std::optional<Tensor>& running_var, double share, double eps) {
    Pass p = pass_over(PassKind::kStats, input, "x");
    STD_TORCH_CHECK(p.images * p.pixels > 0, "x must have pixels, got none");
    STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                    "running_mean and running_var must come together");
    const Tensor x = in_layout(input, p.channels_last);
    Tensor factors = empty_numbers(x, {kFactors, p.channels}, wide_type(x));
    BatchNorm norm{p.channels, double(p.images * p.pixels)};
    norm.weight = by_channel(weight, "weight", p, x);
    norm.bias = by_channel(bias, "bias", p, x);
    norm.running_mean = const_cast<void*>(by_channel(running_mean, "running_mean", p, x));
    norm.running_var = const_cast<void*>(by_channel(running_var, "running_var", p, x));
    norm.share = share;
    norm.eps = eps;
    norm.factors = factors.data_ptr();
    p.x = x.data_ptr();
    Backend::factors(p, norm, x);
    return factors;
  }

  static Tensor batch_norm_sums(const Tensor& grad, const Tensor& input, const Tensor& factors) {
    Pass p = pass_over(PassKind::kBatchNormSums, input, "x");
    check_same(grad, "grad", input, "x");
    const Tensor x = in_layout(input, p.channels_last), g = in_layout(grad, p.channels_last);
    p.x = x.data_ptr();
    p.grad = g.data_ptr();
    set_factors(p, factors, x, kMean, kInvstd);
    Tensor result = empty_numbers(x, {2, p.channels}, wide_type(x));
    Backend::sums(p, result);
    return result;
  }

  static void set_factors(Pass& p, const Tensor& factors, const Tensor& x, FactorRow a, FactorRow b) {
    const char* rows = static_cast<const char*>(by_channel(factors, "factors", kFactors, p, x));
    p.a = rows + a * p.channels * (p.type == PassType::kDouble ? 8 : 4);
    p.b = rows + b * p.channels * (p.type == PassType::kDouble ? 8 : 4);
  }

  static Tensor affine_act(const Tensor& x, const Tensor& factors, int64_t act, double slope) {
    Pass p = pass_over(PassKind::kAffineAct, x, "x");
    const Tensor input = in_layout(x, p.channels_last);
    Tensor y = empty_as(input);
    p.x = p.grad = input.data_ptr();
    p.y = y.data_ptr();
    set_factors(p, factors, x, kAlpha, kBeta);
    p.act = checked_act(act);
    p.slope = slope;
    Backend::run(p, y);
    return y;
  }

  // A pass that writes dx, which may be grad.
  static Pass gradient_pass(PassKind kind, const Tensor& dx, const Tensor& grad) {
    check_writable(dx, "dx");
    check_same(grad, "grad", dx, "dx");
    Pass p = pass_over(kind, dx, "dx");
    p.y = dx.data_ptr();
    return p;
  }

  static void affine_act_backward(const Tensor& dx, const Tensor& grad, const Tensor& x, const Tensor& factors,
                                  int64_t act, double slope) {
    Pass p = gradient_pass(PassKind::kAffineActGrad, dx, grad);
    check_same(x, "x", dx, "dx");
    const Tensor g = in_layout(grad, p.channels_last), input = in_layout(x, p.channels_last);
    p.x = input.data_ptr();
    p.grad = g.data_ptr();
    set_factors(p, factors, x, kAlpha, kBeta);
    p.act = checked_act(act);
    p.slope = slope;
    Backend::run(p, dx);
  }

  static void batch_norm_backward(const Tensor& dx, const Tensor& grad, const Tensor& x, const Tensor& factors,
                                  const Tensor& sums, double count) {
    Pass p = gradient_pass(PassKind::kBatchNormGrad, dx, grad);
    check_same(x, "x", dx, "dx");
    const Tensor g = in_layout(grad, p.channels_last), input = in_layout(x, p.channels_last);
    p.x = input.data_ptr();
    p.grad = g.data_ptr();
    Backend::input_grad(p, by_channel(factors, "factors", kFactors, p, x), by_channel(sums, "sums", 2, p, x), count,
                        dx);
  }

  static Tensor act_mask(const Tensor& y, int64_t act) {
    const Tensor input = in_layout(y, is_channels_last(y));
    Pass p = flat_pass(PassKind::kMask, input, "y");
    Tensor bits = empty_numbers(y, {(p.pixels + 7) / 8}, ScalarType::Byte);
    p.x = input.data_ptr();
    p.act = checked_act(act);
    p.bytes = bits.mutable_data_ptr<uint8_t>();
    Backend::run(p, bits);
    return bits;
  }

  static void mask_backward(const Tensor& dx, const Tensor& grad, const Tensor& mask, int64_t act, double slope) {
    check_writable(dx, "dx");
    check_same(grad, "grad", dx, "dx");
    Pass p = flat_pass(PassKind::kMaskGrad, dx, "dx");
    STD_TORCH_CHECK(mask.numel() == (p.pixels + 7) / 8 && mask.scalar_type() == ScalarType::Byte,
                    "mask must have a bit for each of ", p.pixels, " elements of grad, got ", mask.numel(), " bytes");
    check_device(mask, grad, "mask");
    const Tensor bits = dense_in(mask), g = in_layout(grad, is_channels_last(dx));
    p.grad = g.data_ptr();
    p.y = dx.data_ptr();
    p.act = checked_act(act);
    p.slope = slope;
    p.bytes = static_cast<uint8_t*>(bits.data_ptr());
    Backend::run(p, bits);
  }

  static std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& input) {
    Pass p = pass_over(PassKind::kQuantize, input, "x");
    STD_TORCH_CHECK(p.pixels > 0, "x must have pixels, got none");
    const Tensor x = in_layout(input, p.channels_last);
    Tensor codes = empty_as(x, ScalarType::Byte);
    Tensor low = empty_numbers(x, {p.images, p.channels}, wide_type(x));
    Tensor step = empty_numbers(x, {p.images, p.channels}, wide_type(x));
    p.x = x.data_ptr();
    p.bytes = codes.mutable_data_ptr<uint8_t>();
    p.low = low.data_ptr();
    p.step = step.data_ptr();
    Backend::run(p, codes);
    return {codes, low, step};
  }

  static Tensor dequantize(const Tensor& codes, const Tensor& low, const Tensor& step, ScalarType dtype) {
    STD_TORCH_CHECK(codes.dim() == 4 && codes.scalar_type() == ScalarType::Byte,
                    "codes must be Byte [N, C, H, W], got ", describe(codes));
    const Tensor input = in_layout(codes, is_channels_last(codes));
    Tensor y = empty_as(input, dtype);
    Pass p = pass_over(PassKind::kDequantize, y, "the result");
    const Tensor l = dense_in(low), s = dense_in(step);
    for (const Tensor& t : {l, s}) {
      check_device(t, y, "low and step");
      STD_TORCH_CHECK(t.numel() == p.images * p.channels && t.scalar_type() == wide_type(y), "low and step must be ",
                      torch::headeronly::toString(wide_type(y)), " [N, C] = [", p.images, ", ", p.channels, "], got ",
                      describe(t));
    }
    p.bytes = static_cast<uint8_t*>(input.data_ptr());
    p.y = y.data_ptr();
    p.low = l.data_ptr();
    p.step = s.data_ptr();
    Backend::run(p, y);
    return y;
  }
};

// For a backend's STABLE_TORCH_LIBRARY_IMPL.
#define EXPLAINFIX_REGISTER_PASSES(m, Backend)                                                  \
  m.impl("batch_norm_factors", TORCH_BOX(&explainfix::PassOps<Backend>::batch_norm_factors));   \
  m.impl("batch_norm_sums", TORCH_BOX(&explainfix::PassOps<Backend>::batch_norm_sums));         \
  m.impl("batch_norm_backward", TORCH_BOX(&explainfix::PassOps<Backend>::batch_norm_backward)); \
  m.impl("affine_act", TORCH_BOX(&explainfix::PassOps<Backend>::affine_act));                   \
  m.impl("affine_act_backward", TORCH_BOX(&explainfix::PassOps<Backend>::affine_act_backward)); \
  m.impl("act_mask", TORCH_BOX(&explainfix::PassOps<Backend>::act_mask));                       \
  m.impl("mask_backward", TORCH_BOX(&explainfix::PassOps<Backend>::mask_backward));             \
  m.impl("quantize", TORCH_BOX(&explainfix::PassOps<Backend>::quantize));                       \
  m.impl("dequantize", TORCH_BOX(&explainfix::PassOps<Backend>::dequantize))

}  // namespace explainfix
