// Products of uint8 by int8 in int32, for one instruction set.
//
// A weight [K, N], K padded to a multiple of 64 and N of 32 with zeros, is stored as panels [N/32, K/64, 2048]: byte
// 128*q + 4*j + p of panel n and step s is B[64s + 4q + p, 32n + j]. A row of 128 bytes is two vectors for the dot
// product instructions of AVX-512.
// Activations are packed as [step][row][64].
#pragma once

#include <cstdint>

namespace spq::cpu::int8 {

constexpr int64_t kColumns = 32, kDepth = 64, kStepBytes = kColumns * kDepth;
constexpr int64_t kMostRows = 12;  // of a block, for any set
// 255 * 128 * this fits into 31 bits.
constexpr int64_t kMostDepth = 65536;

struct Kernels {
  const char* name;
  int64_t block_rows;
  // acc [rows][32] = A . B, exact; rows at most block_rows.
  void (*block)(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int32_t* acc);
  // Codes of one row in groups of 64, `stride` bytes apart; the last group is filled up with zeros.
  void (*quantize)(const float* x, int64_t count, float scale, int32_t zero, uint8_t* codes, int64_t stride);
  // Smallest and largest of x and zero. Where limits are given they are infinite, or zero where a number does not count.
  void (*range)(const float* x, const float* limit, int64_t count, float* low, float* high);
  // y [32] = (acc - zero * sums) * scale * b_scale + bias
  void (*finish)(const int32_t* acc, int32_t zero, float scale, const int32_t* sums, const float* b_scale,
                 const float* bias, float* y);
  // Numbers in float16 as float32, a multiple of 32 of them.
  void (*widen)(const uint16_t* half, int64_t count, float* x);
  // y [rows][32] += x [channel][row] . w [channel][32], for `channels` of them, which lie `stride` numbers of x apart; at
  // most block_rows rows.
  void (*branch)(const float* x, int64_t stride, const float* w, int64_t channels, int64_t rows, float* y);
};

const Kernels& generic();
#if defined(SPQ_X86)
const Kernels& avx2();
const Kernels& avx_vnni();
const Kernels& avx512_vnni();
#endif

// The best for this machine, or what SPQ_GRAPH_ISA names: one of these, or one of the FP8 operator's sets.
const Kernels& best();
// Ends with nullptr.
const Kernels* const* available();

}  // namespace spq::cpu::int8
