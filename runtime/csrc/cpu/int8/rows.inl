// Loops over numbers that the compiler turns into vector code for the set of the file that includes this one.

namespace {

void quantize(const float* x, int64_t count, float scale, int32_t zero, uint8_t* codes, int64_t stride) {
  const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
  for (int64_t start = 0; start < count; start += kDepth, codes += stride) {
    const int64_t there = count - start < kDepth ? count - start : kDepth;
    for (int64_t i = 0; i < there; ++i) {
      float value = x[start + i] / scale;
      value = value > low ? value : low;
      value = value < high ? value : high;
      // Adding 1.5 * 2^23 rounds half to even; the low bits are then the whole number.
      codes[i] = static_cast<uint8_t>(bits_from_float(value + 12582912.0f) + static_cast<uint32_t>(zero));
    }
    for (int64_t i = there; i < kDepth; ++i) codes[i] = 0;
  }
}

void range(const float* x, int64_t count, float* low, float* high) {
  using Vector = float __attribute__((vector_size(64)));
  constexpr int64_t kWidth = 16;
  Vector lows[2] = {}, highs[2] = {};  // an instruction waits for the one before it
  int64_t i = 0;
  for (; i + 2 * kWidth <= count; i += 2 * kWidth) {
    for (int v = 0; v < 2; ++v) {
      Vector value;
      std::memcpy(&value, x + i + v * kWidth, sizeof value);
      lows[v] = value < lows[v] ? value : lows[v];
      highs[v] = value > highs[v] ? value : highs[v];
    }
  }
  for (; i < count; ++i) {
    lows[0][0] = x[i] < lows[0][0] ? x[i] : lows[0][0];
    highs[0][0] = x[i] > highs[0][0] ? x[i] : highs[0][0];
  }
  *low = *high = 0.0f;
  for (int j = 0; j < 2 * kWidth; ++j) {
    const float least = lows[j / kWidth][j % kWidth], most = highs[j / kWidth][j % kWidth];
    *low = least < *low ? least : *low;
    *high = most > *high ? most : *high;
  }
}

void finish(const int32_t* acc, int32_t zero, float scale, const int32_t* sums, const float* b_scale,
            const float* bias, float* y) {
  for (int64_t i = 0; i < kColumns; ++i) {
    y[i] = static_cast<float>(acc[i] - zero * sums[i]) * scale * b_scale[i] + bias[i];
  }
}

void branch(const float* over, const uint16_t* w, int64_t rows, float* y) {
  float wide[kColumns];
  widen(w, wide);
  for (int64_t r = 0; r < rows; ++r, y += kColumns) {
    if (over[r] == 0.0f) continue;
    for (int64_t i = 0; i < kColumns; ++i) y[i] += over[r] * wide[i];
  }
}

// Hands a block to the code that was made for its number of rows.
template <template <int> class Rows, int kMost>
void block(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int32_t* acc) {
  if constexpr (kMost > 0) {
    rows == kMost ? Rows<kMost>::run(a, panel, steps, acc) : block<Rows, kMost - 1>(a, panel, steps, rows, acc);
  }
}

}  // namespace
