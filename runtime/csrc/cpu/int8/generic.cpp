// Plain C++, in the vectors that the compiler finds for it.
#include <cstring>

#include "../../floats.hpp"
#include "kernels.hpp"

namespace spq::cpu::int8 {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kTileRows = 1;  // of the branch

void widen(const uint16_t* half, int64_t count, float* x) {
  for (int64_t i = 0; i < count; ++i) x[i] = float_from_half(half[i]);
}

}  // namespace
#include "rows.inl"

namespace {

void products(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int32_t* acc, const Ahead&) {
  for (int64_t row = 0; row < rows; ++row) {
    int32_t sums[kColumns] = {};
    for (int64_t k = 0; k < steps * kDepth; k += 4) {
      const uint8_t* x = a + (k / kDepth * rows + row) * kDepth + k % kDepth;
      const int8_t* b = panel + k * kColumns;
      for (int64_t j = 0; j < kColumns; ++j, b += 4) sums[j] += x[0] * b[0] + x[1] * b[1] + x[2] * b[2] + x[3] * b[3];
    }
    for (int64_t j = 0; j < kColumns; ++j) acc[row * kColumns + j] = sums[j];
  }
}

}  // namespace

const Kernels& generic() {
  static const Kernels kernels{"generic", 4, products, quantize, range, finish, widen, kBranch};
  return kernels;
}

}  // namespace spq::cpu::int8
