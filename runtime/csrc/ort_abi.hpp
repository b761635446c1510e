// The part of ONNX Runtime's C interface that a custom operator needs, written from its documented order of slots.
//
// OrtApi is a table of function pointers that only ever grows at its end, so a slot keeps its number for good. We ask
// for the oldest version that has all we call (18, of ONNX Runtime 1.18), and one binary then runs on every later one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spq::ort {

struct Api;
struct CustomOp;
struct Status;
struct Value;
struct TypeAndShape;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;

constexpr uint32_t kApiVersion = 18;

enum ElementType : int {
  kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10, kFloat8E4M3FN = 17, kFloat8E5M2 = 19
};
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
// Where an input lies: on the provider's device, or in host memory whatever the provider.
enum MemoryType : int { kDeviceMemory = 0, kHostMemory = -2 };

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// What ONNX Runtime asks of an operator; all of it up to API version 18.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

// Calls a slot of the table: call<kSlot>(api, arguments...) with the function's type taken from the slot's tag.
template <typename Slot, typename... Arguments>
auto call(const Api* api, Arguments... arguments) {
  using Function = typename Slot::Function;
  return reinterpret_cast<Function>(reinterpret_cast<void* const*>(api)[Slot::number])(arguments...);
}

#define SPQ_ORT_SLOT(name, index, result, ...)       \
  struct name {                                      \
    using Function = result (*)(__VA_ARGS__);        \
    static constexpr size_t number = index;          \
  }

SPQ_ORT_SLOT(CreateStatus, 0, Status*, ErrorCode, const char*);
SPQ_ORT_SLOT(CreateCustomOpDomain, 26, Status*, const char*, CustomOpDomain**);
SPQ_ORT_SLOT(CustomOpDomain_Add, 27, Status*, CustomOpDomain*, const CustomOp*);
SPQ_ORT_SLOT(AddCustomOpDomain, 28, Status*, SessionOptions*, CustomOpDomain*);
SPQ_ORT_SLOT(GetTensorMutableData, 51, Status*, Value*, void**);
SPQ_ORT_SLOT(CreateTensorTypeAndShapeInfo, 57, Status*, TypeAndShape**);
SPQ_ORT_SLOT(SetTensorElementType, 58, Status*, TypeAndShape*, ElementType);
SPQ_ORT_SLOT(SetDimensions, 59, Status*, TypeAndShape*, const int64_t*, size_t);
SPQ_ORT_SLOT(GetTensorElementType, 60, Status*, const TypeAndShape*, ElementType*);
SPQ_ORT_SLOT(GetDimensionsCount, 61, Status*, const TypeAndShape*, size_t*);
SPQ_ORT_SLOT(GetDimensions, 62, Status*, const TypeAndShape*, int64_t*, size_t);
SPQ_ORT_SLOT(GetSymbolicDimensions, 63, Status*, const TypeAndShape*, const char**, size_t);
SPQ_ORT_SLOT(GetTensorTypeAndShape, 65, Status*, const Value*, TypeAndShape**);
SPQ_ORT_SLOT(KernelInfoGetAttribute_int64, 86, Status*, const KernelInfo*, const char*, int64_t*);
SPQ_ORT_SLOT(KernelContext_GetInputCount, 88, Status*, const KernelContext*, size_t*);
SPQ_ORT_SLOT(KernelContext_GetInput, 90, Status*, const KernelContext*, size_t, const Value**);
SPQ_ORT_SLOT(KernelContext_GetOutput, 91, Status*, KernelContext*, size_t, const int64_t*, size_t, Value**);
SPQ_ORT_SLOT(ReleaseStatus, 93, void, Status*);
SPQ_ORT_SLOT(ReleaseTensorTypeAndShapeInfo, 99, void, TypeAndShape*);
SPQ_ORT_SLOT(KernelContext_GetGPUComputeStream, 193, Status*, const KernelContext*, void**);
SPQ_ORT_SLOT(KernelInfoGetConstantInput_tensor, 249, Status*, const KernelInfo*, size_t, int*, const Value**);
SPQ_ORT_SLOT(ShapeInferContext_GetInputCount, 267, Status*, const ShapeInferContext*, size_t*);
SPQ_ORT_SLOT(ShapeInferContext_GetInputTypeShape, 268, Status*, const ShapeInferContext*, size_t, TypeAndShape**);
SPQ_ORT_SLOT(ShapeInferContext_GetAttribute, 269, Status*, const ShapeInferContext*, const char*, const void**);
SPQ_ORT_SLOT(ShapeInferContext_SetOutputTypeShape, 270, Status*, const ShapeInferContext*, size_t, const TypeAndShape*);
SPQ_ORT_SLOT(SetSymbolicDimensions, 271, Status*, TypeAndShape*, const char**, size_t);
SPQ_ORT_SLOT(ReadOpAttr, 272, Status*, const void*, int, void*, size_t, size_t*);
SPQ_ORT_SLOT(KernelContext_ParallelFor, 274, Status*, const KernelContext*, void (*)(void*, size_t), size_t, size_t,
             void*);

#undef SPQ_ORT_SLOT

}  // namespace spq::ort
