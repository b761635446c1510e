// AVX2: both operands are widened to 16 bits, since vpmaddubsw saturates where two products pass 16.
#include <immintrin.h>

#include <cstring>

#include "../../floats.hpp"
#include "kernels.hpp"

namespace spq::cpu::int8 {

#include "ymm.inl"

namespace {

constexpr int64_t kAhead = 512;  // bytes that a stream is fetched ahead

template <int kRows>
struct Block {
  static void run(const uint8_t* a, const int8_t* panel, int64_t steps, int32_t* acc, const Ahead&) {
    for (int64_t column = 0; column < kColumns; column += 16) half(a, panel + 4 * column, steps, acc + column);
  }
  static void half(const uint8_t* a, const int8_t* panel, int64_t steps, int32_t* acc) {
    __m256i sums[kRows][2];
    for (auto& row : sums) row[0] = row[1] = _mm256_setzero_si256();
    const __m256i low = _mm256_set1_epi32(0x00ff00ff);
    for (int64_t step = 0; step < steps; ++step, a += kRows * kDepth) {
      for (int64_t q = 0; q < kDepth; q += 4, panel += 4 * kColumns) {
        __m256i even[2], odd[2];
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * v));
          even[v] = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8);
          odd[v] = _mm256_srai_epi16(b, 8);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const __m256i x = _mm256_set1_epi32(four_of(a + r * kDepth + q));
          const __m256i x_even = _mm256_and_si256(x, low), x_odd = _mm256_srli_epi16(x, 8);
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            const __m256i pair = _mm256_add_epi32(_mm256_madd_epi16(x_even, even[v]), _mm256_madd_epi16(x_odd, odd[v]));
            sums[r][v] = _mm256_add_epi32(sums[r][v], pair);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + r * kColumns), sums[r][0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + r * kColumns + 8), sums[r][1]);
    }
  }
};

// One row by panels abreast, which are so many streams of memory: see avx512_vnni.cpp.
template <int kPanels>
void streams(const uint8_t* a, const int8_t* panel, int64_t steps, int32_t* acc) {
  const int64_t bytes = steps * kStepBytes;
  const __m256i low = _mm256_set1_epi32(0x00ff00ff);
  __m256i sums[kPanels][4];
  for (auto& one : sums) {
    for (auto& sum : one) sum = _mm256_setzero_si256();
  }
  for (const int8_t* end = panel + bytes; panel < end; a += 4, panel += 4 * kColumns) {
    const __m256i x = _mm256_set1_epi32(four_of(a));
    const __m256i x_even = _mm256_and_si256(x, low), x_odd = _mm256_srli_epi16(x, 8);
#pragma GCC unroll 2
    for (int n = 0; n < kPanels; ++n) {
      const int8_t* b = panel + n * bytes;
      _mm_prefetch(reinterpret_cast<const char*>(b + kAhead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(b + kAhead + 64), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 32 * v));
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), odd = _mm256_srai_epi16(w, 8);
        const __m256i pair = _mm256_add_epi32(_mm256_madd_epi16(x_even, even), _mm256_madd_epi16(x_odd, odd));
        sums[n][v] = _mm256_add_epi32(sums[n][v], pair);
      }
    }
  }
#pragma GCC unroll 2
  for (int n = 0; n < kPanels; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v, acc += 8) _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc), sums[n][v]);
  }
}

int64_t abreast(int64_t rows) { return rows == 1 ? 2 : 1; }

void few(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t, int64_t panels, int32_t* acc) {
  panels == 2 ? streams<2>(a, panel, steps, acc) : streams<1>(a, panel, steps, acc);
}

}  // namespace

const Kernels& avx2() {
  static const Kernels kernels = [] {
    Kernels all{"avx2", 4, block<Block, 4>, quantize, range, finish, widen, kBranch};
    all.abreast = abreast;
    all.few = few;
    return all;
  }();
  return kernels;
}

}  // namespace spq::cpu::int8
