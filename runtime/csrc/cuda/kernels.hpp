// The kernels, as the host starts them. Each function puts its work on the stream and returns the launch's error.
#pragma once

#include <cuda_runtime_api.h>

#include "../fp8.hpp"
#include "numbers.hpp"

namespace spq::cuda {

// What the elements of a matrix are that tensor cores (or, for kFloat, ordinary ones) multiply.
enum class Operand { kE4M3, kE5M2, kHalf, kBfloat16, kFloat };

constexpr int64_t bytes_of(Operand operand) {
  return operand == Operand::kFloat ? 4 : operand == Operand::kE4M3 || operand == Operand::kE5M2 ? 1 : 2;
}

struct Activations {  // [rows, depth], and the FP8 format that they are rounded to
  const void* data;
  bool half;
  int64_t rows, depth;
  Format format;
  float scale;
};

struct Weight {  // panels of [depth, columns]
  const uint8_t* panels;
  Format format;
  int64_t depth, columns;
  SPQ_BOTH int64_t pairs() const { return (depth + 1) / 2; }
  SPQ_BOTH int64_t panel_count() const { return (columns + kPanelColumns - 1) / kPanelColumns; }
  // The panels from a column on, which must be a multiple of 32.
  Weight from(int64_t column, int64_t count) const {
    return {panels + column / kPanelColumns * pairs() * kPanelBytes, format, depth, count};
  }
};

struct Result {  // [rows, columns], of the activations' type; rows lie `stride` elements apart
  void* data;
  bool half;
  int64_t stride;
  const float* b_scale;  // one, or one for each column
  bool per_channel;
  float a_scale;
};

// ------------------------------------------------------------------------- a few rows: straight from the panels

// Pairs of rows of the weight that a block takes at a time; a share of K is a multiple of it.
constexpr int64_t kDirectPairs = 256;
constexpr int64_t kDirectRows = 8;  // rows of the activations that a block takes at a time

struct Direct {
  Activations a;
  Weight b;
  Result y;
  // Where K is split over blocks: pairs of each share, number of shares, and room for [splits, rows, columns].
  int64_t share;
  int splits;
  float* partial;
  // nullptr for all rows; else marks[0] tells whether any of the marks[1 + row] is set, and only those rows are done.
  const int* marks;
};

// Sums are float32 in an order that depends on the shapes and `splits` only.
cudaError_t run_direct(const Direct& work, cudaStream_t stream);

// ------------------------------------------------------------------------- many rows: operands of a matrix product

// w [panels * 32, depth_padded] from panels: the codes themselves or their values, K innermost, padded with zeros.
cudaError_t unpack(const Weight& b, Operand operand, int64_t depth_padded, void* w, cudaStream_t stream);

// x [rows, depth_padded] from activations: rounded where asked, in units of their scale. E4M3 has no infinity: such an
// element becomes NaN, and its row is marked (see Direct) in marks [1 + rows], which must be zero before.
cudaError_t prepare(const Activations& a, Operand operand, int64_t depth_padded, void* x, int* marks,
                    cudaStream_t stream);

// y = sums * b_scale * a_scale, where sums [rows, columns] have a stride that is a multiple of 4; may be in place.
cudaError_t finish(const float* sums, int64_t stride, int64_t rows, int64_t columns, const Result& y,
                   cudaStream_t stream);

}  // namespace spq::cuda
