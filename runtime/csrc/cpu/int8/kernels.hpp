// Products of uint8 by int8 in int32, for one instruction set.
//
// A weight [K, N], K padded to a multiple of 64 and N of 32 with zeros, is stored as panels [N/32, K/64, 2048]: byte
// 128*q + 4*j + p of panel n and step s is B[64s + 4q + p, 32n + j]. A row of 128 bytes is two vectors for the dot
// product instructions of AVX-512.
// Activations are packed as [step][row][64].
#pragma once

#include <cstdint>
#include <cstring>

namespace spq::cpu::int8 {

constexpr int64_t kColumns = 32, kDepth = 64, kStepBytes = kColumns * kDepth;
constexpr int64_t kMostRows = 32;  // of a block, for any set
constexpr int64_t kFewRows = 4;    // that are multiplied by panels abreast
// 255 * 128 * this fits into 31 bits.
constexpr int64_t kMostDepth = 65536;
constexpr int64_t kMostColumns = int64_t{1} << 31;

// Four codes as the number that all lanes of a vector get.
inline int32_t four_of(const uint8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, sizeof four);
  return four;
}

// What belongs to the columns of one panel.
struct Columns {
  const int32_t* sums;    // of the weight's codes, [32]; b_scale and bias too
  const float *b_scale, *bias;
  int64_t channels;       // of the branch
  const float* branch;    // its rows of the weight, as Branch::weight lays them out
  const uint16_t* half;   // for a few rows of A those rows as they are, float16 [channels][32]; else nullptr
};

// What belongs to some rows of a block.
struct Rows {
  int64_t count;
  const int32_t* acc;     // [count][32]
  const int32_t* zero;
  const float* scale;
  const float* outliers;  // of the whole block, as Branch::row lays them out
  int64_t first, block;   // of these rows the first in the block, and how many that has
};

// How a branch is multiplied: what its rows of the weight in one panel, float16 [channels][32], and the outliers of one row
// of a block become, and how many numbers that takes.
struct Branch {
  int64_t (*weight_size)(int64_t channels);
  void (*weight)(const uint16_t* half, int64_t channels, float* w);
  int64_t (*row_size)(int64_t channels);
  void (*row)(const float* x, const int64_t* channel, int64_t channels, int64_t row, int64_t block, float* outliers);
};

// What is read while a block is multiplied: bytes that come next.
struct Ahead {
  const int8_t* start;
  int64_t bytes;
};

struct Kernels {
  const char* name;
  int64_t block_rows;
  // acc [rows][32] = A . B, exact; rows at most block_rows.
  void (*block)(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int32_t* acc, const Ahead& ahead);
  // Codes of one row in groups of 64, `stride` bytes apart; the last group is filled up with zeros.
  void (*quantize)(const float* x, int64_t count, float scale, int32_t zero, uint8_t* codes, int64_t stride);
  // Smallest and largest of x and zero. Limits, where given, are infinite, or zero where a number does not count.
  void (*range)(const float* x, const float* limit, int64_t count, float* low, float* high);
  // y [count][stride], 32 of a row = (acc - zero * sums) * scale * b_scale + bias + outliers . branch
  void (*finish)(const Columns& columns, const Rows& rows, float* y, int64_t stride);
  // Numbers in float16 as float32, a multiple of 32 of them.
  void (*widen)(const uint16_t* half, int64_t count, float* x);
  Branch branch;
  // Of tiles, else as they stand here: a thread's first and last call around blocks of `rows` rows, which are even.
  bool even = false;
  void (*begin)(int64_t rows) = [](int64_t) {};
  void (*end)() = [] {};
  // Where a set has it: acc [panels][rows][32] of at most kFewRows rows, and of panels as many as `abreast` says.
  void (*few)(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int64_t panels, int32_t* acc) = nullptr;
  int64_t (*abreast)(int64_t rows) = nullptr;
  // What multiplies at most lower_rows rows faster.
  const Kernels* lower = nullptr;
  int64_t lower_rows = 0;
};

const Kernels& generic();
#if defined(SPQ_X86)
const Kernels& avx2();
const Kernels& avx_vnni();
const Kernels& avx512_vnni();
const Kernels& amx();
#endif

// The best for this machine, or what SPQ_GRAPH_ISA names: one of these, or one of the FP8 operator's sets.
const Kernels& best();
// Ends with nullptr.
const Kernels* const* available();

}  // namespace spq::cpu::int8
