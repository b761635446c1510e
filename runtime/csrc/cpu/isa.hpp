// What one instruction set does with one panel of 32 columns. The loops around it are in matmul.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../fp8.hpp"

namespace spq::cpu {

// How the two operands of a block are laid out for the inner kernel.
//   kF32:   B float32 [rows][32];            A float32 [rows of K][rows of A in the block]
//   kBf16:  B bfloat16 [pairs][32][2];       A bfloat16 [pairs][rows of A][2]
//   kTiles: B bfloat16 [pairs][32][2];       A tiles of 16 rows x 32 bfloat16, `terms` of them after one another
enum class Layout { kF32, kBf16, kTiles };

struct Rows {             // a piece of A, rows x columns, row-major
  const void* data;
  int64_t stride;         // elements from row to row
  bool half;              // float16, else float32
  Format format;          // what it is rounded to first
  float scale;            // the step of that rounding
};

// Codes of a panel that are decoded beside a multiplication, some in each of its steps: while tiles multiply, the vector
// units have nothing to do.
struct Ahead {
  const uint8_t* codes;
  int64_t pairs;          // that are left
  int64_t each;           // pairs in a step
  Format format;
  uint16_t* b;
};

struct Isa {
  const char* name;
  // acc [rows][32] = A [rows][K] . W, straight from the codes; A float32 with `pairs` pairs. At most max_direct_rows.
  void (*direct)(const uint8_t* panel, int64_t pairs, const float* a, int64_t stride, int64_t rows, Format format,
                 float* acc);
  int64_t max_direct_rows;
  // Decodes rows of a panel into B of the layout.
  void (*decode_f32)(const uint8_t* panel, int64_t pairs, Format format, float* b);
  void (*decode_bf16)(const uint8_t* panel, int64_t pairs, Format format, uint16_t* b);
  // acc [rows][32] += A . B over `depth` rows of B; rows at most block_rows.
  void (*block_f32)(const float* a, const float* b, int64_t depth, int64_t rows, float* acc);
  int64_t block_rows_f32;
  void (*block_bf16)(const uint16_t* a, const uint16_t* b, int64_t pairs, int64_t rows, float* acc);
  int64_t block_rows_bf16;
  // acc [tiles*16][32] += A . B; `steps` of 32 rows of B, `tiles` 1 or 2, A laid out [tile][step][term][16][32].
  // Decodes some of what is ahead on the way.
  void (*tiles)(const uint16_t* a, int64_t tile_stride, const uint16_t* b, int64_t steps, int64_t tiles, int64_t terms,
                float* acc, Ahead* ahead);
  // acc [rows][32] = A . W straight from the codes; A laid out [step][rows][32], rows at most 16, steps of 32 rows of W.
  void (*direct_tiles)(const uint8_t* panel, int64_t pairs, const uint16_t* a, int64_t rows, Format format, float* acc);
  void (*tiles_begin)(int64_t rows);  // once in each thread before, with the rows of a tile of A, and once after
  void (*tiles_end)();
  // x [columns] = the values of one row of A, rounded as asked and divided by the scale where there is a format.
  void (*prepare)(const Rows& rows, int64_t row, int64_t column, int64_t columns, float* x);
  // Splits groups of 32 values into bfloat16: one term rounded, three terms exact.
  void (*split)(const float* x, int64_t groups, int64_t terms, uint16_t* out, int64_t group_stride,
                int64_t term_stride);
};

const Isa& generic();
#if defined(SPQ_X86)
const Isa& avx2();
const Isa& avx512();
const Isa& avx512_bf16();
const Isa& amx();
#endif

// The best set that this machine has, or the one that environment variable SPQ_GRAPH_ISA names if the machine has it.
const Isa& best();
// Names of all sets that this machine has, the best one last, ending with nullptr.
const char* const* available();
// The set of that name if this machine has it, else nullptr.
const Isa* find(const char* name);

}  // namespace spq::cpu
