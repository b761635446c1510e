// Decoding FP8 by looking up both bytes of a bfloat16 in tables of 128, with AVX-512 VBMI: seven instructions for 64
// weights. The bfloat16 is exact for either format.

namespace {

struct alignas(64) Tables {
  uint8_t high[128];  // upper byte of the bfloat16 of a magnitude
  uint8_t low[128];
  explicit Tables(Format format) {
    for (int code = 0; code < 128; ++code) {
      const uint32_t bits = bits_from_float(decode(static_cast<uint8_t>(code), format));
      high[code] = static_cast<uint8_t>(bits >> 24);
      low[code] = static_cast<uint8_t>(bits >> 16);
    }
  }
};

inline const Tables& tables(Format format) {
  static const Tables e4m3(Format::kE4M3), e5m2(Format::kE5M2);
  return format == Format::kE4M3 ? e4m3 : e5m2;
}

struct Decoder {
  __m512i high0, high1, low0, low1;
  explicit Decoder(Format format) {
    const Tables& t = tables(format);
    high0 = _mm512_load_si512(t.high);
    high1 = _mm512_load_si512(t.high + 64);
    low0 = _mm512_load_si512(t.low);
    low1 = _mm512_load_si512(t.low + 64);
  }
  // One row of a panel: pairs of bfloat16 of columns 0..15 and 16..31.
  inline void operator()(const uint8_t* row, __m512i* left, __m512i* right) const {
    const __m512i codes = _mm512_loadu_si512(row);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, codes, high1);
    const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
    // magnitude | (codes & 0x80)
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    *left = _mm512_unpacklo_epi8(low, high);
    *right = _mm512_unpackhi_epi8(low, high);
  }
};

inline __m512 first(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline __m512 second(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

void decode_f32(const uint8_t* panel, int64_t pairs, Format format, float* b) {
  const Decoder decoder(format);
  for (int64_t k = 0; k < pairs; ++k, panel += kPanelBytes, b += 2 * kPanelColumns) {
    __m512i left, right;
    decoder(panel, &left, &right);
    _mm512_storeu_ps(b, first(left));
    _mm512_storeu_ps(b + 16, first(right));
    _mm512_storeu_ps(b + 32, second(left));
    _mm512_storeu_ps(b + 48, second(right));
  }
}

constexpr int64_t kNextPiece = 256 * kPanelBytes;

inline void decode_bf16(const Decoder& decoder, const uint8_t* panel, int64_t pairs, uint16_t* b) {
  for (int64_t k = 0; k < pairs; ++k, panel += kPanelBytes, b += 2 * kPanelColumns) {
    // The same rows of the next piece: by the time it is decoded it has come.
    _mm_prefetch(reinterpret_cast<const char*>(panel + kNextPiece), _MM_HINT_T1);
    __m512i left, right;
    decoder(panel, &left, &right);
    _mm512_storeu_si512(b, left);
    _mm512_storeu_si512(b + 32, right);
  }
}

void decode_bf16(const uint8_t* panel, int64_t pairs, Format format, uint16_t* b) {
  decode_bf16(Decoder(format), panel, pairs, b);
}

// Places of a panel that are read in turns: a processor fetches ahead in each of several streams, and one alone leaves
// a third of the memory's speed unused.
constexpr int64_t kStreams = 8;
constexpr int64_t kAhead = 1024;

// Up to four rows of A in float32. Memory is the limit here, so the products are exact at no cost.
template <int kRows>
void direct_rows(const uint8_t* panel, int64_t pairs, const float* a, int64_t stride, Format format, float* acc) {
  const Decoder decoder(format);
  __m512 sums[kRows][2][2];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    sums[r][0][0] = sums[r][0][1] = sums[r][1][0] = sums[r][1][1] = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t k, int64_t ahead) {
    const uint8_t* row = panel + k * kPanelBytes;
    _mm_prefetch(reinterpret_cast<const char*>(row + ahead), _MM_HINT_T0);
    __m512i left, right;
    decoder(row, &left, &right);
    const __m512 left0 = first(left), left1 = second(left), right0 = first(right), right1 = second(right);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512 x0 = _mm512_set1_ps(a[r * stride + 2 * k]), x1 = _mm512_set1_ps(a[r * stride + 2 * k + 1]);
      sums[r][0][0] = _mm512_fmadd_ps(left0, x0, sums[r][0][0]);
      sums[r][0][1] = _mm512_fmadd_ps(left1, x1, sums[r][0][1]);
      sums[r][1][0] = _mm512_fmadd_ps(right0, x0, sums[r][1][0]);
      sums[r][1][1] = _mm512_fmadd_ps(right1, x1, sums[r][1][1]);
    }
  };
  const int64_t stretch = pairs / kStreams;
  const int64_t over = (pairs - stretch) * kPanelBytes + kAhead;
  for (int64_t k = 0; k < stretch; ++k) {
    const int64_t ahead = k + kAhead / kPanelBytes < stretch ? kAhead : over;
    for (int64_t stream = 0; stream < kStreams; ++stream) step(stream * stretch + k, ahead);
  }
  for (int64_t k = stretch * kStreams; k < pairs; ++k) step(k, kAhead);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(acc + r * kPanelColumns, _mm512_add_ps(sums[r][0][0], sums[r][0][1]));
    _mm512_storeu_ps(acc + r * kPanelColumns + 16, _mm512_add_ps(sums[r][1][0], sums[r][1][1]));
  }
}

void direct(const uint8_t* panel, int64_t pairs, const float* a, int64_t stride, int64_t rows, Format format,
            float* acc) {
  switch (rows) {
    case 1: return direct_rows<1>(panel, pairs, a, stride, format, acc);
    case 2: return direct_rows<2>(panel, pairs, a, stride, format, acc);
    case 3: return direct_rows<3>(panel, pairs, a, stride, format, acc);
    default: return direct_rows<4>(panel, pairs, a, stride, format, acc);
  }
}

void widen(const uint16_t* half, int64_t columns, float* x) {
  for (int64_t i = 0; i < columns; i += 16) {
    const __mmask16 mask = static_cast<__mmask16>(columns - i >= 16 ? 0xffff : (1u << (columns - i)) - 1);
    _mm512_mask_storeu_ps(x + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, half + i)));
  }
}

}  // namespace
