// AVX-512 with VBMI and BF16: Zen 4, Sapphire Rapids and later.
#include <immintrin.h>

#include <cstring>

#include "isa.hpp"

namespace spq::cpu {
#include "x86_table.inl"
#include "portable.inl"

namespace {

template <int kRows>
void dot_rows(const uint16_t* a, const uint16_t* b, int64_t pairs, float* acc) {
  __m512 sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] = _mm512_loadu_ps(acc + r * kPanelColumns);
    sums[r][1] = _mm512_loadu_ps(acc + r * kPanelColumns + 16);
  }
  for (int64_t k = 0; k < pairs; ++k, a += 2 * kRows, b += 2 * kPanelColumns) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(b);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(b + 32);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int both;
      std::memcpy(&both, a + 2 * r, sizeof both);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], left, x);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], right, x);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(acc + r * kPanelColumns, sums[r][0]);
    _mm512_storeu_ps(acc + r * kPanelColumns + 16, sums[r][1]);
  }
}

template <int kMost>
void block_bf16(const uint16_t* a, const uint16_t* b, int64_t pairs, int64_t rows, float* acc) {
  if constexpr (kMost > 0) {
    rows == kMost ? dot_rows<kMost>(a, b, pairs, acc) : block_bf16<kMost - 1>(a, b, pairs, rows, acc);
  }
}

}  // namespace

const Isa& avx512_bf16() {
  using Vector = float __attribute__((vector_size(64)));
  static const Isa isa{
      "avx512_bf16", direct, 4, decode_f32, decode_bf16, block_f32<Vector, 2, 12>, 12, block_bf16<12>, 12,
      nullptr, nullptr, nullptr, nullptr, prepare, split,
  };
  return isa;
}

}  // namespace spq::cpu
