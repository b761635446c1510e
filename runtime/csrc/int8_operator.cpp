#include "int8_operator.hpp"

#include <cmath>
#include <list>
#include <string>
#include <vector>

#include "cpu/int8/product.hpp"
#include "cpu/pool.hpp"

namespace spq {

namespace {

using namespace cpu;
using ort::Api;
using ort::call;
using ort::Status;

struct Overload : ort::CustomOp {
  bool by_token, branch, half;
  const char* name() const {
    return by_token ? branch ? "Int8MatMulByTokenBranch" : "Int8MatMulByToken"
                    : branch ? "Int8MatMulBranch" : "Int8MatMul";
  }
  size_t before_branch() const { return by_token ? 4 : 6; }
};

// Inputs as they stand in the operator's list.
using Inputs = std::vector<Tensor>;

struct Kernel {
  const Overload& op;
  const Api* api;
  int64_t depth, columns;
  const int8::Kernels& kernels;
  bool constant = false;  // whether all inputs but A are, and so were read, checked and worked out before
  int8::Problem problem{};
  std::vector<int32_t> sums{};
  std::vector<uint16_t> panelled{};
  std::vector<float> limit{};
  mutable int8::Crew crew{};

  Status* wrong(const std::string& what) const { return invalid(api, op.name(), what); }
  size_t inputs() const { return op.before_branch() + (op.branch ? 2 : 0); }
  int64_t panels() const { return ceil_div(columns, int8::kColumns); }
};

// What belongs to a problem and is worked out from inputs.
struct Own {
  std::vector<int32_t>& sums;
  std::vector<uint16_t>& panelled;
};

void sum_columns(const Kernel& kernel, const int8_t* b, std::vector<int32_t>* sums) {
  const int64_t steps = int8::steps_of(kernel.depth);
  sums->resize(static_cast<size_t>(kernel.panels() * int8::kColumns));
  for (int64_t n = 0; n < kernel.panels(); ++n) {
    int8::sum_panel(b + n * steps * int8::kStepBytes, steps, sums->data() + n * int8::kColumns);
  }
}

Status* read_branch(const Kernel& kernel, const Inputs& in, int8::Problem* p, Own* own) {
  const Tensor &channels = in[kernel.op.before_branch()], &rows = in[kernel.op.before_branch() + 1];
  if (channels.shape.size() != 1 || rows.shape != std::vector<int64_t>{channels.shape[0], kernel.columns}) {
    return kernel.wrong("channels is " + text(channels.shape) + " and rows is " + text(rows.shape) +
                        "; they must be [C] and [C, N] with N = " + std::to_string(kernel.columns));
  }
  p->channels = channels.shape[0];
  p->channel = static_cast<const int64_t*>(channels.data);
  for (int64_t c = 0; c < p->channels; ++c) {
    if (p->channel[c] < 0 || p->channel[c] >= kernel.depth) {
      return kernel.wrong("channel " + std::to_string(p->channel[c]) + " is not below K = " +
                          std::to_string(kernel.depth));
    }
  }
  own->panelled.resize(static_cast<size_t>(kernel.panels() * p->channels * int8::kColumns));
  int8::pack_branch(static_cast<const uint16_t*>(rows.data), p->channels, kernel.columns, own->panelled.data());
  p->branch = own->panelled.data();
  return nullptr;
}

// All of a problem that does not depend on A.
Status* read_constants(const Kernel& kernel, const Inputs& in, int8::Problem* p, Own* own) {
  const std::vector<int64_t> stored = int8::panels_of(kernel.depth, kernel.columns);
  if (in[1].shape != stored) return kernel.wrong("B is " + text(in[1].shape) + ", not " + text(stored));
  for (const size_t i : {2, 3}) {
    if (in[i].size() != 1 && in[i].shape != std::vector<int64_t>{kernel.columns}) {
      return kernel.wrong(std::string(i == 2 ? "b_scale" : "bias") + " is " + text(in[i].shape) +
                          "; it must hold one number or N = " + std::to_string(kernel.columns));
    }
  }
  p->depth = kernel.depth;
  p->columns = kernel.columns;
  p->half = kernel.op.half;
  p->crew = &kernel.crew;
  p->b = static_cast<const int8_t*>(in[1].data);
  p->b_scale = static_cast<const float*>(in[2].data);
  p->per_channel = in[2].size() != 1;
  p->bias = static_cast<const float*>(in[3].data);
  p->biased = in[3].size() != 1;
  if (!kernel.op.by_token) {
    p->a_scale = static_cast<const float*>(in[4].data);
    if (in[4].size() != 1 || in[5].size() != 1 || !(*p->a_scale > 0.0f) || !std::isfinite(*p->a_scale)) {
      return kernel.wrong("a_scale and a_zero_point must be single numbers, and the scale positive and finite");
    }
    p->a_zero = *static_cast<const uint8_t*>(in[5].data);
  }
  if (kernel.op.branch) {
    if (Status* status = read_branch(kernel, in, p, own)) return status;
  }
  sum_columns(kernel, p->b, &own->sums);
  p->sums = own->sums.data();
  return nullptr;
}

// Whether all inputs but A are constant; those are read.
Status* all_constant(const Api* api, const ort::KernelInfo* info, Inputs* in, bool* all) {
  for (size_t i = 1; i < in->size(); ++i) {
    int constant = 0;
    const ort::Value* value = nullptr;
    if (Status* status = call<ort::KernelInfoGetConstantInput_tensor>(api, info, i, &constant, &value)) return status;
    *all = constant != 0;
    if (!*all) return nullptr;
    if (Status* status = read_tensor(api, value, &(*in)[i])) return status;
  }
  return nullptr;
}

Status* work_out(Kernel* kernel, const ort::KernelInfo* info) {
  Inputs in(kernel->inputs());
  if (Status* status = all_constant(kernel->api, info, &in, &kernel->constant)) return status;
  if (!kernel->constant) return nullptr;
  Own own{kernel->sums, kernel->panelled};
  if (Status* status = read_constants(*kernel, in, &kernel->problem, &own)) return status;
  if (kernel->op.by_token && kernel->op.branch) {
    kernel->limit.resize(static_cast<size_t>(kernel->depth));
    int8::limit_range(kernel->problem, kernel->limit.data());
    kernel->problem.limit = kernel->limit.data();
  }
  return nullptr;
}

Status* create(const ort::CustomOp* op, const Api* api, const ort::KernelInfo* info, void** out) {
  const Overload& overload = *static_cast<const Overload*>(op);
  const int64_t depth = attribute(api, info, "K", 0), columns = attribute(api, info, "N", 0);
  if (depth <= 0 || depth > int8::kMostDepth || columns <= 0 || columns > int8::kMostColumns) {
    return invalid(api, overload.name(), "attributes K, at most 65536 so that sums fit into int32, and N must be the "
                   "weight's true size; found K = " + std::to_string(depth) + ", N = " + std::to_string(columns));
  }
  Kernel* kernel = new Kernel{overload, api, depth, columns, int8::best()};
  if (Status* status = work_out(kernel, info)) {
    delete kernel;
    return status;
  }
  *out = kernel;
  return nullptr;
}

// A, and room for Y.
Status* read_rows(const Kernel& kernel, ort::KernelContext* context, int8::Problem* p) {
  Tensor a;
  bool present = false;
  if (Status* status = read_input(kernel.api, context, 0, &a, &present)) return status;
  if (a.shape.empty() || a.shape.back() != kernel.depth) {
    return kernel.wrong("A is " + text(a.shape) + ", but the weight has K = " + std::to_string(kernel.depth) + " rows");
  }
  p->rows = a.size() / kernel.depth;
  p->a = a.data;
  a.shape.back() = kernel.columns;
  ort::Value* y = nullptr;
  if (Status* status = call<ort::KernelContext_GetOutput>(kernel.api, context, size_t{0}, a.shape.data(),
                                                          a.shape.size(), &y)) {
    return status;
  }
  return call<ort::GetTensorMutableData>(kernel.api, y, &p->y);
}

Status* multiply(const Kernel& kernel, ort::KernelContext* context, int8::Problem problem) {
  if (Status* status = read_rows(kernel, context, &problem)) return status;
  Pool pool{kernel.api, context, nullptr};
  const bool done = int8::matmul(problem, kernel.kernels, Parallel{run_in_pool, &pool});
  if (pool.failed != nullptr) return pool.failed;
  if (done) return nullptr;
  return call<ort::CreateStatus>(kernel.api, ort::kFail, "spq::Int8MatMul: out of memory for its working copies");
}

Status* compute(void* self, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  if (kernel.constant) return multiply(kernel, context, kernel.problem);
  Inputs in(kernel.inputs());
  bool present = false;
  for (size_t i = 1; i < in.size(); ++i) {
    if (Status* status = read_input(kernel.api, context, i, &in[i], &present)) return status;
  }
  int8::Problem problem{};
  std::vector<int32_t> sums;
  std::vector<uint16_t> panelled;
  Own own{sums, panelled};
  if (Status* status = read_constants(kernel, in, &problem, &own)) return status;
  return multiply(kernel, context, problem);
}

void destroy(void* self) { delete static_cast<Kernel*>(self); }

const Overload& self(const ort::CustomOp* op) { return *static_cast<const Overload*>(op); }

ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  const Overload& o = self(op);
  if (index == 0) return o.half ? ort::kFloat16 : ort::kFloat;
  if (index == o.before_branch()) return ort::kInt64;
  if (index == o.before_branch() + 1) return ort::kFloat16;
  return index == 1 ? ort::kInt8 : index == 5 ? ort::kUint8 : ort::kFloat;
}

Status* infer_shape(const ort::CustomOp*, ort::ShapeInferContext* context) {
  static const char* const kWidth = "N";
  return infer_widths(context, &kWidth, 1);
}

void describe(Overload* op) {
  static const Provider provider{[](const ort::CustomOp*) -> const char* { return nullptr; }, create, compute, destroy};
  describe_common(op, provider);
  op->GetName = [](const ort::CustomOp* o) { return self(o).name(); };
  op->GetInputType = input_type;
  op->GetInputTypeCount = [](const ort::CustomOp* o) { return self(o).before_branch() + (self(o).branch ? 2 : 0); };
  op->GetOutputType = [](const ort::CustomOp* o, size_t) { return self(o).half ? ort::kFloat16 : ort::kFloat; };
  op->GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  op->GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op->GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kDeviceMemory; };
  op->InferOutputShapeFn = infer_shape;
}

}  // namespace

void add_int8(std::vector<const ort::CustomOp*>& all) {
  // ONNX Runtime keeps the addresses, so the list of overloads must not move.
  static std::list<Overload> overloads;
  for (const bool by_token : {false, true}) {
    for (const bool branch : {false, true}) {
      for (const bool half : {false, true}) {
        Overload& op = overloads.emplace_back();
        op.by_token = by_token;
        op.branch = branch;
        op.half = half;
        describe(&op);
        all.push_back(&op);
      }
    }
  }
}

}  // namespace spq
