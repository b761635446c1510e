// What every operator asks of ONNX Runtime: tensors, attributes, shapes of results, and how a wrong call is refused.
#pragma once

#include <string>
#include <vector>

#include "ort_abi.hpp"

namespace spq {

constexpr const char* kDomain = "spq";
// ONNX Runtime takes an operator for every later version of the domain that a file may import, and tells a kernel
// nothing of it. What means something else must have another name: its function then runs where the name is unknown.
constexpr int kOperatorVersion = 1;

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

std::string text(const std::vector<int64_t>& shape);
std::string text(float number);

// A status that says what is wrong with a call of the operator.
ort::Status* invalid(const ort::Api* api, const char* name, const std::string& what);
ort::Status* read_tensor(const ort::Api* api, const ort::Value* value, Tensor* out);
// Of an input that is left out nothing is read.
ort::Status* read_input(const ort::Api* api, ort::KernelContext* context, size_t index, Tensor* out, bool* present);
int64_t attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name, int64_t fallback);

// Shape inference is handed no table; it uses the one that is kept here at registration.
void keep_for_inference(const ort::Api* api);
// Gives every result the shape of the first input with its last size replaced by the attribute of that name.
ort::Status* infer_widths(ort::ShapeInferContext* context, const char* const* names, size_t count);
// Gives the only result, float32, the shape of input `index` and behind it the attribute of that name.
ort::Status* infer_rows(ort::ShapeInferContext* context, size_t index, const char* name);

// What a provider adds to what all overloads of an operator share.
struct Provider {
  decltype(ort::CustomOp::GetExecutionProviderType) name;
  decltype(ort::CustomOp::CreateKernelV2) create;
  decltype(ort::CustomOp::KernelComputeV2) compute;
  decltype(ort::CustomOp::KernelDestroy) destroy;
};
// Fills in what is the same for every operator and provider.
void describe_common(ort::CustomOp* op, const Provider& provider);

}  // namespace spq
