// spq::Fp8MatMul as ONNX Runtime sees it: attributes, checks and shapes, the same on every provider.
#pragma once

#include <vector>

#include "fp8.hpp"
#include "tensors.hpp"

namespace spq {

constexpr const char* kName = "Fp8MatMul";

// What the attributes of a node say.
struct Attributes {
  int64_t depth = 0, columns = 0;  // K, N
  Format a_format = Format::kNone;
  bool fast = false;
};

// What is refused here of constants, passes/base/fp8_calls.py refuses of files: the function takes some of it.
//
// The inputs of one call, checked against the attributes; data pointers are the provider's.
struct Call {
  int64_t rows = 0;
  bool half = false;
  bool per_channel = false;
  const void* a = nullptr;
  const uint8_t* b = nullptr;
  const float* b_scale = nullptr;
  const float* a_scale = nullptr;  // in host memory, where given
  void* y = nullptr;
};

// Each returns nullptr, or a status that says what is wrong with which numbers.
ort::Status* read_attributes(const ort::Api* api, const ort::KernelInfo* info, Attributes* out);
ort::Status* read_call(const ort::Api* api, ort::KernelContext* context, const Attributes& attributes, Call* out);

// The operator for one type of activations and one of weights, on one provider.
struct Overload : ort::CustomOp {
  ort::ElementType a_type;
  ort::ElementType b_type;
};
inline Format b_format(const Overload& op) {
  return op.b_type == ort::kFloat8E4M3FN ? Format::kE4M3 : Format::kE5M2;
}

// Adds all overloads for all providers; they live as long as the process.
void add_fp8(std::vector<const ort::CustomOp*>& all);
const Provider* cpu_provider();
#if defined(SPQ_CUDA)
// nullptr where the driver cannot run its kernels: ONNX Runtime then takes the ones for the CPU.
const Provider* cuda_provider();
#endif
// JSON: the architectures that CUDA kernels were compiled for, or null.
const char* cuda_info();

}  // namespace spq
