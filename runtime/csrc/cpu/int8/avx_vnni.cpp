// AVX-VNNI: processors without AVX-512, Alder Lake and later. Four products and their sum in one step, in half the width.
#include <immintrin.h>

#include <cstring>

#include "../../floats.hpp"
#include "kernels.hpp"

namespace spq::cpu::int8 {

#include "ymm.inl"

namespace {

constexpr int64_t kAhead = 1024;
constexpr int kVectors = 4;  // of a row of the panel

template <int kRows>
struct Block {
  static void run(const uint8_t* a, const int8_t* panel, int64_t steps, int32_t* acc, const Ahead&) {
    constexpr int kChains = kRows == 1 ? 2 : 1;  // an instruction waits for the one before it
    __m256i sums[kChains][kRows][kVectors];
#pragma GCC unroll 2
    for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 3
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[c][r][v] = _mm256_setzero_si256();
      }
    }
    for (int64_t step = 0; step < steps; ++step, a += kRows * kDepth) {
      for (int64_t q = 0; q < kDepth; q += 4 * kChains) {
#pragma GCC unroll 2
        for (int c = 0; c < kChains; ++c, panel += 4 * kColumns) {
          _mm_prefetch(reinterpret_cast<const char*>(panel + kAhead), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(panel + kAhead + 64), _MM_HINT_T0);
          __m256i x[kRows];
#pragma GCC unroll 3
          for (int r = 0; r < kRows; ++r) x[r] = _mm256_set1_epi32(four_of(a + r * kDepth + q + 4 * c));
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * v));
#pragma GCC unroll 3
            for (int r = 0; r < kRows; ++r) sums[c][r][v] = _mm256_dpbusd_avx_epi32(sums[c][r][v], x[r], b);
          }
        }
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
        for (int c = 1; c < kChains; ++c) sums[0][r][v] = _mm256_add_epi32(sums[0][r][v], sums[c][r][v]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + r * kColumns + 8 * v), sums[0][r][v]);
      }
    }
  }
};

}  // namespace

const Kernels& avx_vnni() {
  static const Kernels kernels{"avx_vnni", 3, block<Block, 3>, quantize, range, finish, widen, kBranch};
  return kernels;
}

}  // namespace spq::cpu::int8
