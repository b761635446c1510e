#include "operator.hpp"

#include <cmath>
#include <list>
#include <vector>

namespace spq {
namespace {

using ort::Api;
using ort::call;
using ort::Status;

Status* invalid(const Api* api, const std::string& what) { return spq::invalid(api, kName, what); }

int64_t panels(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }

}  // namespace

Status* read_attributes(const Api* api, const ort::KernelInfo* info, Attributes* out) {
  out->depth = attribute(api, info, "K", 0);
  out->columns = attribute(api, info, "N", 0);
  const int64_t a_type = attribute(api, info, "a_type", ort::kFloat);
  out->fast = attribute(api, info, "fast", 0) != 0;
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
    if (Status* status = read_input(api, context, i, inputs[i], &present)) return status;
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
    if (Status* status = read_input(api, context, 3, &a_scale, &present)) return status;
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

Status* infer_shape(const ort::CustomOp*, ort::ShapeInferContext* context) {
  static const char* const kColumns = "N";
  return infer_widths(context, &kColumns, 1);
}

void describe(Overload* op, const Provider& provider, ort::ElementType a_type, ort::ElementType b_type) {
  describe_common(op, provider);
  op->a_type = a_type;
  op->b_type = b_type;
  op->GetName = [](const ort::CustomOp*) { return kName; };
  op->GetInputType = input_type;
  op->GetInputTypeCount = [](const ort::CustomOp*) -> size_t { return 4; };
  op->GetOutputType = [](const ort::CustomOp* o, size_t) { return self(o).a_type; };
  op->GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  op->GetInputCharacteristic = [](const ort::CustomOp*, size_t index) {
    return index == 3 ? ort::kOptional : ort::kRequired;
  };
  // The scale of the activations is read by the host on every provider.
  op->GetInputMemoryType = [](const ort::CustomOp*, size_t index) {
    return index == 3 ? ort::kHostMemory : ort::kDeviceMemory;
  };
  op->InferOutputShapeFn = infer_shape;
}

}  // namespace

void add_fp8(std::vector<const ort::CustomOp*>& all) {
  // ONNX Runtime keeps the addresses, so the list of overloads must not move.
  static std::list<Overload> overloads;
  std::vector<const Provider*> providers{cpu_provider()};
#if defined(SPQ_CUDA)
  if (const Provider* cuda = cuda_provider()) providers.push_back(cuda);
#endif
  for (const Provider* provider : providers) {
    for (ort::ElementType b_type : {ort::kFloat8E4M3FN, ort::kFloat8E5M2}) {
      for (ort::ElementType a_type : {ort::kFloat, ort::kFloat16}) {
        Overload& overload = overloads.emplace_back();
        describe(&overload, *provider, a_type, b_type);
        all.push_back(&overload);
      }
    }
  }
}

#if !defined(SPQ_CUDA)
const char* cuda_info() { return "null"; }
#endif

}  // namespace spq
