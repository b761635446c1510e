// spq::Fp8MatMul on ONNX Runtime's CUDA provider: which way a product goes.
//
// A few rows go straight from the panels (direct.cu), which reads a byte a weight and is bound by that. Every 8 rows
// decode the weight again, so with more of them cuBLASLt takes over, in the first of these ways that it has:
//   - FP8 tensor cores (compute capability 8.9) where activations are FP8, `fast` is set and the formats are not both
//     E5M2, which cuBLASLt lacks. Their inner sums have fewer bits than float32, hence `fast`. The weight is laid out
//     once more, a byte an element, and kept as long as the session: a site that ever sees more than 16 rows takes
//     twice its weight's memory. A weight that is no constant is laid out for every call.
//   - float16 for activations that are float16 or rounded to FP8: FP8 numbers are exact in it.
//   - bfloat16 for float32 activations and `fast`; weights are exact in it.
//   - float32 otherwise, without TF32.
// The last three decode the weight into working memory for every call, in pieces where it is large. Without cuBLASLt
// the kernel for a few rows serves any number of them, slowly. Sums are float32 everywhere, and scales come last.
//
// E4M3 has no infinity. Tensor cores therefore get NaN in its place, its row is marked, and after the product rows that
// are marked are computed again, straight from the panels, where activations are float32.
#include <algorithm>
#include <mutex>
#include <string>

#include "../operator.hpp"
#include "cublaslt.hpp"
#include "device.hpp"

namespace spq {

namespace {

using cuda::check;
using cuda::Buffer;
using cuda::Device;
using cuda::Operand;
using ort::Api;
using ort::Status;

// Most rows that go straight from the panels, by the bytes that the other way moves: with tensor cores for FP8 it reads
// a weight's byte as we do; otherwise it reads that, writes two and reads those again. Rules of thumb, not measured.
constexpr int64_t kMostBesideFp8 = 2 * cuda::kDirectRows;
constexpr int64_t kMostBesideDecoding = 4 * cuda::kDirectRows;
constexpr int64_t kPiece = int64_t{128} << 20;  // most bytes of an operand, or of sums, in working memory
constexpr int64_t kDepthStep = 16;              // FP8 tensor cores want K in whole steps; zeros fill the last one

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

Operand fp8(Format format) { return format == Format::kE4M3 ? Operand::kE4M3 : Operand::kE5M2; }

// A weight laid out for FP8 tensor cores, made by whoever comes first.
class Packed {
 public:
  Packed() = default;
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  ~Packed() {
    if (data_ != nullptr) cudaFree(data_);  // fails at the end of a process, where everything is freed anyway
  }

  const void* get(const cuda::Weight& b, Operand operand, int64_t depth_padded, cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ready_) return data_;
    const size_t bytes = static_cast<size_t>(b.panel_count() * kPanelColumns * depth_padded);
    if (data_ == nullptr) check(cudaMalloc(&data_, bytes), "cudaMalloc for the weight's copy");
    check(cuda::unpack(b, operand, depth_padded, data_, stream), "unpack");
    // Calls on other streams may use it as soon as this returns, so it has to be done. This happens once.
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    ready_ = true;
    return data_;
  }

 private:
  std::mutex mutex_;
  void* data_ = nullptr;
  bool ready_ = false;
};

struct Kernel {
  const Api* api;
  Attributes attributes;
  Format b_format;
  bool b_constant;
  mutable Packed packed;
};

// One call of the operator.
struct Run {
  const Kernel& kernel;
  const Device& device;
  cudaStream_t stream;
  cuda::Activations a;
  cuda::Weight b;
  cuda::Result y;

  void run() const;
  void direct(const cuda::Activations& rows, const cuda::Weight& part, const cuda::Result& out, const int* marks) const;
  bool product(Operand x, Operand w) const;
};

// How often K is split: enough blocks to fill the device, where the panels alone are too few.
int64_t splits_for(const cuda::Activations& a, const cuda::Weight& b, int multiprocessors) {
  const int64_t blocks = b.panel_count() * ((a.rows + cuda::kDirectRows - 1) / cuda::kDirectRows);
  return blocks >= multiprocessors ? 1 : std::min<int64_t>((2 * multiprocessors + blocks - 1) / blocks, 64);
}

void Run::direct(const cuda::Activations& rows, const cuda::Weight& part, const cuda::Result& out,
                 const int* marks) const {
  const int64_t steps = (part.pairs() + cuda::kDirectPairs - 1) / cuda::kDirectPairs;
  const int64_t wanted = marks != nullptr ? 1 : std::min(splits_for(rows, part, device.multiprocessors), steps);
  const int64_t share = (steps + wanted - 1) / wanted * cuda::kDirectPairs;
  const int64_t splits = (part.pairs() + share - 1) / share;  // no share is empty
  const Buffer partial(device, stream, splits > 1 ? splits * rows.rows * part.columns * 4 : 0);
  const cuda::Direct work{rows, part, out, share, static_cast<int>(splits), partial.get<float>(), marks};
  check(cuda::run_direct(work, stream), "run_direct");
}

// How a product by cuBLASLt is cut up so that its working memory is bounded.
struct Way {
  Operand x, w;
  int64_t depth;          // K with its padding
  bool keeps;             // the weight's copy stays with the session
  bool x_is_a;            // A goes in as it is
  bool sums_are_y;        // sums go straight to Y and are scaled in place
  int64_t width, height;  // columns and rows of a piece; width is a multiple of 32

  Way(const Run& run, Operand x_type, Operand w_type)
      : x(x_type), w(w_type), depth(round_up(run.b.depth, kDepthStep)) {
    keeps = bytes_of(w) == 1 && run.kernel.b_constant;
    x_is_a = run.a.format == Format::kNone && x == (run.a.half ? Operand::kHalf : Operand::kFloat) &&
             depth == run.a.depth && aligned(run.a.data);
    sums_are_y = !run.y.half && run.b.columns % 16 == 0 && aligned(run.y.data);
    const int64_t all = run.b.panel_count() * kPanelColumns;
    const int64_t fitting = kPiece / (depth * bytes_of(w)) / kPanelColumns * kPanelColumns;
    width = keeps ? all : std::min(all, std::max(fitting, kPanelColumns));
    const int64_t row_bytes = std::max(x_is_a ? 1 : depth * bytes_of(x), sums_are_y ? 1 : width * 4);
    height = std::min(run.a.rows, std::max(kPiece / row_bytes, kDepthStep));
  }
};

// One piece: some rows of A by some columns of the weight.
struct Piece {
  const Run& run;
  const Way& way;
  cuda::Activations a;
  cuda::Weight b;
  cuda::Result y;

  Piece(const Run& whole, const Way& how, int64_t row, int64_t column)
      : run(whole), way(how), a(whole.a), b(whole.b.from(column, std::min(how.width, whole.b.columns - column))),
        y(whole.y) {
    const int64_t bytes = a.half ? 2 : 4;
    a.data = static_cast<const char*>(a.data) + row * a.depth * bytes;
    a.rows = std::min(way.height, a.rows - row);
    y.data = static_cast<char*>(y.data) + (row * y.stride + column) * bytes;
    y.b_scale += y.per_channel ? column : 0;
  }

  int64_t columns() const { return way.sums_are_y ? b.columns : b.panel_count() * kPanelColumns; }
  int64_t stride() const { return way.sums_are_y ? y.stride : columns(); }
  void compute(const cuda::Product& product, const void* w) const;
};

void Piece::compute(const cuda::Product& product, const void* w) const {
  const cudaStream_t stream = run.stream;
  const bool marked = way.x == Operand::kE4M3;
  const Buffer marks(run.device, stream, marked ? (1 + a.rows) * 4 : 0);
  if (marked) check(cudaMemsetAsync(marks.get(), 0, static_cast<size_t>(1 + a.rows) * 4, stream), "cudaMemsetAsync");
  const Buffer x(run.device, stream, way.x_is_a ? 0 : a.rows * way.depth * bytes_of(way.x));
  if (!way.x_is_a) check(cuda::prepare(a, way.x, way.depth, x.get(), marks.get<int>(), stream), "prepare");
  const Buffer sums(run.device, stream, way.sums_are_y ? 0 : a.rows * stride() * 4);
  float* const to = way.sums_are_y ? static_cast<float*>(y.data) : sums.get<float>();
  const Buffer workspace(run.device, stream, static_cast<int64_t>(product.workspace()));
  product.run(way.x_is_a ? a.data : x.get(), w, to, workspace.get(), stream);
  check(cuda::finish(to, stride(), a.rows, b.columns, y, stream), "finish");
  if (marked) run.direct(a, b, y, marks.get<int>());
}

// Y by way of cuBLASLt. False where it has no such product; what was written to Y until then is of no use.
bool Run::product(Operand x_type, Operand w_type) const {
  const Way way(*this, x_type, w_type);
  for (int64_t column = 0; column < b.columns; column += way.width) {
    Buffer w_buffer;
    const void* w = nullptr;
    for (int64_t row = 0; row < a.rows; row += way.height) {
      const Piece piece(*this, way, row, column);
      const cuda::Product product(*device.lt, device.context,
                                  {way.x, way.w, piece.a.rows, piece.columns(), way.depth, piece.stride()});
      if (!product.supported()) return false;
      if (w == nullptr && way.keeps) {
        w = kernel.packed.get(b, way.w, way.depth, stream);
      } else if (w == nullptr) {
        w_buffer = Buffer(device, stream, piece.b.panel_count() * kPanelColumns * way.depth * bytes_of(way.w));
        check(cuda::unpack(piece.b, way.w, way.depth, w_buffer.get(), stream), "unpack");
        w = w_buffer.get();
      }
      piece.compute(product, w);
    }
  }
  return true;
}

void Run::run() const {
  if (a.rows == 0) return;
  if (!aligned(b.panels)) throw cuda::Error("B must lie at a multiple of 16 bytes");
  const bool rounded = a.format != Format::kNone, fast = kernel.attributes.fast, lt = device.lt != nullptr;
  const bool two_e5m2 = a.format == Format::kE5M2 && b.format == Format::kE5M2;
  const bool tensor_cores = rounded && fast && !two_e5m2 && device.architecture >= 89;
  if (lt && tensor_cores && a.rows > kMostBesideFp8 && product(fp8(a.format), fp8(b.format))) return;
  const Operand wide = rounded || a.half ? Operand::kHalf : fast ? Operand::kBfloat16 : Operand::kFloat;
  if (lt && a.rows > kMostBesideDecoding && product(wide, wide)) return;
  direct(a, b, y, nullptr);
}

// ------------------------------------------------------------------------------------------------------- interface

Status* failed(const Api* api, const char* what) {
  return ort::call<ort::CreateStatus>(api, ort::kFail, (std::string("spq::Fp8MatMul: ") + what).c_str());
}

Status* is_constant(const Api* api, const ort::KernelInfo* info, size_t input, bool* out) {
  int constant = 0;
  const ort::Value* value = nullptr;
  Status* status = ort::call<ort::KernelInfoGetConstantInput_tensor>(api, info, input, &constant, &value);
  *out = constant != 0;
  return status;
}

Status* create(const ort::CustomOp* op, const Api* api, const ort::KernelInfo* info, void** out) {
  Attributes attributes;
  bool constant = false;
  if (Status* status = read_attributes(api, info, &attributes)) return status;
  if (Status* status = is_constant(api, info, 1, &constant)) return status;
  *out = new Kernel{api, attributes, b_format(*static_cast<const Overload*>(op)), constant, {}};
  return nullptr;
}

Status* compute(void* self, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  const Attributes& attributes = kernel.attributes;
  Call call;
  if (Status* status = read_call(kernel.api, context, attributes, &call)) return status;
  void* stream = nullptr;
  if (Status* status = ort::call<ort::KernelContext_GetGPUComputeStream>(kernel.api, context, &stream)) return status;
  const float a_scale = call.a_scale != nullptr ? *call.a_scale : 1.0f;
  try {
    const Run run{
        kernel, cuda::current_device(), static_cast<cudaStream_t>(stream),
        cuda::Activations{call.a, call.half, call.rows, attributes.depth, attributes.a_format, a_scale},
        cuda::Weight{call.b, kernel.b_format, attributes.depth, attributes.columns},
        cuda::Result{call.y, call.half, attributes.columns, call.b_scale, call.per_channel, a_scale},
    };
    run.run();
  } catch (const std::exception& error) {
    return failed(kernel.api, error.what());
  }
  return nullptr;
}

void destroy(void* self) { delete static_cast<Kernel*>(self); }

// A driver that is too old for the CUDA that we were compiled with would fail every call. Without kernels for this
// provider, ONNX Runtime takes the ones for the CPU. No driver at all is a machine that never asks.
bool driver_serves() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) return true;
  return driver == 0 || driver / 1000 >= CUDART_VERSION / 1000;
}

// The name of the first device, or "" where there is none.
std::string device_name() {
  int count = 0;
  cudaDeviceProp properties = {};
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
                     cudaGetDeviceProperties(&properties, 0) == cudaSuccess;
  cudaGetLastError();  // having no device is no error to anybody else
  return found ? properties.name : "";
}

std::string quoted(const std::string& text) { return text.empty() ? "null" : "\"" + text + "\""; }

}  // namespace

const Provider* cuda_provider() {
  static const Provider provider{
      [](const ort::CustomOp*) { return "CUDAExecutionProvider"; }, create, compute, destroy,
  };
  return driver_serves() ? &provider : nullptr;
}

const char* cuda_info() {
  static const std::string text = [] {
    const std::string device = device_name();
    const cuda::Lt* lt = cuda::cublaslt(/*load=*/false);  // a question must not load hundreds of megabytes
    const bool usable = !device.empty() && driver_serves();
    return std::string("{\"architectures\": [" SPQ_CUDA_ARCHITECTURES "], \"runtime\": ") +
           std::to_string(CUDART_VERSION) + ", \"usable\": " + (usable ? "true" : "false") + ", \"cublaslt\": " +
           quoted(lt != nullptr ? lt->name : std::string()) + ", \"device\": " + quoted(device) + "}";
  }();
  return text.c_str();
}

}  // namespace spq
