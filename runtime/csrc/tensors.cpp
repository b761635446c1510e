#include "tensors.hpp"

#include <cstdio>

namespace spq {

using ort::Api;
using ort::call;
using ort::Status;

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

std::string text(float number) {
  char out[32];
  std::snprintf(out, sizeof out, "%g", static_cast<double>(number));
  return out;
}

Status* invalid(const Api* api, const char* name, const std::string& what) {
  return call<ort::CreateStatus>(api, ort::kInvalidArgument, ("spq::" + std::string(name) + ": " + what).c_str());
}

namespace {

Status* read_info(const Api* api, ort::TypeAndShape* info, Tensor* out) {
  size_t rank = 0;
  Status* status = call<ort::GetTensorElementType>(api, info, &out->type);
  if (status == nullptr) status = call<ort::GetDimensionsCount>(api, info, &rank);
  out->shape.resize(rank);
  if (status == nullptr) status = call<ort::GetDimensions>(api, info, out->shape.data(), rank);
  return status;
}

}  // namespace

Status* read_tensor(const Api* api, const ort::Value* value, Tensor* out) {
  ort::TypeAndShape* info = nullptr;
  if (Status* status = call<ort::GetTensorTypeAndShape>(api, value, &info)) return status;
  Status* status = read_info(api, info, out);
  call<ort::ReleaseTensorTypeAndShapeInfo>(api, info);
  if (status != nullptr) return status;
  // The interface has no way to read without leave to write before version 1.23.
  return call<ort::GetTensorMutableData>(api, const_cast<ort::Value*>(value), &out->data);
}

Status* read_input(const Api* api, ort::KernelContext* context, size_t index, Tensor* out, bool* present) {
  const ort::Value* value = nullptr;
  if (Status* status = call<ort::KernelContext_GetInput>(api, context, index, &value)) return status;
  *present = value != nullptr;
  return value == nullptr ? nullptr : read_tensor(api, value, out);
}

int64_t attribute(const Api* api, const ort::KernelInfo* info, const char* name, int64_t fallback) {
  int64_t value = fallback;
  if (Status* status = call<ort::KernelInfoGetAttribute_int64>(api, info, name, &value)) {
    call<ort::ReleaseStatus>(api, status);
    return fallback;
  }
  return value;
}

namespace {

const Api* inference_api = nullptr;

// What is inferred of a result: the shape of an input, of which the last size or one more is an attribute.
struct Inferred {
  const char* attribute;
  size_t input, output;
  bool one_more;
};

Status* infer(const Api* api, ort::ShapeInferContext* context, ort::TypeAndShape* output, const Inferred& of) {
  // The input's info belongs to the context.
  ort::TypeAndShape* input = nullptr;
  if (Status* status = call<ort::ShapeInferContext_GetInputTypeShape>(api, context, of.input, &input)) return status;
  size_t rank = 0;
  if (Status* status = call<ort::GetDimensionsCount>(api, input, &rank)) return status;
  if (rank == 0) return nullptr;
  std::vector<int64_t> shape(rank);
  std::vector<const char*> names(rank);
  if (Status* status = call<ort::GetDimensions>(api, input, shape.data(), rank)) return status;
  if (Status* status = call<ort::GetSymbolicDimensions>(api, input, names.data(), rank)) return status;
  if (of.one_more) {
    shape.push_back(0);
    names.push_back("");
    ++rank;
  }
  // A size that is neither known nor named is set as -1, and two of -1 count as equal: values of different sizes would
  // share a buffer. Of the rows of experts, say, nothing is told.
  for (size_t i = 0; i + 1 < rank; ++i) {
    if (shape[i] < 0 && (names[i] == nullptr || *names[i] == '\0')) return nullptr;
  }
  const void* attribute = nullptr;
  if (Status* status = call<ort::ShapeInferContext_GetAttribute>(api, context, of.attribute, &attribute)) return status;
  int64_t last = 0;
  size_t size = 0;
  constexpr int kInt = 1;
  if (Status* status = call<ort::ReadOpAttr>(api, attribute, kInt, &last, sizeof last, &size)) return status;
  shape.back() = last;
  names.back() = "";
  if (Status* status = call<ort::SetDimensions>(api, output, shape.data(), rank)) return status;
  if (Status* status = call<ort::SetSymbolicDimensions>(api, output, names.data(), rank)) return status;
  ort::ElementType type = ort::kFloat;
  if (!of.one_more) {
    if (Status* status = call<ort::GetTensorElementType>(api, input, &type)) return status;
  }
  if (Status* status = call<ort::SetTensorElementType>(api, output, type)) return status;
  return call<ort::ShapeInferContext_SetOutputTypeShape>(api, context, of.output, output);
}

Status* infer_one(ort::ShapeInferContext* context, const Inferred& of) {
  const Api* api = inference_api;
  ort::TypeAndShape* output = nullptr;
  if (Status* status = call<ort::CreateTensorTypeAndShapeInfo>(api, &output)) return status;
  Status* status = infer(api, context, output, of);
  call<ort::ReleaseTensorTypeAndShapeInfo>(api, output);
  return status;
}

}  // namespace

void keep_for_inference(const Api* api) { inference_api = api; }

Status* infer_widths(ort::ShapeInferContext* context, const char* const* names, size_t count) {
  Status* status = nullptr;
  for (size_t i = 0; i < count && status == nullptr; ++i) status = infer_one(context, {names[i], 0, i, false});
  return status;
}

Status* infer_rows(ort::ShapeInferContext* context, size_t index, const char* name) {
  return infer_one(context, {name, index, 0, true});
}

void describe_common(ort::CustomOp* op, const Provider& provider) {
  op->version = ort::kApiVersion;
  op->GetExecutionProviderType = provider.name;
  op->CreateKernelV2 = provider.create;
  op->KernelComputeV2 = provider.compute;
  op->KernelDestroy = provider.destroy;
  op->GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op->GetVariadicInputMinArity = op->GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op->GetVariadicOutputMinArity = op->GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op->GetStartVersion = op->GetEndVersion = [](const ort::CustomOp*) { return kOperatorVersion; };
}

}  // namespace spq
