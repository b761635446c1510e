// FP8 arithmetic for device code. It compiles as plain C++ too, so that a machine without a GPU can hold every function
// against fp8.hpp. Nothing here may be compiled with fast math: subnormals and true division are relied on.
#pragma once

#include <cstdint>
#include <cstring>

#include "../fp8.hpp"

#if defined(__CUDACC__)
#define SPQ_BOTH __host__ __device__ __forceinline__
#else
#define SPQ_BOTH inline
#endif

namespace spq::cuda {

SPQ_BOTH float from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

SPQ_BOTH uint32_t to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

constexpr uint32_t kInfinity = 0x7f800000u;

SPQ_BOTH bool is_infinite(float value) { return (to_bits(value) & 0x7fffffffu) == kInfinity; }

// Exponent and mantissa go where float32 has them; a power of two then makes up for the other bias, and normalizes
// subnormals on the way.
SPQ_BOTH float decode_e4m3(uint32_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t bits = to_bits(from_bits(magnitude << 20) * 0x1p120f);
  return from_bits((magnitude == 0x7fu ? 0x7fc00000u : bits) | (code & 0x80u) << 24);
}

SPQ_BOTH float decode_e5m2(uint32_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t bits = to_bits(from_bits(magnitude << 21) * 0x1p112f);
  // Infinity and NaN have the upper half's mantissa bits in both formats.
  return from_bits((magnitude >= 0x7cu ? kInfinity | (magnitude & 3u) << 21 : bits) | (code & 0x80u) << 24);
}

SPQ_BOTH float decode_number(uint32_t code, Format format) {
  return format == Format::kE4M3 ? decode_e4m3(code) : decode_e5m2(code);
}

// An activation in units of its scale, rounded to a format: ties to even, finite values saturate, even those whose
// quotient overflows; NaN and infinity stay.
SPQ_BOTH float round_activation(float value, float scale, Format format) {
  if (format == Format::kNone || is_infinite(value)) return value;
  const bool e4m3 = format == Format::kE4M3;
  const int shift = 23 - (e4m3 ? 3 : 2);
  const uint32_t half_step = (1u << (shift - 1)) - 1;
  const uint32_t smallest_normal = (e4m3 ? 127u - 6u : 127u - 14u) << 23;
  const float largest = e4m3 ? 448.0f : 57344.0f;
  const float magic = e4m3 ? 16384.0f : 128.0f;  // 2^23 steps of the subnormals: a sum with it has whole steps
  const uint32_t bits = to_bits(value / scale);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > kInfinity) return from_bits(bits);
  const float normal = from_bits(((magnitude + half_step + ((magnitude >> shift) & 1u)) >> shift) << shift);
  const float subnormal = (from_bits(magnitude) + magic) - magic;
  const float rounded = magnitude < smallest_normal ? subnormal : normal;
  return from_bits(to_bits(rounded > largest ? largest : rounded) | (bits & 0x80000000u));
}

// The code of a number that the format has. E4M3 has no infinity: it becomes NaN, and the caller must know.
SPQ_BOTH uint32_t encode_number(float value, Format format) {
  const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffffu, sign = (bits >> 24) & 0x80u;
  if (format == Format::kE4M3) {
    return sign | (magnitude >= kInfinity ? 0x7fu : to_bits(from_bits(magnitude) * 0x1p-120f) >> 20);
  }
  const uint32_t special = magnitude == kInfinity ? 0x7cu : 0x7eu;
  return sign | (magnitude >= kInfinity ? special : to_bits(from_bits(magnitude) * 0x1p-112f) >> 21);
}

// Nearest even, and the largest finite bfloat16 for finite values beyond it; exact for every FP8 number.
SPQ_BOTH uint32_t to_bfloat16(float value) {
  const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // A NaN whose payload lies in the dropped half must not turn into infinity.
  if (magnitude >= kInfinity) return sign | magnitude >> 16 | (magnitude > kInfinity ? 0x40u : 0u);
  const uint32_t rounded = (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16;
  return sign | (rounded > 0x7f7fu ? 0x7f7fu : rounded);
}

}  // namespace spq::cuda
