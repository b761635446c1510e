// spq::Fp8MatMul on ONNX Runtime's CPU provider.
#include "../operator.hpp"
#include "matmul.hpp"
#include "pool.hpp"

namespace spq {
namespace {

using ort::Api;
using ort::Status;

struct Kernel {
  const Api* api;
  Attributes attributes;
  Format b_format;
  const cpu::Isa* isa;
};

Status* create(const ort::CustomOp* op, const Api* api, const ort::KernelInfo* info, void** out) {
  Attributes attributes;
  if (Status* status = read_attributes(api, info, &attributes)) return status;
  *out = new Kernel{api, attributes, b_format(*static_cast<const Overload*>(op)), &cpu::best()};
  return nullptr;
}

Status* compute(void* self, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  const Attributes& attributes = kernel.attributes;
  Call call;
  if (Status* status = read_call(kernel.api, context, attributes, &call)) return status;
  const float a_scale = call.a_scale != nullptr ? *call.a_scale : 1.0f;
  const cpu::Problem problem{
      call.rows, attributes.depth, attributes.columns,
      cpu::Rows{call.a, attributes.depth, call.half, attributes.a_format, a_scale},
      call.b, kernel.b_format, call.b_scale, call.per_channel, attributes.fast, call.y,
  };
  Pool pool{kernel.api, context, nullptr};
  const bool done = cpu::matmul(problem, *kernel.isa, cpu::Parallel{run_in_pool, &pool});
  if (pool.failed != nullptr) return pool.failed;
  if (done) return nullptr;
  return ort::call<ort::CreateStatus>(kernel.api, ort::kFail, "spq::Fp8MatMul: out of memory for its working copies");
}

void destroy(void* self) { delete static_cast<Kernel*>(self); }

}  // namespace

const Provider* cpu_provider() {
  static const Provider provider{[](const ort::CustomOp*) -> const char* { return nullptr; }, create, compute, destroy};
  return &provider;
}

}  // namespace spq
