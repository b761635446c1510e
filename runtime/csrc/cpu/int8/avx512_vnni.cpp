// AVX-512 with VNNI: Cascade Lake, Zen 4 and later. Four products and their sum in one step, without saturation.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "../../floats.hpp"
#include "../working.hpp"
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

constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 512;      // bytes that a stream is fetched ahead
constexpr int64_t kMostAbreast = 8;  // panels: their sums take half of the registers

template <int kRows>
struct Block {
  static void run(const uint8_t* a, const int8_t* panel, int64_t steps, int32_t* acc, const Ahead& ahead) {
    const int64_t each = round_up(ceil_div(ahead.bytes, steps), kLine);  // in a step
    const char *next = reinterpret_cast<const char*>(ahead.start), *end = next + ahead.bytes;
    __m512i sums[kRows][2];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    for (int64_t step = 0; step < steps; ++step, a += kRows * kDepth) {
      for (const char* stop = next + each < end ? next + each : end; next < stop; next += kLine) {
        _mm_prefetch(next, _MM_HINT_T1);
      }
      for (int64_t q = 0; q < kDepth; q += 4, panel += 4 * kColumns) {
        const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + kLine);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          const __m512i x = _mm512_set1_epi32(four_of(a + r * kDepth + q));
          sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x, left);
          sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x, right);
        }
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_si512(acc + r * kColumns, sums[r][0]);
      _mm512_storeu_si512(acc + r * kColumns + 16, sums[r][1]);
    }
  }
};

// A few rows by panels abreast. What takes time is to read the weights: a processor fetches ahead within a page of memory,
// so that of one stream it waits at every page, and of several it has others to read meanwhile.
template <int kRows, int kPanels>
void streams(const uint8_t* a, const int8_t* panel, int64_t steps, int32_t* acc) {
  const int64_t bytes = steps * kStepBytes;
  __m512i sums[kPanels][kRows][2];
#pragma GCC unroll 8
  for (int n = 0; n < kPanels; ++n) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sums[n][r][0] = sums[n][r][1] = _mm512_setzero_si512();
  }
  for (int64_t step = 0; step < steps; ++step, a += kRows * kDepth, panel += kStepBytes) {
    for (int64_t q = 0; q < kDepth; q += 4) {
      __m512i x[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[r] = _mm512_set1_epi32(four_of(a + r * kDepth + q));
#pragma GCC unroll 8
      for (int n = 0; n < kPanels; ++n) {
        const int8_t* b = panel + n * bytes + q * kColumns;
        _mm_prefetch(reinterpret_cast<const char*>(b + kAhead), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(b + kAhead + kLine), _MM_HINT_T0);
        const __m512i left = _mm512_loadu_si512(b), right = _mm512_loadu_si512(b + kLine);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          sums[n][r][0] = _mm512_dpbusd_epi32(sums[n][r][0], x[r], left);
          sums[n][r][1] = _mm512_dpbusd_epi32(sums[n][r][1], x[r], right);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < kPanels; ++n) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r, acc += kColumns) {
      _mm512_storeu_si512(acc, sums[n][r][0]);
      _mm512_storeu_si512(acc + 16, sums[n][r][1]);
    }
  }
}

int64_t abreast(int64_t rows) { return std::max<int64_t>(kMostAbreast / rows, 1); }

template <int kRows, int kPanels = kMostAbreast / kRows>
void panels(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t count, int32_t* acc) {
  if constexpr (kPanels > 0) {
    count == kPanels ? streams<kRows, kPanels>(a, panel, steps, acc)
                     : panels<kRows, kPanels - 1>(a, panel, steps, count, acc);
  }
}

void few(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int64_t count, int32_t* acc) {
  switch (rows) {
    case 1: return panels<1>(a, panel, steps, count, acc);
    case 2: return panels<2>(a, panel, steps, count, acc);
    case 3: return panels<3>(a, panel, steps, count, acc);
    default: return panels<4>(a, panel, steps, count, acc);
  }
}

}  // namespace

const Kernels& avx512_vnni() {
  static const Kernels kernels = [] {
    Kernels all{"avx512_vnni", 12, block<Block, 12>, quantize, range, finish, widen, kBranch};
    all.abreast = abreast;
    all.few = few;
    return all;
  }();
  return kernels;
}

}  // namespace spq::cpu::int8
