// Loops over numbers that the compiler turns into vector code for the set of the file that includes this one, which says
// how many bytes a register of it has (kVectorBytes) and how many rows of the branch fit (kTileRows). Vectors that are wider
// than registers would be computed a number at a time.

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

using Vector = float __attribute__((vector_size(kVectorBytes)));
constexpr int64_t kWidth = kVectorBytes / 4;
constexpr int kParts = kColumns / kWidth;  // of a row of a panel

Vector load(const float* x) {
  Vector value;
  std::memcpy(&value, x, sizeof value);
  return value;
}

void store(Vector value, float* x) { std::memcpy(x, &value, sizeof value); }

Vector smaller(Vector one, Vector other) { return one < other ? one : other; }
Vector larger(Vector one, Vector other) { return one > other ? one : other; }

template <bool kLimited>
void range_within(const float* x, const float* limit, int64_t count, float* low, float* high) {
  constexpr int kChains = 4;  // an instruction waits for the one before it
  Vector lows[kChains] = {}, highs[kChains] = {};
  int64_t i = 0;
  for (; i + kChains * kWidth <= count; i += kChains * kWidth) {
#pragma GCC unroll 4
    for (int v = 0; v < kChains; ++v) {
      const Vector value = load(x + i + v * kWidth);
      if constexpr (kLimited) {
        const Vector most = load(limit + i + v * kWidth);
        lows[v] = smaller(larger(value, -most), lows[v]);
        highs[v] = larger(smaller(value, most), highs[v]);
      } else {
        lows[v] = smaller(value, lows[v]);
        highs[v] = larger(value, highs[v]);
      }
    }
  }
  for (; i < count; ++i) {
    const float value = kLimited && limit[i] == 0.0f ? 0.0f : x[i];
    lows[0][0] = value < lows[0][0] ? value : lows[0][0];
    highs[0][0] = value > highs[0][0] ? value : highs[0][0];
  }
#pragma GCC unroll 4
  for (int v = 1; v < kChains; ++v) {
    lows[0] = smaller(lows[v], lows[0]);
    highs[0] = larger(highs[v], highs[0]);
  }
  float least[kWidth], most[kWidth];
  std::memcpy(least, &lows[0], sizeof least);
  std::memcpy(most, &highs[0], sizeof most);
#pragma GCC unroll 4
  for (int64_t half = kWidth / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) {
      least[j] = least[j + half] < least[j] ? least[j + half] : least[j];
      most[j] = most[j + half] > most[j] ? most[j + half] : most[j];
    }
  }
  *low = least[0];
  *high = most[0];
}

void range(const float* x, const float* limit, int64_t count, float* low, float* high) {
  limit == nullptr ? range_within<false>(x, limit, count, low, high) : range_within<true>(x, limit, count, low, high);
}

using Integers = int32_t __attribute__((vector_size(kVectorBytes)));

Vector load(const uint16_t* half) {
  float x[kWidth];
  widen(half, kWidth, x);
  return load(x);
}

// Rows of one panel's results, whose branch stays in registers; its weights are in float32 or, for a few rows, in float16.
template <int kRows, typename Weight>
struct Tile {
  static void run(const Columns& of, const Rows& rows, const Weight* w, float* y, int64_t stride) {
    constexpr int kChains = kRows * kParts < 8 ? 8 / (kRows * kParts) : 1;  // an instruction waits for the one before it
    Vector sums[kChains][kRows][kParts] = {};
    const float* x = rows.outliers + rows.first;
    int64_t c = 0;
    for (; c + kChains <= of.channels; c += kChains) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain, x += rows.block, w += kColumns) add(sums[chain], x, w);
    }
    for (; c < of.channels; ++c, x += rows.block, w += kColumns) add(sums[0], x, w);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kParts; ++v) {
#pragma GCC unroll 4
        for (int chain = 1; chain < kChains; ++chain) sums[0][r][v] += sums[chain][r][v];
        const int64_t j = v * kWidth;
        Integers acc, column;
        std::memcpy(&acc, rows.acc + r * kColumns + j, sizeof acc);
        std::memcpy(&column, of.sums + j, sizeof column);
        const Vector whole = __builtin_convertvector(acc - rows.zero[r] * column, Vector);
        store(whole * rows.scale[r] * load(of.b_scale + j) + load(of.bias + j) + sums[0][r][v], y + r * stride + j);
      }
    }
  }
  static void add(Vector (&sums)[kRows][kParts], const float* x, const Weight* w) {
    Vector weights[kParts];
#pragma GCC unroll 8
    for (int v = 0; v < kParts; ++v) weights[v] = load(w + v * kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kParts; ++v) sums[r][v] += x[r] * weights[v];
    }
  }
};

template <int kRows, typename Weight>
void tile(const Columns& of, const Rows& rows, const Weight* w, float* y, int64_t stride) {
  if constexpr (kRows > 0) {
    rows.count == kRows ? Tile<kRows, Weight>::run(of, rows, w, y, stride) : tile<kRows - 1>(of, rows, w, y, stride);
  }
}

void finish(const Columns& of, const Rows& rows, float* y, int64_t stride) {
  if (of.half != nullptr) return tile<kFewRows>(of, rows, of.half, y, stride);
  for (int64_t r = 0; r < rows.count; r += kTileRows) {
    const int64_t count = rows.count - r < kTileRows ? rows.count - r : kTileRows;
    const Rows part{count, rows.acc + r * kColumns, rows.zero + r, rows.scale + r, rows.outliers, r, rows.block};
    tile<kTileRows>(of, part, of.branch, y + r * stride, stride);
  }
}

// [channel][32] of a panel, and [channel][row] of a block.
const Branch kBranch{
    [](int64_t channels) { return channels * kColumns; },
    [](const uint16_t* half, int64_t channels, float* w) { widen(half, channels * kColumns, w); },
    [](int64_t channels) { return channels; },
    [](const float* x, const int64_t* channel, int64_t channels, int64_t row, int64_t block, float* outliers) {
      for (int64_t c = 0; c < channels; ++c) outliers[c * block + row] = x[channel[c]];
    }};

// Hands a block to the code that was made for its number of rows.
template <template <int> class Block, int kMost>
void block(const uint8_t* a, const int8_t* panel, int64_t steps, int64_t rows, int32_t* acc, const Ahead& ahead) {
  if constexpr (kMost > 0) {
    rows == kMost ? Block<kMost>::run(a, panel, steps, acc, ahead)
                  : block<Block, kMost - 1>(a, panel, steps, rows, acc, ahead);
  }
}

}  // namespace
