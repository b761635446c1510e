// cuBLASLt, found at run time: the library is some hundred megabytes large, ONNX Runtime's CUDA provider has it loaded
// already, and where there is none our own kernel does the work. So nothing is linked, and its header is not needed.
// What is declared here is the part of its interface that we use, the same from CUDA 11.8 to 13.
#pragma once

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels.hpp"

namespace spq::cuda {

struct LtContext;
struct LtMatmulDesc;
struct LtLayout;
struct LtPreference;

struct LtAlgorithm {
  uint64_t data[8];
};

struct LtHeuristic {
  LtAlgorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(LtHeuristic) == 96, "the size that cublasLtMatmulHeuristicResult_t has");

enum LtStatus : int { kLtSuccess = 0 };
enum LtCompute : int { kLtCompute32F = 68 };  // float32 throughout: TF32 must be asked for by another number
enum LtDescAttribute : int { kLtTransposeA = 3 };
enum LtPreferenceAttribute : int {
  kLtMostWorkspace = 1,
  kLtAlignmentA = 5,
  kLtAlignmentB = 6,
  kLtAlignmentC = 7,
  kLtAlignmentD = 8,
};

struct Lt {
  std::string name;  // of the library that was found
  LtStatus (*Create)(LtContext**);
  LtStatus (*MatmulDescCreate)(LtMatmulDesc**, LtCompute, cudaDataType_t scale_type);
  LtStatus (*MatmulDescDestroy)(LtMatmulDesc*);
  LtStatus (*MatmulDescSetAttribute)(LtMatmulDesc*, LtDescAttribute, const void*, size_t);
  LtStatus (*MatrixLayoutCreate)(LtLayout**, cudaDataType_t, uint64_t rows, uint64_t columns, int64_t stride);
  LtStatus (*MatrixLayoutDestroy)(LtLayout*);
  LtStatus (*MatmulPreferenceCreate)(LtPreference**);
  LtStatus (*MatmulPreferenceDestroy)(LtPreference*);
  LtStatus (*MatmulPreferenceSetAttribute)(LtPreference*, LtPreferenceAttribute, const void*, size_t);
  LtStatus (*MatmulAlgoGetHeuristic)(LtContext*, LtMatmulDesc*, LtLayout* a, LtLayout* b, LtLayout* c, LtLayout* d,
                                     LtPreference*, int wanted, LtHeuristic*, int* found);
  LtStatus (*Matmul)(LtContext*, LtMatmulDesc*, const void* alpha, const void* a, LtLayout*, const void* b, LtLayout*,
                     const void* beta, const void* c, LtLayout*, void* d, LtLayout*, const LtAlgorithm*,
                     void* workspace, size_t workspace_size, cudaStream_t);
};

// nullptr where there is none; without `load` only one that the process has already. Environment variable
// SPQ_GRAPH_CUBLASLT names another file, or "" for none.
const Lt* cublaslt(bool load = true);

// sums [rows, columns] = x [rows, depth] . w [columns, depth]^T in float32, all row-major; sums with a stride.
// `depth` is a multiple of 16, and every pointer of 16 bytes; FP8 wants `columns` to be a multiple of 16 too.
class Product {
 public:
  struct Shape {
    Operand x, w;
    int64_t rows, columns, depth, stride;
  };
  // Throws where memory or a call fails; a product that cuBLASLt does not have is no failure.
  Product(const Lt& lt, LtContext* context, const Shape& shape);
  ~Product();
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  bool supported() const { return supported_; }
  size_t workspace() const { return heuristic_.workspace; }
  void run(const void* x, const void* w, float* sums, void* workspace, cudaStream_t stream) const;

 private:
  void describe(const Shape& shape);
  void choose();
  void release();

  const Lt& lt_;
  LtContext* context_;
  LtMatmulDesc* desc_ = nullptr;
  LtLayout* w_ = nullptr;
  LtLayout* x_ = nullptr;
  LtLayout* sums_ = nullptr;
  LtPreference* preference_ = nullptr;
  LtHeuristic heuristic_ = {};
  bool supported_ = false;
};

}  // namespace spq::cuda
