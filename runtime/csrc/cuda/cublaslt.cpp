#include "cublaslt.hpp"

#include <cstdlib>
#include <mutex>
#include <string>

#include "device.hpp"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace spq::cuda {
namespace {

void check(LtStatus status, const char* what) {
  if (status != kLtSuccess) throw Error(std::string(what) + " failed with cublasStatus_t " + std::to_string(status));
}

cudaDataType_t type_of(Operand operand) {
  switch (operand) {
    case Operand::kE4M3: return CUDA_R_8F_E4M3;
    case Operand::kE5M2: return CUDA_R_8F_E5M2;
    case Operand::kHalf: return CUDA_R_16F;
    case Operand::kBfloat16: return CUDA_R_16BF;
    case Operand::kFloat: return CUDA_R_32F;
  }
  return CUDA_R_32F;
}

#if !defined(_WIN32)

void* open_library(bool load, std::string* name) {
  if (const char* given = std::getenv("SPQ_GRAPH_CUBLASLT")) {
    *name = given;
    return *given != '\0' ? dlopen(given, RTLD_NOW | RTLD_LOCAL) : nullptr;
  }
  constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
  // The one that ONNX Runtime has loaded comes first: a second one would take as much memory again.
  for (int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL}) {
    for (const char* candidate : kNames) {
      *name = candidate;
      if (void* found = dlopen(candidate, flags)) return found;
    }
    if (!load) break;
  }
  return nullptr;
}

template <typename Function>
bool find(void* library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, name));
  return *out != nullptr;
}

bool find_all(bool load, Lt* lt) {
  void* library = open_library(load, &lt->name);  // stays open: the process ends with it
  return library != nullptr && find(library, "cublasLtCreate", &lt->Create) &&
         find(library, "cublasLtMatmulDescCreate", &lt->MatmulDescCreate) &&
         find(library, "cublasLtMatmulDescDestroy", &lt->MatmulDescDestroy) &&
         find(library, "cublasLtMatmulDescSetAttribute", &lt->MatmulDescSetAttribute) &&
         find(library, "cublasLtMatrixLayoutCreate", &lt->MatrixLayoutCreate) &&
         find(library, "cublasLtMatrixLayoutDestroy", &lt->MatrixLayoutDestroy) &&
         find(library, "cublasLtMatmulPreferenceCreate", &lt->MatmulPreferenceCreate) &&
         find(library, "cublasLtMatmulPreferenceDestroy", &lt->MatmulPreferenceDestroy) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", &lt->MatmulPreferenceSetAttribute) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", &lt->MatmulAlgoGetHeuristic) &&
         find(library, "cublasLtMatmul", &lt->Matmul);
}

#else

bool find_all(bool, Lt*) { return false; }  // no CUDA build for Windows yet

#endif

}  // namespace

const Lt* cublaslt(bool load) {
  static std::mutex mutex;
  static Lt lt = {};
  static bool found = false;
  const std::lock_guard<std::mutex> lock(mutex);
  // Only success is kept: who asks before ONNX Runtime has loaded its libraries may find none, and later one.
  if (!found) found = find_all(load, &lt);
  return found ? &lt : nullptr;
}

// cuBLASLt thinks in columns: a row-major matrix is, to it, the transposed one with the same stride. So it computes
// sums^T [columns, rows] = (w^T)^T . x^T, with w^T [depth, columns] as its A, transposed, and x^T [depth, rows] as its
// B: the one arrangement in which tensor cores take FP8 on every architecture.
Product::Product(const Lt& lt, LtContext* context, const Shape& shape) : lt_(lt), context_(context) {
  try {
    describe(shape);
    choose();
  } catch (...) {
    release();
    throw;
  }
}

Product::~Product() { release(); }

void Product::release() {
  if (preference_ != nullptr) lt_.MatmulPreferenceDestroy(preference_);
  for (LtLayout* layout : {w_, x_, sums_}) {
    if (layout != nullptr) lt_.MatrixLayoutDestroy(layout);
  }
  if (desc_ != nullptr) lt_.MatmulDescDestroy(desc_);
}

void Product::describe(const Shape& shape) {
  check(lt_.MatmulDescCreate(&desc_, kLtCompute32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const int32_t transposed = 1;
  check(lt_.MatmulDescSetAttribute(desc_, kLtTransposeA, &transposed, sizeof transposed),
        "cublasLtMatmulDescSetAttribute");
  const uint64_t rows = static_cast<uint64_t>(shape.rows), columns = static_cast<uint64_t>(shape.columns),
                 depth = static_cast<uint64_t>(shape.depth);
  const char* create = "cublasLtMatrixLayoutCreate";
  check(lt_.MatrixLayoutCreate(&w_, type_of(shape.w), depth, columns, shape.depth), create);
  check(lt_.MatrixLayoutCreate(&x_, type_of(shape.x), depth, rows, shape.depth), create);
  check(lt_.MatrixLayoutCreate(&sums_, CUDA_R_32F, columns, rows, shape.stride), create);
}

void Product::choose() {
  check(lt_.MatmulPreferenceCreate(&preference_), "cublasLtMatmulPreferenceCreate");
  const char* set = "cublasLtMatmulPreferenceSetAttribute";
  const uint64_t workspace = uint64_t{32} << 20;  // what NVIDIA recommends for Hopper; less is taken where less will do
  check(lt_.MatmulPreferenceSetAttribute(preference_, kLtMostWorkspace, &workspace, sizeof workspace), set);
  const uint32_t alignment = 16;
  for (LtPreferenceAttribute which : {kLtAlignmentA, kLtAlignmentB, kLtAlignmentC, kLtAlignmentD}) {
    check(lt_.MatmulPreferenceSetAttribute(preference_, which, &alignment, sizeof alignment), set);
  }
  // cuBLASLt remembers its answers, so asking again for every call is cheap.
  int found = 0;
  const LtStatus status = lt_.MatmulAlgoGetHeuristic(context_, desc_, w_, x_, sums_, sums_, preference_, 1, &heuristic_,
                                                     &found);
  // Whatever the reason is, another way is found; so this is no error.
  supported_ = status == kLtSuccess && found > 0 && heuristic_.state == kLtSuccess;
}

void Product::run(const void* x, const void* w, float* sums, void* workspace, cudaStream_t stream) const {
  const float one = 1.0f, zero = 0.0f;
  check(lt_.Matmul(context_, desc_, &one, w, w_, x, x_, &zero, sums, sums_, sums, sums_, &heuristic_.algorithm,
                   workspace, heuristic_.workspace, stream),
        "cublasLtMatmul");
}

}  // namespace spq::cuda
