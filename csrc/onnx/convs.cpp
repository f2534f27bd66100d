#include "onnx/convs.h"

#include <cstdint>

#include "cpu/driver/hadamard.h"
#include "cpu/driver/tiling.h"
#include "host/hadamard_checks.h"
#include "shared/passes.h"

namespace explainfix {
namespace {

const std::vector<int64_t> kNoDilation{1, 1};

ConvParams params_of(const Attributes& a) { return {a.stride, a.padding, kNoDilation, a.groups}; }

int act_of(const std::string& name) {
  for (const auto& [known, act] : {std::pair<const char*, int>("", kIdentity),
                                   {"relu", kRelu},
                                   {"relu6", kRelu6},
                                   {"silu", kSilu},
                                   {"hardswish", kHardswish}}) {
    if (name == known) return act;
  }
  throw_message("activation must be empty, relu, relu6, silu or hardswish, got ", name);
}

void check_vector(const Tensor& t, const char* name, int64_t size) {
  EXPLAINFIX_CHECK(t.scalar_type() == ScalarType::Float && t.dim() == 1 && t.size(0) == size, name,
                   " must be float32 [", size, "], got ", describe(t));
}

void check_x(const Tensor& x) {
  EXPLAINFIX_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 4 && x.size(1) > 0 && x.size(1) <= INT32_MAX &&
                       x.size(0) <= INT32_MAX,
                   "x must be float32 [N, C, H, W] with channels, got ", describe(x));
}

// Returns what is added to the output, or null.
const float* residual_of(const std::optional<Tensor>& residual, const std::vector<int64_t>& size) {
  if (!residual) return nullptr;
  EXPLAINFIX_CHECK(residual->scalar_type() == ScalarType::Float && residual->sizes() == size,
                   "residual must be float32 of the output's shape, got ", describe(*residual));
  return residual->const_data_ptr<float>();
}

// Checks what the convolutions by tile kernels have in common. Returns the output's sizes.
std::vector<int64_t> check_tiled(const Tensor& x, const Tensor& basis, int64_t outputs, const ConvParams& conv) {
  check_x(x);
  check_basis(basis);
  check_geometry(conv);
  EXPLAINFIX_CHECK(conv.groups >= 1 && outputs >= 1 && outputs % conv.groups == 0 && x.size(1) % conv.groups == 0,
                   "groups must divide the channels, got ", conv.groups, " for ", x.size(1), " and ", outputs);
  EXPLAINFIX_CHECK(tiles_fit(x, basis, conv.stride, conv.dilation),
                   "filters must be 3x3, 5x5 or 7x7 and the stride 1 or 2, got ", describe(basis));
  const std::vector<int64_t> out = output_size({x.size(2), x.size(3)}, {basis.size(1), basis.size(2)}, conv);
  EXPLAINFIX_CHECK(can_count(x.size(2), x.size(3)) && can_count(out[0], out[1]), "x must have fewer pixels, got ",
                   describe(x));
  return {x.size(0), outputs, out[0], out[1]};
}

// x, packed, basis, scale, bias, residual
void index_conv(const Attributes& a, const Inputs& in, const MakeOutput& make_output) {
  const Tensor &x = *in[0], &packed = *in[1], &basis = *in[2], &scale = *in[3], &bias = *in[4];
  const ConvParams conv = params_of(a);
  const int64_t outputs = scale.numel();
  check_vector(scale, "scale", outputs);
  check_vector(bias, "bias", outputs);
  const std::vector<int64_t> size = check_tiled(x, basis, outputs, conv);
  EXPLAINFIX_CHECK(packed.scalar_type() == ScalarType::Int, "packed must be int32, got ", describe(packed));
  const Finish finish{scale.const_data_ptr<float>(), bias.const_data_ptr<float>(), residual_of(in[5], size),
                      act_of(a.activation), 0.0f};
  Tensor y = make_output(size);
  run_sparse_index({x, y, std::nullopt, basis, false, 1.0, conv.groups, conv.stride, conv.padding, finish}, packed,
                   false);
}

// x, coeff, basis, bias, residual
void low_rank_conv(const Attributes& a, const Inputs& in, const MakeOutput& make_output) {
  const Tensor &x = *in[0], &coeff = *in[1], &basis = *in[2], &bias = *in[3];
  const ConvParams conv = params_of(a);
  EXPLAINFIX_CHECK(coeff.scalar_type() == ScalarType::Float && coeff.dim() == 3,
                   "coeff must be float32 [O, I, L], got ", describe(coeff));
  const std::vector<int64_t> size = check_tiled(x, basis, coeff.size(0), conv);
  EXPLAINFIX_CHECK(coeff.size(1) == x.size(1) / conv.groups && coeff.size(2) == basis.size(0), "coeff must be [O, ",
                   x.size(1) / conv.groups, ", ", basis.size(0), "], got ", describe(coeff));
  check_vector(bias, "bias", size[1]);
  const Finish finish{nullptr, nullptr, residual_of(in[4], size), act_of(a.activation), 0.0f};
  Tensor y = make_output(size);
  run_low_rank({x, y, bias, basis, false, 1.0, conv.groups, conv.stride, conv.padding, finish}, coeff, false);
}

// x, columns, rows, outputs, inputs, bias, residual
void hadamard_conv(const Attributes& a, const Inputs& in, const MakeOutput& make_output) {
  const Tensor& x = *in[0];
  const ConvParams conv = params_of(a);
  const HadamardBank bank{*in[1], *in[2], *in[3], *in[4], a.order, a.stages, 1.0};
  check_x(x);
  EXPLAINFIX_CHECK(conv.groups >= 1, "groups must be at least 1, got ", conv.groups);
  const std::vector<int64_t> out = check_hadamard_forward(x, bank, std::nullopt, in[5], conv, kHadamard);
  const std::vector<int64_t> size{x.size(0), bank.out_channels(), out[0], out[1]};
  const HadamardFilters filters(bank);
  EXPLAINFIX_CHECK(hadamard_fits(x, filters, conv), "filters and stride must be those of the kernel, got ",
                   describe(bank.columns));
  const Finish finish{nullptr, nullptr, residual_of(in[6], size), act_of(a.activation), 0.0f};
  Tensor y = make_output(size);
  run_hadamard(x, y, in[5], filters, conv, false, finish);
}

}  // namespace

const std::vector<Conv>& convs() {
  constexpr ScalarType kFloat = ScalarType::Float, kDouble = ScalarType::Double, kShort = ScalarType::Short;
  constexpr Input kResidual{kFloat, true};
  static const std::vector<Conv> all{
      {"IndexConv",
       {{kFloat}, {ScalarType::Int}, {kDouble}, {kFloat}, {kFloat}, kResidual},
       false,
       {3, 0},
       {{2, 1}, {2, 2}},
       index_conv},
      {"LowRankConv",
       {{kFloat}, {kFloat}, {kDouble}, {kFloat}, kResidual},
       false,
       {1, 0},
       {{2, 1}, {2, 2}},
       low_rank_conv},
      {"HadamardConv",
       {{kFloat}, {kFloat}, {kFloat}, {kShort}, {kShort}, {kFloat}, kResidual},
       true,
       {1, 1},
       {{1, 2}, {2, 4}},
       hadamard_conv},
  };
  return all;
}

}  // namespace explainfix
