// What the sets with registers of 32 bytes have alike; included as rows.inl is.

namespace {

constexpr int kVectorBytes = 32;
constexpr int kTileRows = 2;  // of the branch: 8 of 16 registers

void widen(const uint16_t* half, int64_t count, float* x) {
  for (int64_t i = 0; i < count; i += 8) {
    _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
  }
}

}  // namespace
#include "rows.inl"
