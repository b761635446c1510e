// FP8, float16 and bfloat16 from their definitions, in float64: an oracle that shares nothing with the code under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace reference {

// A sign, an exponent and a mantissa; `least` is the exponent of the smallest normal number.
struct Grid {
  int mantissa, least;
  double largest;
  bool saturates;  // finite values beyond the largest become it, else infinity
};

constexpr Grid kE4M3{3, -6, 448.0, true}, kE5M2{2, -14, 57344.0, true};
constexpr Grid kHalf{10, -14, 65504.0, false};
constexpr Grid kBf16{7, -126, 0x1.fep127, true};

// The nearest number of a grid, ties to even; NaN and infinity stay.
inline double nearest(double value, const Grid& grid) {
  if (!std::isfinite(value) || value == 0.0) return value;
  const double step = std::ldexp(1.0, std::max(std::ilogb(value), grid.least) - grid.mantissa);
  const double rounded = std::nearbyint(value / step) * step;
  if (std::fabs(rounded) <= grid.largest) return rounded;
  return std::copysign(grid.saturates ? grid.largest : std::numeric_limits<double>::infinity(), value);
}

// The number of a code of `bits` bits; where there are no infinities, one code for each sign is NaN.
inline double decoded(uint32_t code, int bits, const Grid& grid, bool infinities = true) {
  const double sign = (code >> (bits - 1)) & 1u ? -1.0 : 1.0;
  const uint32_t magnitude = code & ((1u << (bits - 1)) - 1);
  const uint32_t mantissa = magnitude & ((1u << grid.mantissa) - 1);
  const uint32_t exponent = magnitude >> grid.mantissa;
  const uint32_t top = (1u << (bits - 1 - grid.mantissa)) - 1;
  if (infinities ? exponent == top && mantissa != 0 : magnitude == (1u << (bits - 1)) - 1) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  if (infinities && exponent == top) return sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, grid.least - grid.mantissa);
  const int power = static_cast<int>(exponent) - 1 + grid.least - grid.mantissa;
  return sign * std::ldexp((1u << grid.mantissa) + mantissa, power);
}

// Equal as numbers, where two NaN count as equal and the two zeros do not.
inline bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

}  // namespace reference
