// The conversions of fp8.hpp against their definitions: every code, and float32 values on and beside every tie.
#include <cstdio>

#include "cases.hpp"
#include "reference.hpp"

namespace fuzz {
namespace {

bool wrong(const char* what, uint32_t bits, double found, double wanted) {
  if (reference::same(found, wanted)) return false;
  std::printf("FAILED %s of 0x%08x: found %.9g, want %.9g\n", what, bits, found, wanted);
  return true;
}

int check_codes() {
  int failures = 0;
  for (uint32_t code = 0; code < 256; ++code) {
    const uint8_t byte = static_cast<uint8_t>(code);
    failures += wrong("decode E4M3", code, spq::decode(byte, Format::kE4M3),
                      reference::decoded(code, 8, reference::kE4M3, false));
    failures += wrong("decode E5M2", code, spq::decode(byte, Format::kE5M2),
                      reference::decoded(code, 8, reference::kE5M2));
  }
  for (uint32_t code = 0; code < 65536; ++code) {
    const uint16_t word = static_cast<uint16_t>(code);
    const double half = reference::decoded(code, 16, reference::kHalf);
    const double brain = reference::decoded(code, 16, reference::kBf16);
    failures += wrong("float16", code, spq::float_from_half(word), half);
    failures += wrong("bfloat16", code, spq::float_from_bf16(word), brain);
    // There and back; a NaN may lose its payload, but not what it is.
    failures += wrong("float16 there and back", code,
                      spq::float_from_half(spq::half_from_float(spq::float_from_half(word))), half);
    failures += wrong("bfloat16 there and back", code,
                      spq::float_from_bf16(spq::bf16_truncated(spq::float_from_bf16(word))), brain);
  }
  return failures;
}

int check_value(uint32_t bits) {
  const float value = spq::float_from_bits(bits);
  int failures = wrong("round to E4M3", bits, spq::round_to<Format::kE4M3>(value),
                       reference::nearest(value, reference::kE4M3));
  failures += wrong("round to E5M2", bits, spq::round_to<Format::kE5M2>(value),
                    reference::nearest(value, reference::kE5M2));
  failures += wrong("float16", bits, spq::float_from_half(spq::half_from_float(value)),
                    reference::nearest(value, reference::kHalf));
  failures += wrong("bfloat16", bits, spq::float_from_bf16(spq::bf16_rounded(value)),
                    reference::nearest(value, reference::kBf16));
  const uint32_t cut = bits & 0xffff0000u;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  failures += wrong("truncated bfloat16", bits, spq::float_from_bf16(spq::bf16_truncated(value)),
                    nan ? value : spq::float_from_bits(cut));
  return failures;
}

}  // namespace

int check_numbers() {
  int failures = check_codes();
  // Of the bits that any format drops the highest is bit 12 of float16, so these meet all ties and their neighbours.
  for (uint32_t high = 0; high < 65536 && failures < 10; ++high) {
    for (uint32_t middle = 0; middle < 8; ++middle) {
      for (const uint32_t low : {0x0u, 0x1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
        failures += check_value(high << 16 | middle << 13 | low);
      }
    }
  }
  return failures;
}

}  // namespace fuzz
