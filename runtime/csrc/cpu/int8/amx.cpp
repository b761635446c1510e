// AMX: tiles of 16 rows of 64 bytes, Sapphire Rapids and later. A panel is stored as the tiles want it.
#include <immintrin.h>

#include <cstring>

#include "../../floats.hpp"
#include "../tiles.hpp"
#include "kernels.hpp"

namespace spq::cpu::int8 {
namespace {

constexpr int64_t kBlockRows = 32;  // two tiles
constexpr int64_t kLowerRows = 6;   // multiplied as fast without tiles
constexpr int64_t kPanelStride = 4 * kColumns, kAccStride = 4 * kColumns;

constexpr int64_t kLine = 64;

void block(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int32_t* acc, const Ahead& ahead) {
  const int64_t half = rows / 2 * kDepth;
  const int64_t each = (ahead.bytes / steps + kLine - 1) / kLine * kLine;  // in a step
  const char *next = reinterpret_cast<const char*>(ahead.start), *end = next + ahead.bytes;
  __asm__ volatile("" : : : "memory");  // what the tiles read has been written
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, a += 2 * half, panel += kStepBytes) {
    for (const char* stop = next + each < end ? next + each : end; next < stop; next += kLine) {
      _mm_prefetch(next, _MM_HINT_T1);
    }
    _tile_loadd(6, panel, kPanelStride);
    _tile_loadd(4, a, kDepth);
    _tile_loadd(7, panel + 64, kPanelStride);
    _tile_loadd(5, a + half, kDepth);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  int32_t* below = acc + rows / 2 * kColumns;
  _tile_stored(0, acc, kAccStride);
  _tile_stored(1, acc + 16, kAccStride);
  _tile_stored(2, below, kAccStride);
  _tile_stored(3, below + 16, kAccStride);
}

// The branch is multiplied in bfloat16: a weight in float16 is the sum of two of those, high and low, and an outlier of
// three, high, middle and low. Of their six products all but that of the lowest count. Tiles add pairs, in 32 bits each:
// three pairs are a channel, and sixteen pairs a step.
constexpr int64_t kPairs = 3, kStepPairs = 16;
constexpr uint32_t kTop = 0xffff0000u;  // what of a float32 is a bfloat16

int64_t branch_steps(int64_t channels) { return (kPairs * channels + kStepPairs - 1) / kStepPairs; }

// [pair][32 columns], whole steps of them.
void branch_weight(const uint16_t* half, int64_t channels, float* w) {
  const __m512i top = _mm512_set1_epi32(static_cast<int>(kTop));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j < kColumns; j += 16, half += 16, w += 16) {
      const __m512 x = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
      const __m512i high = _mm512_and_si512(_mm512_castps_si512(x), top);
      const __m512i low = _mm512_castps_si512(_mm512_sub_ps(x, _mm512_castsi512_ps(high)));
      const __m512i first = _mm512_srli_epi32(high, 16);
      _mm512_storeu_si512(w, _mm512_or_si512(first, high));
      _mm512_storeu_si512(w + kColumns, _mm512_or_si512(first, low));
      _mm512_storeu_si512(w + 2 * kColumns, _mm512_srli_epi32(low, 16));
    }
    w += (kPairs - 1) * kColumns;
  }
  const int64_t empty = branch_steps(channels) * kStepPairs - kPairs * channels;
  std::memset(w, 0, static_cast<size_t>(empty * kColumns) * 4);
}

// [step][row][pair] of a block, for one row.
void branch_row(const float* x, const int64_t* channel, int64_t channels, int64_t row, int64_t block, float* outliers) {
  const auto put = [&](int64_t pair, uint32_t bits) {
    outliers[(pair / kStepPairs * block + row) * kStepPairs + pair % kStepPairs] = float_from_bits(bits);
  };
  for (int64_t c = 0; c < channels; ++c) {
    const float value = x[channel[c]];
    const uint32_t high = bits_from_float(value) & kTop;
    const float rest = value - float_from_bits(high);
    const uint32_t middle = bits_from_float(rest) & kTop, low = bits_from_float(rest - float_from_bits(middle));
    put(kPairs * c, high >> 16 | middle);
    put(kPairs * c + 1, low >> 16 | high);
    put(kPairs * c + 2, middle >> 16);
  }
  for (int64_t pair = kPairs * channels; pair < branch_steps(channels) * kStepPairs; ++pair) put(pair, 0);
}

void multiply_branch(const Columns& of, const Rows& rows, float* sums) {
  const float *x = rows.outliers, *w = of.branch;
  const int64_t half = rows.block / 2;
  __asm__ volatile("" : : : "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = branch_steps(of.channels); step > 0; --step) {
    _tile_loadd(6, w, kPanelStride);
    _tile_loadd(4, x, kDepth);
    _tile_loadd(7, w + 16, kPanelStride);
    _tile_loadd(5, x + half * kStepPairs, kDepth);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    x += rows.block * kStepPairs;
    w += kStepPairs * kColumns;
  }
  float* below = sums + half * kColumns;
  _tile_stored(0, sums, kAccStride);
  _tile_stored(1, sums + 16, kAccStride);
  _tile_stored(2, below, kAccStride);
  _tile_stored(3, below + 16, kAccStride);
}

template <bool kBranched>
void finish_rows(const Columns& of, const Rows& rows, const float* branch, float* y, int64_t stride) {
  __m512i sums[2];
  __m512 b_scale[2], bias[2];
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    sums[v] = _mm512_loadu_si512(of.sums + 16 * v);
    b_scale[v] = _mm512_loadu_ps(of.b_scale + 16 * v);
    bias[v] = _mm512_loadu_ps(of.bias + 16 * v);
  }
  for (int64_t r = 0; r < rows.count; ++r, y += stride) {
    const __m512i zero = _mm512_set1_epi32(rows.zero[r]);
    const __m512 scale = _mm512_set1_ps(rows.scale[r]);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m512i acc = _mm512_loadu_si512(rows.acc + r * kColumns + 16 * v);
      const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, _mm512_mullo_epi32(zero, sums[v])));
      __m512 result = _mm512_fmadd_ps(_mm512_mul_ps(whole, scale), b_scale[v], bias[v]);
      if constexpr (kBranched) result = _mm512_add_ps(result, _mm512_loadu_ps(branch + r * kColumns + 16 * v));
      _mm512_storeu_ps(y + 16 * v, result);
    }
  }
}

void finish(const Columns& of, const Rows& rows, float* y, int64_t stride) {
  if (of.channels == 0) return finish_rows<false>(of, rows, nullptr, y, stride);
  alignas(64) float branch[kBlockRows * kColumns];
  multiply_branch(of, rows, branch);
  finish_rows<true>(of, rows, branch, y, stride);
}

}  // namespace

const Kernels& amx() {
  static const Kernels kernels = [] {
    Kernels all = avx512_vnni();
    all.name = "amx";
    all.block_rows = kBlockRows;
    all.even = true;
    all.block = block;
    all.finish = finish;
    all.branch = {[](int64_t channels) { return branch_steps(channels) * kStepPairs * kColumns; }, branch_weight,
                  [](int64_t channels) { return branch_steps(channels) * kStepPairs; }, branch_row};
    all.begin = [](int64_t rows) { begin_tiles(rows / 2); };
    all.end = end_tiles;
    all.lower = &avx512_vnni();
    all.lower_rows = kLowerRows;
    return all;
  }();
  return kernels;
}

}  // namespace spq::cpu::int8
