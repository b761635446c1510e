// FP8 numbers and the panel layout in which a weight is stored. Nothing here depends on an instruction set.
//
// A weight of codes C [K, N], K padded to even and N to a multiple of 32 with +0, is stored as [N/32, K/2, 64]: byte
// 16*l + 8*h + 2*j + p of panel n and pair k is C[2k + p, 32n + 16h + 4l + j]. Interleaving the bytes of one such row
// with a second byte each, within 128-bit lanes, gives pairs of bfloat16 in the order of the columns: what the dot
// product instructions of AVX-512 and AMX read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "floats.hpp"

namespace spq {

enum class Format : int { kNone = 0, kE4M3 = 1, kE5M2 = 2 };

constexpr int64_t kPanelColumns = 32;
constexpr int64_t kPanelBytes = 64;  // of one pair of rows

// Byte within a row of a panel for column 0..31 and row of the pair 0..1.
constexpr int64_t panel_byte(int64_t column, int64_t row) {
  return 16 * ((column % 16) / 4) + 8 * (column / 16) + 2 * (column % 4) + row;
}

// Value of an FP8 code. E4M3 has no infinity (0x7f is NaN); E5M2 is the upper byte of a float16.
inline float decode(uint8_t code, Format format) {
  const int mantissa_bits = format == Format::kE4M3 ? 3 : 2;
  const int bias = format == Format::kE4M3 ? 7 : 15;
  const uint32_t sign = static_cast<uint32_t>(code >> 7) << 31;
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t exponent = magnitude >> mantissa_bits;
  const uint32_t mantissa = magnitude & ((1u << mantissa_bits) - 1);
  if (format == Format::kE4M3 ? magnitude == 0x7f : exponent == 31) {
    const bool infinite = format == Format::kE5M2 && mantissa == 0;
    return float_from_bits(sign | (infinite ? 0x7f800000u : 0x7fc00000u));
  }
  if (exponent == 0) {
    const float step = float_from_bits(static_cast<uint32_t>(127 + 1 - bias - mantissa_bits) << 23);
    const float value = static_cast<float>(mantissa) * step;
    return sign ? -value : value;
  }
  return float_from_bits(sign | ((exponent + 127u - static_cast<uint32_t>(bias)) << 23) |
                         (mantissa << (23 - mantissa_bits)));
}

// The float32 of an FP8 number nearest to a value: ties to even, finite values saturate, NaN and infinity stay.
// Without branches, so that loops over it become vector code.
template <Format kFormat>
inline float round_to(float value) {
  static_assert(kFormat != Format::kNone);
  constexpr int kMantissa = kFormat == Format::kE4M3 ? 3 : 2;
  constexpr float kLargest = kFormat == Format::kE4M3 ? 448.0f : 57344.0f;
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(127 - (kFormat == Format::kE4M3 ? 6 : 14)) << 23;
  // Adding and subtracting 2^23 steps of the subnormals rounds to whole steps.
  constexpr float kMagic = kFormat == Format::kE4M3 ? 16384.0f : 128.0f;
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  constexpr uint32_t kDropped = (1u << (23 - kMantissa)) - 1;
  const uint32_t even = (magnitude >> (23 - kMantissa)) & 1u;
  const float normal = float_from_bits((magnitude + (kDropped >> 1) + even) & ~kDropped);
  const float subnormal = (float_from_bits(magnitude) + kMagic) - kMagic;
  float rounded = magnitude < kSmallestNormal ? subnormal : normal;
  rounded = rounded > kLargest ? kLargest : rounded;
  const uint32_t result = magnitude >= 0x7f800000u ? magnitude : bits_from_float(rounded);
  return float_from_bits(result | (bits & 0x80000000u));
}

}  // namespace spq
