// Loops that the compiler turns into vector code for the instruction set of the file that includes this one. Everything
// has internal linkage, so that no two sets share a function.

namespace {

template <Format kFormat>
void round_row(float* x, int64_t columns, float scale) {
  constexpr float kLargest = kFormat == Format::kE4M3 ? 448.0f : 57344.0f;
  for (int64_t i = 0; i < columns; ++i) {
    const float value = x[i];
    float rounded = round_to<kFormat>(value / scale);
    // A finite value over a small scale can pass float32's range: it saturates like any other.
    rounded = rounded > kLargest ? kLargest : rounded;
    rounded = rounded < -kLargest ? -kLargest : rounded;
    const bool infinite = (bits_from_float(value) & 0x7fffffffu) == 0x7f800000u;
    x[i] = infinite ? value : rounded;
  }
}

void prepare(const Rows& rows, int64_t row, int64_t column, int64_t columns, float* x) {
  const int64_t start = row * rows.stride + column;
  if (rows.half) {
    widen(static_cast<const uint16_t*>(rows.data) + start, columns, x);
  } else {
    std::memcpy(x, static_cast<const float*>(rows.data) + start, static_cast<size_t>(columns) * sizeof(float));
  }
  if (rows.format == Format::kE4M3) round_row<Format::kE4M3>(x, columns, rows.scale);
  if (rows.format == Format::kE5M2) round_row<Format::kE5M2>(x, columns, rows.scale);
}

void split_group(const float* x, int64_t terms, uint16_t* out, int64_t term_stride) {
  if (terms == 1) {
    for (int i = 0; i < 32; ++i) out[i] = bf16_rounded(x[i]);
    return;
  }
  // 24 bits of a float32 are three times the 8 of a bfloat16: truncating leaves a rest that is exact.
  float rest[32];
  for (int i = 0; i < 32; ++i) {
    const uint16_t high = bf16_truncated(x[i]);
    const bool special = (bits_from_float(x[i]) & 0x7fffffffu) >= 0x7f800000u;
    out[i] = high;
    rest[i] = special ? 0.0f : x[i] - float_from_bf16(high);
  }
  for (int i = 0; i < 32; ++i) {
    const uint16_t middle = bf16_truncated(rest[i]);
    out[term_stride + i] = middle;
    out[2 * term_stride + i] = bf16_truncated(rest[i] - float_from_bf16(middle));
  }
}

void split(const float* x, int64_t groups, int64_t terms, uint16_t* out, int64_t group_stride, int64_t term_stride) {
  for (int64_t group = 0; group < groups; ++group) {
    split_group(x + 32 * group, terms, out + group * group_stride, term_stride);
  }
}

// acc [R][32] += A [depth][R] . B [depth][32], kVectors vectors of columns at a time.
template <typename Vector, int kRows, int kVectors>
void block_rows(const float* a, const float* b, int64_t depth, float* acc) {
  constexpr int kWidth = sizeof(Vector) / sizeof(float);
  for (int column = 0; column < kPanelColumns; column += kWidth * kVectors) {
    Vector sums[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        std::memcpy(&sums[r][v], acc + r * kPanelColumns + column + v * kWidth, sizeof(Vector));
      }
    }
    const float* right = b + column;
    const float* left = a;
    for (int64_t k = 0; k < depth; ++k, right += kPanelColumns, left += kRows) {
      Vector weights[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) std::memcpy(&weights[v], right + v * kWidth, sizeof(Vector));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] += left[r] * weights[v];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        std::memcpy(acc + r * kPanelColumns + column + v * kWidth, &sums[r][v], sizeof(Vector));
      }
    }
  }
}

template <typename Vector, int kVectors, int kMost>
void block_f32(const float* a, const float* b, int64_t depth, int64_t rows, float* acc) {
  if constexpr (kMost > 0) {
    if (rows == kMost) {
      block_rows<Vector, kMost, kVectors>(a, b, depth, acc);
    } else {
      block_f32<Vector, kVectors, kMost - 1>(a, b, depth, rows, acc);
    }
  }
}

}  // namespace
