// RegisterCustomOps, which ONNX Runtime calls when a session's options load the library: it offers the convolutions of
// convs.h in the domain `explainfix`, by the C API of ONNX Runtime 1.17.
#include <cstdint>
#include <memory>

#include "onnx/convs.h"

namespace explainfix {
namespace {

struct Op : OrtCustomOp {
  const Conv* conv;
};

const Conv& conv_of(const OrtCustomOp* op) { return *static_cast<const Op*>(op)->conv; }

struct Kernel {
  const Conv* conv;
  Attributes attributes;
  Threads threads;
};

// ---------------------------------------------------------------------------------------------------------------------
// A kernel

std::vector<int64_t> pair_of(const OrtKernelInfo* info, const char* name) {
  std::vector<int64_t> pair(2);
  size_t count = 0;
  check(ort->KernelInfoGetAttributeArray_int64(info, name, nullptr, &count));
  EXPLAINFIX_CHECK(count == 2, name, " must be two integers, got ", count);
  check(ort->KernelInfoGetAttributeArray_int64(info, name, pair.data(), &count));
  return pair;
}

int64_t integer_of(const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  check(ort->KernelInfoGetAttribute_int64(info, name, &value));
  return value;
}

std::string text_of(const OrtKernelInfo* info, const char* name) {
  size_t size = 0;  // with the 0 at the end
  check(ort->KernelInfoGetAttribute_string(info, name, nullptr, &size));
  std::string text(size, '\0');
  check(ort->KernelInfoGetAttribute_string(info, name, text.data(), &size));
  return text.c_str();
}

OrtStatus* ORT_API_CALL create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  return status_of([&] {
    auto made = std::make_unique<Kernel>();
    made->conv = &conv_of(op);
    Attributes& a = made->attributes;
    a.stride = pair_of(info, "stride");
    a.padding = pair_of(info, "padding");
    a.groups = integer_of(info, "groups");
    a.activation = text_of(info, "activation");
    if (made->conv->transforms) {
      a.order = integer_of(info, "order");
      a.stages = integer_of(info, "stages");
    }
    *kernel = made.release();
  });
}

std::vector<int64_t> sizes_of(const OrtTensorTypeAndShapeInfo* info) {
  size_t axes = 0;
  check(ort->GetDimensionsCount(info, &axes));
  std::vector<int64_t> sizes(axes);
  check(ort->GetDimensions(info, sizes.data(), axes));
  return sizes;
}

std::optional<Tensor> input_of(const OrtKernelContext* context, size_t number) {
  size_t count = 0;
  check(ort->KernelContext_GetInputCount(context, &count));
  const OrtValue* value = nullptr;
  if (number < count) check(ort->KernelContext_GetInput(context, number, &value));
  if (!value) return std::nullopt;
  OrtTensorTypeAndShapeInfo* held = nullptr;
  check(ort->GetTensorTypeAndShape(value, &held));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> info(
      held, ort->ReleaseTensorTypeAndShapeInfo);
  ONNXTensorElementDataType type{};
  check(ort->GetTensorElementType(held, &type));
  void* data = nullptr;
  check(ort->GetTensorMutableData(const_cast<OrtValue*>(value), &data));  // there is no other way; it is only read
  return Tensor(data, ScalarType(type), sizes_of(held));
}

OrtStatus* ORT_API_CALL compute(void* state, OrtKernelContext* context) {
  return status_of([&] {
    Kernel& kernel = *static_cast<Kernel*>(state);
    const std::vector<Input>& expected = kernel.conv->inputs;
    Inputs inputs;
    for (size_t i = 0; i < expected.size(); ++i) {
      inputs.push_back(input_of(context, i));
      EXPLAINFIX_CHECK(inputs[i] || expected[i].optional, kernel.conv->name, " must have input ", i);
    }
    const Running running(context, kernel.threads);
    kernel.conv->run(kernel.attributes, inputs, [&](const std::vector<int64_t>& sizes) {
      OrtValue* value = nullptr;
      void* data = nullptr;
      check(ort->KernelContext_GetOutput(context, 0, sizes.data(), sizes.size(), &value));
      check(ort->GetTensorMutableData(value, &data));
      return Tensor(data, ScalarType::Float, sizes);
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Shapes, for ONNX Runtime to plan by before it runs

std::vector<int64_t> pair_of(const OrtShapeInferContext* context, const char* name) {
  const OrtOpAttr* attribute = nullptr;
  std::vector<int64_t> pair(2);
  size_t bytes = 0;
  check(ort->ShapeInferContext_GetAttribute(context, name, &attribute));
  check(ort->ReadOpAttr(attribute, ORT_OP_ATTR_INTS, pair.data(), sizeof(int64_t) * pair.size(), &bytes));
  EXPLAINFIX_CHECK(bytes == sizeof(int64_t) * pair.size(), name, " must be two integers");
  return pair;
}

// The size at a place; -1 where it is not known.
int64_t size_at(const OrtShapeInferContext* context, Place place) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort->ShapeInferContext_GetInputTypeShape(context, size_t(place.input), &info));
  const std::vector<int64_t> sizes = sizes_of(info);
  return place.axis < int(sizes.size()) ? sizes[place.axis] : -1;
}

OrtStatus* ORT_API_CALL infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return status_of([&] {
    const Conv& conv = conv_of(op);
    const std::vector<int64_t> stride = pair_of(context, "stride"), padding = pair_of(context, "padding");
    std::vector<int64_t> sizes{size_at(context, {0, 0}), size_at(context, conv.outputs)};
    for (int a = 0; a < 2; ++a) {
      const int64_t in = size_at(context, {0, 2 + a}), kernel = size_at(context, conv.kernel[a]);
      const bool known = in >= 0 && kernel >= 1 && stride[a] >= 1 && stride[a] <= INT32_MAX && padding[a] >= 0 &&
                         padding[a] <= INT32_MAX && in + 2 * padding[a] >= kernel;
      sizes.push_back(known ? (in + 2 * padding[a] - kernel) / stride[a] + 1 : -1);
    }
    OrtTensorTypeAndShapeInfo *x = nullptr, *made = nullptr;
    check(ort->ShapeInferContext_GetInputTypeShape(context, 0, &x));
    size_t axes = 0;
    check(ort->GetDimensionsCount(x, &axes));
    const char* names[4] = {"", "", "", ""};
    if (axes == 4) check(ort->GetSymbolicDimensions(x, names, axes));
    const char* kept[4] = {names[0], "", "", ""};  // the batch has x's name
    check(ort->CreateTensorTypeAndShapeInfo(&made));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> y(
        made, ort->ReleaseTensorTypeAndShapeInfo);
    check(ort->SetTensorElementType(made, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
    check(ort->SetDimensions(made, sizes.data(), sizes.size()));
    check(ort->SetSymbolicDimensions(made, kept, 4));
    check(ort->ShapeInferContext_SetOutputTypeShape(context, 0, made));
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// The operators

Op op_of(const Conv& conv) {
  Op op{};
  op.version = kOrtApi;
  op.conv = &conv;
  op.GetName = [](const OrtCustomOp* self) { return conv_of(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return conv_of(self).inputs.size(); };
  op.GetInputType = [](const OrtCustomOp* self, size_t i) {
    return ONNXTensorElementDataType(conv_of(self).inputs[i].type);
  };
  op.GetInputCharacteristic = [](const OrtCustomOp* self, size_t i) {
    return conv_of(self).inputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t(1); };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.InferOutputShapeFn = infer_shape;
  return op;
}

void add_domain(OrtSessionOptions* options) {
  static const std::vector<Op> ops = [] {
    std::vector<Op> made;
    for (const Conv& conv : convs()) made.push_back(op_of(conv));
    return made;
  }();
  // Sessions use it as long as the process lives.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort->CreateCustomOpDomain("explainfix", &made));
    for (const Op& op : ops) check(ort->CustomOpDomain_Add(made, &op));
    return made;
  }();
  check(ort->AddCustomOpDomain(options, domain));
}

}  // namespace
}  // namespace explainfix

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                            const OrtApiBase* base) {
  using namespace explainfix;
  ort = base->GetApi(kOrtApi);
  if (!ort) return base->GetApi(1)->CreateStatus(ORT_FAIL, "explainfix needs ONNX Runtime 1.17 or later");
  return status_of([&] { add_domain(options); });
}
