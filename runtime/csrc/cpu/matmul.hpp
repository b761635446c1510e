// Y = X . W with W in FP8: blocking, packing and threads, over the kernels of one instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"
#include "working.hpp"

namespace spq::cpu {

struct Problem {
  int64_t rows, depth, columns;  // M, K, N
  Rows a;                        // [M, K]; its scale is applied again to the result
  const uint8_t* b;              // panels, see fp8.hpp
  Format b_format;
  const float* b_scale;          // one, or one for each column
  bool per_channel;
  bool fast;                     // activations may be rounded to bfloat16
  void* y;                       // [M, N], of A's element type
};

// Returns false where memory for the working copies of A and B cannot be had; Y is undefined then.
bool matmul(const Problem& problem, const Isa& isa, const Parallel& parallel) noexcept;

}  // namespace spq::cpu
