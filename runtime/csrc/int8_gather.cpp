// spq::Int8Gather: rows of a table that spq::Int8MatMul multiplies by, so that a head and an embedding that are tied
// are stored once. Row n of the table is column n of the weight: its codes times their scale, and where the weight has a
// branch the numbers that stand in there. See int8_operator.hpp.
#include <cstring>
#include <list>
#include <string>

#include "cpu/int8/product.hpp"
#include "cpu/pool.hpp"
#include "floats.hpp"
#include "int8_operator.hpp"

namespace spq {

namespace {

using ort::Api;
using ort::call;
using ort::Status;
namespace int8 = cpu::int8;

struct Overload : ort::CustomOp {
  bool branch, narrow;  // with a branch, with ids of 32 bits
  const char* name() const { return branch ? "Int8GatherBranch" : "Int8Gather"; }
};

struct Kernel {
  const Overload& op;
  const Api* api;
  int64_t depth, columns;
  Status* wrong(const std::string& what) const { return invalid(api, op.name(), what); }
};

struct Job {
  const Kernel& kernel;
  const int8_t* panels;
  const void* ids;
  int64_t count;
  const float* scale;
  bool per_row;
  int64_t channels;
  const int64_t* channel;
  const uint16_t* rows;
  float* y;

  int64_t id(int64_t i) const {
    const int64_t id = kernel.op.narrow ? static_cast<const int32_t*>(ids)[i] : static_cast<const int64_t*>(ids)[i];
    return id < 0 ? id + kernel.columns : id;
  }
};

void gather_task(void* user, size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const int64_t i = static_cast<int64_t>(index), depth = job.kernel.depth, steps = int8::steps_of(depth), n = job.id(i);
  const int8_t* codes = job.panels + n / int8::kColumns * steps * int8::kStepBytes + n % int8::kColumns * 4;
  const float scale = job.scale[job.per_row ? n : 0];
  float* y = job.y + i * depth;
  for (int64_t k = 0; k < depth; k += 4, codes += 4 * int8::kColumns) {
    for (int64_t p = 0; p < 4 && k + p < depth; ++p) y[k + p] = static_cast<float>(codes[p]) * scale;
  }
  for (int64_t c = 0; c < job.channels; ++c) y[job.channel[c]] += float_from_half(job.rows[c * job.kernel.columns + n]);
}

Status* create(const ort::CustomOp* op, const Api* api, const ort::KernelInfo* info, void** out) {
  const Overload& overload = *static_cast<const Overload*>(op);
  const int64_t depth = attribute(api, info, "K", 0), columns = attribute(api, info, "N", 0);
  if (depth <= 0 || columns <= 0 || columns > int8::kMostColumns || depth > int8::kMostDepth) {
    return invalid(api, overload.name(), "attributes K and N must be the table's true size; found K = " +
                   std::to_string(depth) + ", N = " + std::to_string(columns));
  }
  *out = new Kernel{overload, api, depth, columns};
  return nullptr;
}

Status* read(const Kernel& kernel, ort::KernelContext* context, Job* job) {
  Tensor in[5];
  bool present = false;
  for (size_t i = 0; i < (kernel.op.branch ? 5u : 3u); ++i) {
    if (Status* status = read_input(kernel.api, context, i, &in[i], &present)) return status;
  }
  const std::vector<int64_t> stored = int8::panels_of(kernel.depth, kernel.columns), one{kernel.columns};
  if (in[0].shape != stored) return kernel.wrong("B is " + text(in[0].shape) + ", not " + text(stored));
  if (in[2].size() != 1 && in[2].shape != one) {
    return kernel.wrong("b_scale is " + text(in[2].shape) + "; it must hold one number or N = " +
                        std::to_string(kernel.columns));
  }
  job->panels = static_cast<const int8_t*>(in[0].data);
  job->ids = in[1].data;
  job->count = in[1].size();
  job->scale = static_cast<const float*>(in[2].data);
  job->per_row = in[2].size() != 1;
  if (kernel.op.branch) {
    if (in[3].shape.size() != 1 || in[4].shape != std::vector<int64_t>{in[3].shape[0], kernel.columns}) {
      return kernel.wrong("channels is " + text(in[3].shape) + " and rows is " + text(in[4].shape) +
                          "; they must be [C] and [C, N] with N = " + std::to_string(kernel.columns));
    }
    job->channels = in[3].shape[0];
    job->channel = static_cast<const int64_t*>(in[3].data);
    job->rows = static_cast<const uint16_t*>(in[4].data);
    for (int64_t c = 0; c < job->channels; ++c) {
      if (job->channel[c] < 0 || job->channel[c] >= kernel.depth) {
        return kernel.wrong("channel " + std::to_string(job->channel[c]) + " is not below K = " +
                            std::to_string(kernel.depth));
      }
    }
  }
  for (int64_t i = 0; i < job->count; ++i) {
    if (job->id(i) < 0 || job->id(i) >= kernel.columns) {
      return kernel.wrong("there is an id that is not below N = " + std::to_string(kernel.columns));
    }
  }
  std::vector<int64_t>& shape = in[1].shape;
  shape.push_back(kernel.depth);
  ort::Value* y = nullptr;
  if (Status* status = call<ort::KernelContext_GetOutput>(kernel.api, context, size_t{0}, shape.data(),
                                                          shape.size(), &y)) {
    return status;
  }
  void* data = nullptr;
  if (Status* status = call<ort::GetTensorMutableData>(kernel.api, y, &data)) return status;
  job->y = static_cast<float*>(data);
  return nullptr;
}

Status* compute(void* self, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  Job job{kernel, nullptr, nullptr, 0, nullptr, false, 0, nullptr, nullptr, nullptr};
  if (Status* status = read(kernel, context, &job)) return status;
  Pool pool{kernel.api, context, nullptr};
  if (job.count > 0) run_in_pool(&pool, static_cast<size_t>(job.count), gather_task, &job);
  return pool.failed;
}

void destroy(void* self) { delete static_cast<Kernel*>(self); }

const Overload& self(const ort::CustomOp* op) { return *static_cast<const Overload*>(op); }

ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  const ort::ElementType ids = self(op).narrow ? ort::kInt32 : ort::kInt64;
  const ort::ElementType types[] = {ort::kInt8, ids, ort::kFloat, ort::kInt64, ort::kFloat16};
  return types[index];
}

Status* infer_shape(const ort::CustomOp*, ort::ShapeInferContext* context) { return infer_rows(context, 1, "K"); }

}  // namespace

void add_int8_gather(std::vector<const ort::CustomOp*>& all) {
  static const Provider provider{[](const ort::CustomOp*) -> const char* { return nullptr; }, create, compute, destroy};
  // ONNX Runtime keeps the addresses, so the list of overloads must not move.
  static std::list<Overload> overloads;
  for (const bool branch : {false, true}) {
    for (const bool narrow : {false, true}) {
      Overload& op = overloads.emplace_back();
      op.branch = branch;
      op.narrow = narrow;
      describe_common(&op, provider);
      op.GetName = [](const ort::CustomOp* o) { return self(o).name(); };
      op.GetInputType = input_type;
      op.GetInputTypeCount = [](const ort::CustomOp* o) -> size_t { return self(o).branch ? 5 : 3; };
      op.GetOutputType = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
      op.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
      op.GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
      op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kDeviceMemory; };
      op.InferOutputShapeFn = infer_shape;
      all.push_back(&op);
    }
  }
}

}  // namespace spq
