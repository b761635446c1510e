// The instruction set that every machine has: plain C++, in the vectors that the compiler finds for it.
#include <cstring>

#include "isa.hpp"

namespace spq::cpu {
namespace {

void widen(const uint16_t* half, int64_t columns, float* x) {
  for (int64_t i = 0; i < columns; ++i) x[i] = float_from_half(half[i]);
}

struct Table {
  float value[256];
  explicit Table(Format format) {
    for (int code = 0; code < 256; ++code) value[code] = decode(static_cast<uint8_t>(code), format);
  }
};

const float* table(Format format) {
  static const Table e4m3(Format::kE4M3), e5m2(Format::kE5M2);
  return format == Format::kE4M3 ? e4m3.value : e5m2.value;
}

}  // namespace

#include "portable.inl"

namespace {

using Vector = float __attribute__((vector_size(16)));

void decode_f32(const uint8_t* panel, int64_t pairs, Format format, float* b) {
  const float* values = table(format);
  for (int64_t k = 0; k < pairs; ++k, panel += kPanelBytes, b += 2 * kPanelColumns) {
    for (int64_t column = 0; column < kPanelColumns; ++column) {
      b[column] = values[panel[panel_byte(column, 0)]];
      b[kPanelColumns + column] = values[panel[panel_byte(column, 1)]];
    }
  }
}

}  // namespace

const Isa& generic() {
  static const Isa isa{
      "generic", nullptr, 0, decode_f32, nullptr, block_f32<Vector, 2, 4>, 4, nullptr, 0,
      nullptr, nullptr, nullptr, nullptr, prepare, split,
  };
  return isa;
}

}  // namespace spq::cpu
