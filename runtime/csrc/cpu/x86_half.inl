// Decoding FP8 by way of float16, for machines with F16C: shifted into place, an FP8 number is a float16 that differs
// by a power of two at most, subnormals included, and vcvtph2ps needs no help with those.

namespace {

void widen(const uint16_t* half, int64_t columns, float* x) {
  int64_t i = 0;
  for (; i + 8 <= columns; i += 8) {
    _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
  }
  for (; i < columns; ++i) x[i] = float_from_half(half[i]);
}

// What the float16 that stands for a code must be multiplied by: E4M3 has a bias of 7, float16 one of 15.
inline float half_factor(Format format) { return format == Format::kE4M3 ? 256.0f : 1.0f; }

// 16 codes to the bits of 16 float16.
template <Format kFormat>
inline __m256i halves(__m128i codes) {
  const __m256i wide = _mm256_cvtepu8_epi16(codes);
  if constexpr (kFormat == Format::kE5M2) return _mm256_slli_epi16(wide, 8);
  const __m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
  const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f)),
                                       _mm256_set1_epi16(0x7e00));
  return _mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(magnitude, 7));
}

template <Format kFormat>
void decode_rows(const uint8_t* panel, int64_t pairs, float* b) {
  // Bytes of a lane: rows alternate; bring row 0 to the front: columns 4l..4l+3 and 16+4l..16+4l+3.
  const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m256 factor = _mm256_set1_ps(half_factor(kFormat));
  for (int64_t k = 0; k < pairs; ++k, panel += kPanelBytes, b += 2 * kPanelColumns) {
    for (int l = 0; l < 4; ++l) {
      const __m128i codes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + 16 * l)), apart);
      const __m256i bits = halves<kFormat>(codes);
      const __m256 row0 = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), factor);
      const __m256 row1 = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1)), factor);
      _mm_storeu_ps(b + 4 * l, _mm256_castps256_ps128(row0));
      _mm_storeu_ps(b + 16 + 4 * l, _mm256_extractf128_ps(row0, 1));
      _mm_storeu_ps(b + kPanelColumns + 4 * l, _mm256_castps256_ps128(row1));
      _mm_storeu_ps(b + kPanelColumns + 16 + 4 * l, _mm256_extractf128_ps(row1, 1));
    }
  }
}

void decode_f32(const uint8_t* panel, int64_t pairs, Format format, float* b) {
  format == Format::kE4M3 ? decode_rows<Format::kE4M3>(panel, pairs, b) : decode_rows<Format::kE5M2>(panel, pairs, b);
}

// One row of A. The eight sums of a lane hold columns and rows interleaved, and are added in pairs at the end.
template <Format kFormat>
void direct_row(const uint8_t* panel, int64_t pairs, const float* a, float* acc) {
  __m256 sums[4][2];
  for (auto& lane : sums) lane[0] = lane[1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < pairs; ++k, panel += kPanelBytes) {
    double both;
    std::memcpy(&both, a + 2 * k, sizeof both);
    const __m256 x = _mm256_castpd_ps(_mm256_set1_pd(both));
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      const __m256i bits = halves<kFormat>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + 16 * l)));
      sums[l][0] = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), x, sums[l][0]);
      sums[l][1] = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1)), x, sums[l][1]);
    }
  }
  const __m256 factor = _mm256_set1_ps(half_factor(kFormat));
  for (int l = 0; l < 4; ++l) {
    for (int h = 0; h < 2; ++h) {
      const __m256 scaled = _mm256_mul_ps(sums[l][h], factor);
      const __m128 columns = _mm_hadd_ps(_mm256_castps256_ps128(scaled), _mm256_extractf128_ps(scaled, 1));
      _mm_storeu_ps(acc + 16 * h + 4 * l, columns);
    }
  }
}

void direct(const uint8_t* panel, int64_t pairs, const float* a, int64_t stride, int64_t rows, Format format,
            float* acc) {
  for (int64_t row = 0; row < rows; ++row) {
    format == Format::kE4M3 ? direct_row<Format::kE4M3>(panel, pairs, a + row * stride, acc + row * kPanelColumns)
                            : direct_row<Format::kE5M2>(panel, pairs, a + row * stride, acc + row * kPanelColumns);
  }
}

}  // namespace
