#include "operator.hpp"

#include <cmath>
#include <cstdio>
#include <list>
#include <vector>

namespace spq {
namespace {

using ort::Api;
using ort::call;
using ort::Status;

Status* invalid(const Api* api, const std::string& what) {
  return call<ort::CreateStatus>(api, ort::kInvalidArgument, ("spq::Fp8MatMul: " + what).c_str());
}

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

struct Tensor {
  std::vector<int64_t> shape;
  ort::ElementType type = ort::kUndefined;
  void* data = nullptr;
  int64_t size() const {
    int64_t count = 1;
    for (int64_t d : shape) count *= d;
    return count;
  }
};

Status* read_info(const Api* api, ort::TypeAndShape* info, Tensor* out) {
  size_t rank = 0;
  Status* status = call<ort::GetTensorElementType>(api, info, &out->type);
  if (status == nullptr) status = call<ort::GetDimensionsCount>(api, info, &rank);
  out->shape.resize(rank);
  if (status == nullptr) status = call<ort::GetDimensions>(api, info, out->shape.data(), rank);
  return status;
}

Status* read_tensor(const Api* api, ort::KernelContext* context, size_t index, Tensor* out, bool* present) {
  const ort::Value* value = nullptr;
  if (Status* status = call<ort::KernelContext_GetInput>(api, context, index, &value)) return status;
  *present = value != nullptr;
  if (value == nullptr) return nullptr;
  ort::TypeAndShape* info = nullptr;
  if (Status* status = call<ort::GetTensorTypeAndShape>(api, value, &info)) return status;
  Status* status = read_info(api, info, out);
  call<ort::ReleaseTensorTypeAndShapeInfo>(api, info);
  if (status != nullptr) return status;
  // The interface has no way to read without leave to write before version 1.23.
  return call<ort::GetTensorMutableData>(api, const_cast<ort::Value*>(value), &out->data);
}

Status* attribute(const Api* api, const ort::KernelInfo* info, const char* name, int64_t fallback, int64_t* out) {
  if (Status* status = call<ort::KernelInfoGetAttribute_int64>(api, info, name, out)) {
    call<ort::ReleaseStatus>(api, status);
    *out = fallback;
  }
  return nullptr;
}

int64_t panels(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

}  // namespace

Status* read_attributes(const Api* api, const ort::KernelInfo* info, Attributes* out) {
  int64_t a_type = 0, fast = 0;
  attribute(api, info, "K", 0, &out->depth);
  attribute(api, info, "N", 0, &out->columns);
  attribute(api, info, "a_type", ort::kFloat, &a_type);
  attribute(api, info, "fast", 0, &fast);
  out->fast = fast != 0;
  constexpr int64_t kMost = int64_t{1} << 31;
  if (out->depth <= 0 || out->columns <= 0 || out->depth > kMost || out->columns > kMost) {
    return invalid(api, "attributes K and N must be the weight's true size, both positive; found K = " +
                            std::to_string(out->depth) + ", N = " + std::to_string(out->columns));
  }
  switch (a_type) {
    case ort::kFloat: out->a_format = Format::kNone; return nullptr;
    case ort::kFloat8E4M3FN: out->a_format = Format::kE4M3; return nullptr;
    case ort::kFloat8E5M2: out->a_format = Format::kE5M2; return nullptr;
    default:
      return invalid(api, "attribute a_type must be 1 (activations as they are), 17 (FLOAT8E4M3FN) or 19 "
                          "(FLOAT8E5M2); found " + std::to_string(a_type));
  }
}

Status* read_call(const Api* api, ort::KernelContext* context, const Attributes& attributes, Call* out) {
  Tensor a, b, b_scale, a_scale;
  bool present = false;
  Tensor* inputs[] = {&a, &b, &b_scale};
  for (size_t i = 0; i < 3; ++i) {
    if (Status* status = read_tensor(api, context, i, inputs[i], &present)) return status;
    if (!present) return invalid(api, "input " + std::to_string(i) + " is missing");
  }
  const int64_t depth = attributes.depth, columns = attributes.columns;
  if (a.shape.empty() || a.shape.back() != depth) {
    return invalid(api, "A is " + text(a.shape) + ", but the weight has K = " + std::to_string(depth) + " rows");
  }
  const std::vector<int64_t> wanted{panels(columns), (depth + 1) / 2, kPanelBytes};
  if (b.shape != wanted) {
    return invalid(api, "B is " + text(b.shape) + ", but K = " + std::to_string(depth) + " and N = " +
                            std::to_string(columns) + " want panels " + text(wanted));
  }
  if (b_scale.size() != 1 && b_scale.shape != std::vector<int64_t>{columns}) {
    return invalid(api, "b_scale is " + text(b_scale.shape) + "; it must hold one number or N = " +
                            std::to_string(columns));
  }
  size_t count = 0;
  if (Status* status = call<ort::KernelContext_GetInputCount>(api, context, &count)) return status;
  present = false;
  if (count > 3) {
    if (Status* status = read_tensor(api, context, 3, &a_scale, &present)) return status;
  }
  if (attributes.a_format != Format::kNone) {
    if (!present || a_scale.size() != 1) {
      return invalid(api, "activations in FP8 need a_scale, a single number; it is " +
                              (present ? text(a_scale.shape) : "missing"));
    }
    out->a_scale = static_cast<const float*>(a_scale.data);
    if (!(*out->a_scale > 0.0f) || !std::isfinite(*out->a_scale)) {
      return invalid(api, "a_scale is " + text(*out->a_scale) + "; it must be positive and finite");
    }
  }
  out->rows = a.size() / depth;
  out->half = a.type == ort::kFloat16;
  out->per_channel = b_scale.size() != 1;
  out->a = a.data;
  out->b = static_cast<const uint8_t*>(b.data);
  out->b_scale = static_cast<const float*>(b_scale.data);
  a.shape.back() = columns;
  ort::Value* y = nullptr;
  if (Status* status =
          call<ort::KernelContext_GetOutput>(api, context, size_t{0}, a.shape.data(), a.shape.size(), &y)) {
    return status;
  }
  return call<ort::GetTensorMutableData>(api, y, &out->y);
}

// ------------------------------------------------------------------------------------------------------ schema

namespace {

const Overload& self(const ort::CustomOp* op) { return *static_cast<const Overload*>(op); }

ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  return index == 0 ? self(op).a_type : index == 1 ? self(op).b_type : ort::kFloat;
}

// ONNX Runtime hands shape inference no table of its own, so it is kept from registration.
const Api* inference_api = nullptr;

Status* infer(const Api* api, ort::ShapeInferContext* context, ort::TypeAndShape* output) {
  // The input's info belongs to the context.
  ort::TypeAndShape* input = nullptr;
  if (Status* status = call<ort::ShapeInferContext_GetInputTypeShape>(api, context, size_t{0}, &input)) return status;
  size_t rank = 0;
  if (Status* status = call<ort::GetDimensionsCount>(api, input, &rank)) return status;
  if (rank == 0) return nullptr;
  std::vector<int64_t> shape(rank);
  std::vector<const char*> names(rank);
  if (Status* status = call<ort::GetDimensions>(api, input, shape.data(), rank)) return status;
  if (Status* status = call<ort::GetSymbolicDimensions>(api, input, names.data(), rank)) return status;
  // A size that is neither known nor named is set as -1, and two of -1 count as equal: values of different sizes would
  // share a buffer. Of the rows of experts, say, nothing is told.
  for (size_t i = 0; i + 1 < rank; ++i) {
    if (shape[i] < 0 && (names[i] == nullptr || *names[i] == '\0')) return nullptr;
  }
  const void* attribute = nullptr;
  if (Status* status = call<ort::ShapeInferContext_GetAttribute>(api, context, "N", &attribute)) return status;
  int64_t columns = 0;
  size_t size = 0;
  constexpr int kInt = 1;
  if (Status* status = call<ort::ReadOpAttr>(api, attribute, kInt, &columns, sizeof columns, &size)) return status;
  shape.back() = columns;
  names.back() = "";
  if (Status* status = call<ort::SetDimensions>(api, output, shape.data(), rank)) return status;
  if (Status* status = call<ort::SetSymbolicDimensions>(api, output, names.data(), rank)) return status;
  ort::ElementType type = ort::kUndefined;
  if (Status* status = call<ort::GetTensorElementType>(api, input, &type)) return status;
  if (Status* status = call<ort::SetTensorElementType>(api, output, type)) return status;
  return call<ort::ShapeInferContext_SetOutputTypeShape>(api, context, size_t{0}, output);
}

Status* infer_shape(const ort::CustomOp*, ort::ShapeInferContext* context) {
  const Api* api = inference_api;
  ort::TypeAndShape* output = nullptr;
  if (Status* status = call<ort::CreateTensorTypeAndShapeInfo>(api, &output)) return status;
  Status* status = infer(api, context, output);
  call<ort::ReleaseTensorTypeAndShapeInfo>(api, output);
  return status;
}

}  // namespace

void keep_for_inference(const Api* api) { inference_api = api; }

namespace {

void describe(Overload* op, const Provider& provider, ort::ElementType a_type, ort::ElementType b_type) {
  op->version = ort::kApiVersion;
  op->a_type = a_type;
  op->b_type = b_type;
  op->GetName = [](const ort::CustomOp*) { return kName; };
  op->GetExecutionProviderType = provider.name;
  op->CreateKernelV2 = provider.create;
  op->KernelComputeV2 = provider.compute;
  op->KernelDestroy = provider.destroy;
  op->GetInputType = input_type;
  op->GetInputTypeCount = [](const ort::CustomOp*) -> size_t { return 4; };
  op->GetOutputType = [](const ort::CustomOp* o, size_t) { return self(o).a_type; };
  op->GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  op->GetInputCharacteristic = [](const ort::CustomOp*, size_t index) {
    return index == 3 ? ort::kOptional : ort::kRequired;
  };
  op->GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  // The scale of the activations is read by the host on every provider.
  op->GetInputMemoryType = [](const ort::CustomOp*, size_t index) {
    return index == 3 ? ort::kHostMemory : ort::kDeviceMemory;
  };
  op->GetVariadicInputMinArity = op->GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op->GetVariadicOutputMinArity = op->GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op->GetStartVersion = op->GetEndVersion = [](const ort::CustomOp*) { return kOperatorVersion; };
  op->InferOutputShapeFn = infer_shape;
}

}  // namespace

const ort::CustomOp* const* operators() {
  // ONNX Runtime keeps the addresses, so the list of overloads must not move.
  static std::list<Overload> overloads;
  static const std::vector<const ort::CustomOp*> all = [] {
    std::vector<const Provider*> providers{cpu_provider()};
#if defined(SPQ_CUDA)
    if (const Provider* cuda = cuda_provider()) providers.push_back(cuda);
#endif
    std::vector<const ort::CustomOp*> found;
    for (const Provider* provider : providers) {
      for (ort::ElementType b_type : {ort::kFloat8E4M3FN, ort::kFloat8E5M2}) {
        for (ort::ElementType a_type : {ort::kFloat, ort::kFloat16}) {
          Overload& overload = overloads.emplace_back();
          describe(&overload, *provider, a_type, b_type);
          found.push_back(&overload);
        }
      }
    }
    found.push_back(nullptr);
    return found;
  }();
  return all.data();
}

#if !defined(SPQ_CUDA)
const char* cuda_info() { return "null"; }
#endif

}  // namespace spq
