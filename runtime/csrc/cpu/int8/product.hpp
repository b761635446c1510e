// Y = X . W with W in int8: quantizing, blocks and threads, over the kernels of one instruction set.
#pragma once

#include <atomic>
#include <vector>

#include "../working.hpp"
#include "kernels.hpp"

namespace spq::cpu::int8 {

// How many threads took part in the last call of a few rows. Nobody tells an operator how many there are, and one thread
// alone is fastest by large tasks.
struct Crew {
  std::atomic<int64_t> threads{1};
};

struct Problem {
  int64_t rows, depth, columns;   // M, K, N
  const void* a;                  // [M, K]
  bool half;                      // float16, else float32
  const int8_t* b;                // panels, see kernels.hpp
  const int32_t* sums;            // of the columns of B, one for each stored column
  const float* b_scale;
  const float* bias;
  bool per_channel, biased;       // whether b_scale and bias hold one for each column, else one
  const float* a_scale;           // nullptr: by row
  int32_t a_zero;
  int64_t channels;               // of the branch
  const int64_t* channel;
  const uint16_t* branch;         // its rows of the weight, as pack_branch writes them
  const float* limit;             // by row with a branch: as limit_range writes it, or nullptr
  void* y;                        // [M, N], of A's element type
  Crew* crew;                     // of the calls of this kernel, or nullptr
};

int64_t steps_of(int64_t depth);
// The shape that a weight is stored in.
std::vector<int64_t> panels_of(int64_t depth, int64_t columns);
// Rows of a weight, float16 [channels, N], as panels [N/32, channels, 32] filled up with zeros: a panel's lie together.
void pack_branch(const uint16_t* rows, int64_t channels, int64_t columns, uint16_t* packed);
// What of a row counts for its range, [K]: zero at the channels of the branch, infinite elsewhere.
void limit_range(const Problem& problem, float* limit);
// Sums of the columns of one panel, int32 [32].
void sum_panel(const int8_t* panel, int64_t steps, int32_t* sums);

// Returns false where memory for the working copies cannot be had; Y is undefined then.
bool matmul(const Problem& problem, const Kernels& kernels, const Parallel& parallel) noexcept;

}  // namespace spq::cpu::int8
