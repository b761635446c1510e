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

struct Kernel {
  const Overload& op;
  const Api* api;
  int64_t depth, columns;
  const int8::Kernels& kernels;
  const void* summed = nullptr;  // the constant weight whose columns were summed
  std::vector<int32_t> sums;
  const void* packed = nullptr;  // the branch's constant rows that were packed
  std::vector<uint16_t> panelled;

  Status* wrong(const std::string& what) const { return invalid(api, op.name(), what); }
  int64_t panels() const { return ceil_div(columns, int8::kColumns); }
  std::vector<int64_t> stored() const { return int8::panels_of(depth, columns); }
  std::vector<int32_t> sums_of(const int8_t* b) const {
    const int64_t steps = int8::steps_of(depth);
    std::vector<int32_t> found(static_cast<size_t>(panels() * int8::kColumns));
    for (int64_t n = 0; n < panels(); ++n) {
      int8::sum_panel(b + n * steps * int8::kStepBytes, steps, found.data() + n * int8::kColumns);
    }
    return found;
  }
  bool holds_rows(const Tensor& rows, int64_t channels) const {
    return rows.shape == std::vector<int64_t>{channels, columns};
  }
  std::vector<uint16_t> panels_of(const Tensor& rows) const {
    std::vector<uint16_t> found(static_cast<size_t>(panels() * rows.shape[0] * int8::kColumns));
    int8::pack_branch(static_cast<const uint16_t*>(rows.data), rows.shape[0], columns, found.data());
    return found;
  }
};

// A constant input; without data where it is none.
Status* read_constant(const Api* api, const ort::KernelInfo* info, size_t index, Tensor* tensor) {
  int constant = 0;
  const ort::Value* value = nullptr;
  if (Status* status = call<ort::KernelInfoGetConstantInput_tensor>(api, info, index, &constant, &value)) return status;
  return constant != 0 ? read_tensor(api, value, tensor) : nullptr;
}

Status* create(const ort::CustomOp* op, const Api* api, const ort::KernelInfo* info, void** out) {
  const Overload& overload = *static_cast<const Overload*>(op);
  const int64_t depth = attribute(api, info, "K", 0), columns = attribute(api, info, "N", 0);
  if (depth <= 0 || depth > int8::kMostDepth || columns <= 0 || columns > int8::kMostColumns) {
    return invalid(api, overload.name(), "attributes K, at most 65536 so that sums fit into int32, and N must be the "
                   "weight's true size; found K = " + std::to_string(depth) + ", N = " + std::to_string(columns));
  }
  Kernel* kernel = new Kernel{overload, api, depth, columns, int8::best()};
  *out = kernel;
  Tensor b, rows;
  Status* status = read_constant(api, info, 1, &b);
  if (status == nullptr && overload.branch) status = read_constant(api, info, overload.before_branch() + 1, &rows);
  if (status != nullptr) {
    delete kernel;
    return status;
  }
  if (b.data != nullptr && b.shape == kernel->stored()) {
    kernel->sums = kernel->sums_of(static_cast<const int8_t*>(b.data));
    kernel->summed = b.data;
  }
  if (rows.data != nullptr && rows.shape.size() == 2 && kernel->holds_rows(rows, rows.shape[0])) {
    kernel->panelled = kernel->panels_of(rows);
    kernel->packed = rows.data;
  }
  return nullptr;
}

// What a call works out where it is not constant, and so not worked out before.
struct Own {
  std::vector<int32_t> sums;
  std::vector<uint16_t> panelled;
};

Status* read_branch(const Kernel& kernel, ort::KernelContext* context, int8::Problem* p, Own* own) {
  Tensor channels, rows;
  bool present = false;
  const size_t first = kernel.op.before_branch();
  if (Status* status = read_input(kernel.api, context, first, &channels, &present)) return status;
  if (Status* status = read_input(kernel.api, context, first + 1, &rows, &present)) return status;
  if (channels.shape.size() != 1 || !kernel.holds_rows(rows, channels.shape[0])) {
    return kernel.wrong("channels is " + text(channels.shape) + " and rows is " + text(rows.shape) +
                        "; they must be [C] and [C, N] with N = " + std::to_string(kernel.columns));
  }
  p->channels = channels.shape[0];
  p->channel = static_cast<const int64_t*>(channels.data);
  if (rows.data != kernel.packed) own->panelled = kernel.panels_of(rows);
  p->branch = rows.data == kernel.packed ? kernel.panelled.data() : own->panelled.data();
  for (int64_t c = 0; c < p->channels; ++c) {
    if (p->channel[c] < 0 || p->channel[c] >= kernel.depth) {
      return kernel.wrong("channel " + std::to_string(p->channel[c]) + " is not below K = " +
                          std::to_string(kernel.depth));
    }
  }
  return nullptr;
}

Status* read(const Kernel& kernel, ort::KernelContext* context, int8::Problem* p, Own* own) {
  Tensor in[6];
  bool present = false;
  for (size_t i = 0; i < kernel.op.before_branch(); ++i) {
    if (Status* status = read_input(kernel.api, context, i, &in[i], &present)) return status;
  }
  Tensor &a = in[0], &b = in[1];
  if (a.shape.empty() || a.shape.back() != kernel.depth) {
    return kernel.wrong("A is " + text(a.shape) + ", but the weight has K = " + std::to_string(kernel.depth) + " rows");
  }
  if (b.shape != kernel.stored()) return kernel.wrong("B is " + text(b.shape) + ", not " + text(kernel.stored()));
  for (const size_t i : {2, 3}) {
    if (in[i].size() != 1 && in[i].shape != std::vector<int64_t>{kernel.columns}) {
      return kernel.wrong(std::string(i == 2 ? "b_scale" : "bias") + " is " + text(in[i].shape) +
                          "; it must hold one number or N = " + std::to_string(kernel.columns));
    }
  }
  p->rows = a.size() / kernel.depth;
  p->depth = kernel.depth;
  p->columns = kernel.columns;
  p->a = a.data;
  p->half = kernel.op.half;
  p->b = static_cast<const int8_t*>(b.data);
  if (b.data != kernel.summed) own->sums = kernel.sums_of(p->b);
  p->sums = b.data == kernel.summed ? kernel.sums.data() : own->sums.data();
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
    if (Status* status = read_branch(kernel, context, p, own)) return status;
  }
  a.shape.back() = kernel.columns;
  ort::Value* y = nullptr;
  if (Status* status = call<ort::KernelContext_GetOutput>(kernel.api, context, size_t{0}, a.shape.data(),
                                                          a.shape.size(), &y)) {
    return status;
  }
  return call<ort::GetTensorMutableData>(kernel.api, y, &p->y);
}

Status* compute(void* self, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  int8::Problem problem{};
  Own own;
  if (Status* status = read(kernel, context, &problem, &own)) return status;
  Pool pool{kernel.api, context, nullptr};
  const bool done = int8::matmul(problem, kernel.kernels, Parallel{run_in_pool, &pool});
  if (pool.failed != nullptr) return pool.failed;
  if (done) return nullptr;
  return call<ort::CreateStatus>(kernel.api, ort::kFail, "spq::Int8MatMul: out of memory for its working copies");
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
