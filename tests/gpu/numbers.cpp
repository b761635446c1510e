// Holds the arithmetic of the CUDA kernels, compiled for this machine, against that of the CPU kernels.
#include "cuda/numbers.hpp"

#include <cstdio>
#include <cstdlib>
#include <random>

#include "fp8.hpp"

namespace {

using namespace spq;

constexpr Format kFormats[] = {Format::kE4M3, Format::kE5M2};
long long compared = 0;

bool is_nan(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

void same(float found, float wanted, const char* what, Format format, uint32_t from) {
  ++compared;
  const uint32_t a = bits_from_float(found), b = bits_from_float(wanted);
  if (a == b || (is_nan(a) && is_nan(b) && a >> 31 == b >> 31)) return;
  std::fprintf(stderr, "%s of %s: from %08x came %08x, not %08x\n", what, format == Format::kE4M3 ? "E4M3" : "E5M2",
               from, a, b);
  std::exit(1);
}

float rounded(float value, Format format) {
  return format == Format::kE4M3 ? round_to<Format::kE4M3>(value) : round_to<Format::kE5M2>(value);
}

void all_codes(Format format) {
  for (uint32_t code = 0; code < 256; ++code) {
    const float value = decode(static_cast<uint8_t>(code), format);
    same(cuda::decode_number(code, format), value, "decode", format, code);
    same(float_from_bf16(static_cast<uint16_t>(cuda::to_bfloat16(value))), value, "bfloat16", format, code);
    same(cuda::round_activation(value, 1.0f, format), value, "round", format, code);
    same(decode(static_cast<uint8_t>(cuda::encode_number(value, format)), format), value, "encode", format, code);
  }
}

// One float32, as an activation with a scale.
void one(uint32_t bits, float scale, Format format) {
  const float value = float_from_bits(bits);
  const bool infinite = (bits & 0x7fffffffu) == 0x7f800000u;
  const float quotient = value / scale;
  // A finite value whose quotient overflows saturates like any other.
  const bool overflows = !infinite && (bits_from_float(quotient) & 0x7fffffffu) == 0x7f800000u;
  const float wanted = infinite ? value : rounded(overflows ? (quotient < 0 ? -1e30f : 1e30f) : quotient, format);
  const float found = cuda::round_activation(value, scale, format);
  same(found, wanted, "round", format, bits);
  const uint32_t code = cuda::encode_number(found, format);
  const bool lost = infinite && format == Format::kE4M3;  // it has no infinity
  const float back = decode(static_cast<uint8_t>(code), format);
  same(back, lost ? float_from_bits(bits | 0x7fc00000u) : wanted, "encode", format, bits);
  same(float_from_bf16(static_cast<uint16_t>(cuda::to_bfloat16(value))), float_from_bf16(bf16_rounded(value)),
       "bfloat16", format, bits);
}

}  // namespace

int main() {
  for (Format format : kFormats) {
    all_codes(format);
    // Every upper half of a float32 with lower halves around a tie: all exponents, all mantissas that matter.
    for (uint32_t upper = 0; upper < 0x10000u; ++upper) {
      for (uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
        one(upper << 16 | lower, 1.0f, format);
      }
    }
    std::mt19937 random(1);
    for (int i = 0; i < 4000000; ++i) {
      const uint32_t bits = static_cast<uint32_t>(random());
      // Scales of any exponent but the last, with any mantissa.
      const float scale = float_from_bits((static_cast<uint32_t>(random()) & 0x7fffffffu) % 0x7f000000u + 1u);
      one(bits, i % 2 == 0 ? 1.0f : scale, format);
    }
  }
  std::printf("%lld comparisons\n", compared);
  return 0;
}
