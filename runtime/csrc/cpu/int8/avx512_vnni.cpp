// AVX-512 with VNNI: Cascade Lake, Zen 4 and later. Four products and their sum in one step, without saturation.
#include <immintrin.h>

#include <cstring>

#include "../../floats.hpp"
#include "kernels.hpp"

namespace spq::cpu::int8 {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kTileRows = 12;  // of the branch: 24 of 32 registers

void widen(const uint16_t* half, int64_t count, float* x) {
  for (int64_t i = 0; i < count; i += 16) {
    _mm512_storeu_ps(x + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i))));
  }
}

}  // namespace
#include "rows.inl"

namespace {

// Places of a panel that a few rows read in turns: a processor fetches ahead in each of several streams.
constexpr int64_t kStreams = 8;
constexpr int64_t kAhead = 1024;

template <int kRows>
struct Block {
  static void run(const uint8_t* a, const int8_t* panel, int64_t steps, int32_t* acc) {
    constexpr int kChains = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;  // an instruction waits for the one before it
    __m512i sums[kChains][kRows][2];
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) sums[c][r][0] = sums[c][r][1] = _mm512_setzero_si512();
    }
    const auto multiply = [&](int64_t step) {
      const int8_t* b = panel + step * kStepBytes;
      const uint8_t* x = a + step * kRows * kDepth;
      for (int64_t q = 0; q < kDepth; q += 4 * kChains) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c, b += 4 * kColumns) {
          if constexpr (kRows <= 4) {
            _mm_prefetch(reinterpret_cast<const char*>(b + kAhead), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(b + kAhead + 64), _MM_HINT_T0);
          }
          const __m512i left = _mm512_loadu_si512(b), right = _mm512_loadu_si512(b + 64);
#pragma GCC unroll 12
          for (int r = 0; r < kRows; ++r) {
            int four;
            std::memcpy(&four, x + r * kDepth + q + 4 * c, sizeof four);
            const __m512i broadcast = _mm512_set1_epi32(four);
            sums[c][r][0] = _mm512_dpbusd_epi32(sums[c][r][0], broadcast, left);
            sums[c][r][1] = _mm512_dpbusd_epi32(sums[c][r][1], broadcast, right);
          }
        }
      }
    };
    const int64_t stretch = kRows <= 4 ? steps / kStreams : 0;
    for (int64_t i = 0; i < stretch; ++i) {
      for (int64_t stream = 0; stream < kStreams; ++stream) multiply(stream * stretch + i);
    }
    for (int64_t step = stretch * kStreams; step < steps; ++step) multiply(step);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) {
        sums[0][r][0] = _mm512_add_epi32(sums[0][r][0], sums[c][r][0]);
        sums[0][r][1] = _mm512_add_epi32(sums[0][r][1], sums[c][r][1]);
      }
      _mm512_storeu_si512(acc + r * kColumns, sums[0][r][0]);
      _mm512_storeu_si512(acc + r * kColumns + 16, sums[0][r][1]);
    }
  }
};

}  // namespace

const Kernels& avx512_vnni() {
  static const Kernels kernels{"avx512_vnni", 12, block<Block, 12>, quantize, range, finish, widen, kBranch};
  return kernels;
}

}  // namespace spq::cpu::int8
