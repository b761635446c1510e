// The bits of float32, float16 and bfloat16. Nothing here depends on an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace spq {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x400u) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
}

// Rounds to nearest even; beyond float16's range lies infinity.
inline uint16_t half_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x38800000u) {                                              // below 2^-14: whole steps of 2^-24
    const float steps = float_from_bits(magnitude) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>((steps + 8388608.0f) - 8388608.0f));
  }
  const uint32_t even = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + even) >> 13));
}

inline uint16_t bf16_truncated(float value) {
  const uint32_t bits = bits_from_float(value);
  // A NaN whose payload lies in the dropped half must not turn into infinity.
  return static_cast<uint16_t>((bits >> 16) | ((bits & 0x7fffffffu) > 0x7f800000u ? 0x40u : 0u));
}

// Nearest even, and the largest finite bfloat16 for finite values beyond it.
inline uint16_t bf16_rounded(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t rounded = (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16;
  rounded = rounded > 0x7f7fu ? 0x7f7fu : rounded;
  const uint32_t special = (magnitude >> 16) | (magnitude > 0x7f800000u ? 0x40u : 0u);
  return static_cast<uint16_t>((magnitude >= 0x7f800000u ? special : rounded) | ((bits >> 16) & 0x8000u));
}

inline float float_from_bf16(uint16_t value) { return float_from_bits(static_cast<uint32_t>(value) << 16); }

}  // namespace spq
