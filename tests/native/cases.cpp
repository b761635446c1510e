#include "cases.hpp"

#include <algorithm>
#include <cmath>

#include "reference.hpp"

namespace fuzz {
namespace {

bool chance(Random& random, int percent) { return between(random, 1, 100) <= percent; }

// Whether it is time for a number that is not finite: now and then, since one of them hides all others in a product.
bool rarely(Random& random, const Case& c) {
  return c.data == Data::kAny && random() % static_cast<uint64_t>(3 * c.depth) == 0;
}

float activation(Random& random, const Case& c) {
  if (c.data == Data::kWhole) return static_cast<float>(random() % 17) - 8.0f;
  if (rarely(random, c)) {
    const float huge = c.a_format != Format::kNone ? 3e38f : 1e4f;  // a huge one saturates where it is rounded
    const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, -3e-38f, huge, -huge, 6e-8f};
    return odd[between(random, 0, 9)];
  }
  // In sixteenths of powers of two every second value lies on a tie of FP8 once it is divided.
  const float unit = chance(random, 50) ? static_cast<float>(between(random, -31, 31)) / 16.0f
                                        : std::normal_distribution<float>()(random);
  const float value = std::ldexp(unit, static_cast<int>(between(random, -6, 6)));
  return c.a_format != Format::kNone && c.a_scale > 1e-3f ? value * c.a_scale : value;
}

const reference::Grid& weight_grid(const Case& c) {
  return c.b_format == Format::kE4M3 ? reference::kE4M3 : reference::kE5M2;
}
double weight(uint32_t code, const Case& c) {
  return reference::decoded(code, 8, weight_grid(c), c.b_format == Format::kE5M2);
}

// The codes that a case may have.
std::vector<uint8_t> codes(const Case& c) {
  std::vector<uint8_t> found;
  for (uint32_t code = 0; code < 256; ++code) {
    const double value = weight(code, c);
    const bool whole = std::fabs(value) <= 15 && value == std::nearbyint(value);
    if (c.data == Data::kWhole ? whole : std::isfinite(value)) found.push_back(static_cast<uint8_t>(code));
  }
  return found;
}

// What the operator multiplies, from its definition.
double rounded(float value, const Case& c) {
  if (c.a_format == Format::kNone || std::isinf(value)) return value;
  const auto& grid = c.a_format == Format::kE4M3 ? reference::kE4M3 : reference::kE5M2;
  const float quotient = value / c.a_scale;
  return std::isinf(quotient) ? std::copysign(grid.largest, quotient) : reference::nearest(quotient, grid);
}

}  // namespace

std::string Case::text() const {
  const char* formats[] = {"none", "e4m3", "e5m2"};
  const char* kinds[] = {"whole", "finite", "any"};
  return "M=" + std::to_string(rows) + " K=" + std::to_string(depth) + " N=" + std::to_string(columns) +
         " stride=" + std::to_string(stride) + (half ? " float16" : " float32") + (fast ? " fast" : " exact") +
         (per_channel ? " per-channel" : " per-tensor") + " a=" + formats[static_cast<int>(a_format)] +
         " b=" + formats[static_cast<int>(b_format)] + " data=" + kinds[static_cast<int>(data)] +
         " a_scale=" + std::to_string(a_scale) + " threads=" + std::to_string(threads);
}

int64_t between(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// Mostly small sizes; now and then one that passes a limit of the blocking: 512 rows, 16 MiB of packed A, 256 or 512
// rows of B in a chunk, 16 panels for each that is added to a group.
Case make_case(Random& random) {
  Case c{};
  c.rows = chance(random, 50) ? between(random, 0, 9) : between(random, 0, 70);
  c.depth = chance(random, 70) ? between(random, 1, 80) : between(random, 1, 700);
  c.columns = chance(random, 70) ? between(random, 1, 70) : between(random, 1, 200);
  c.data = static_cast<Data>(between(random, 0, 2));
  const int64_t kind = between(random, 0, 299);
  if (kind < 12) c.rows = between(random, 500, 1100), c.depth = between(random, 1, 9), c.columns = 33;
  if (kind >= 12 && kind < 30) c.rows %= 20, c.columns = between(random, 1000, 3000), c.depth = between(random, 1, 9);
  if (kind >= 30 && kind < 40) c.depth = between(random, 1000, 2000), c.columns = between(random, 1, 33);
  if (kind == 40) {
    c.rows = between(random, 33, 36), c.depth = between(random, 65537, 65600), c.columns = 1;
    c.data = Data::kWhole;
  }
  c.stride = c.depth + (chance(random, 30) ? between(random, 1, 40) : 0);
  c.half = chance(random, 40);
  c.per_channel = chance(random, 60);
  c.fast = chance(random, 50);
  c.a_format = static_cast<Format>(between(random, 0, 2));
  c.b_format = static_cast<Format>(between(random, 1, 2));
  // Whole numbers stay whole over a power of two; elsewhere the division rounds.
  c.a_scale = c.data == Data::kWhole ? 1.0f : std::ldexp(static_cast<float>(between(random, 1, 999)) / 1000.0f, 3);
  if (c.data == Data::kAny && chance(random, 20)) c.a_scale = 1e-30f;
  c.threads = static_cast<int>(between(random, 2, 4));
  return c;
}

Operands make_operands(const Case& c, Random& random) {
  const int64_t pairs = (c.depth + 1) / 2, panels = (c.columns + 31) / 32;
  const int64_t a_size = c.rows == 0 ? 0 : (c.rows - 1) * c.stride + c.depth;
  Operands o{{c.half ? 0 : a_size, between(random, 0, 17)}, {c.half ? a_size : 0, between(random, 0, 17)},
             {panels * pairs * spq::kPanelBytes, between(random, 0, 65)},
             {c.per_channel ? c.columns : 1, between(random, 0, 17)}, {}, {}};
  o.x.resize(static_cast<size_t>(c.rows * c.depth));
  o.w.resize(static_cast<size_t>(c.columns * c.depth));
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t k = 0; k < c.depth; ++k) {
      float value = activation(random, c);
      if (c.half) {
        // Tested on its own in numbers.cpp.
        o.a_half[i * c.stride + k] = spq::half_from_float(value);
        value = spq::float_from_half(o.a_half[i * c.stride + k]);
      } else {
        o.a[i * c.stride + k] = value;
      }
      o.x[static_cast<size_t>(i * c.depth + k)] = rounded(value, c);
    }
  }
  std::memset(o.b.data(), 0, static_cast<size_t>(panels * pairs * spq::kPanelBytes));
  const std::vector<uint8_t> usual = codes(c);
  const uint8_t infinities[] = {0x7c, 0xfc, 0x7f, 0xff};  // of E5M2; large numbers of E4M3; and NaN of both
  for (int64_t n = 0; n < c.columns; ++n) {
    for (int64_t k = 0; k < c.depth; ++k) {
      const uint8_t drawn = rarely(random, c) ? infinities[random() % 4] : usual[random() % usual.size()];
      const int64_t l = n % 16 / 4, h = n % 32 / 16, j = n % 4, p = k % 2;
      o.b[(n / 32 * pairs + k / 2) * spq::kPanelBytes + 16 * l + 8 * h + 2 * j + p] = drawn;
      o.w[static_cast<size_t>(n * c.depth + k)] = weight(drawn, c);
    }
  }
  for (int64_t n = 0; n < (c.per_channel ? c.columns : 1); ++n) {
    o.b_scale[n] = c.data == Data::kWhole ? std::ldexp(1.0f, static_cast<int>(between(random, -9, 1)))
                   : chance(random, 3)    ? 0.0f
                                          : static_cast<float>(between(random, 1, 999)) / 7000.0f;
  }
  return o;
}

}  // namespace fuzz
