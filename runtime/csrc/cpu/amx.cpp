// AMX: tiles of 16 x 32 bfloat16, Sapphire Rapids and later. Three terms of bfloat16 hold a float32 exactly, so exact
// products come out of the same tiles at a third of the speed.
#include <immintrin.h>

#include <cstring>

#include "isa.hpp"

namespace spq::cpu {
#include "x86_table.inl"
#include "portable.inl"

namespace {

constexpr int64_t kTile = 16 * 32;            // bfloat16 of a tile of A
constexpr int64_t kRowBytes = 2 * 2 * kPanelColumns;  // of one pair of rows of B

// Palette 1: eight tiles of 16 rows of 64 bytes. A constant, since compilers take the intrinsic to read eight bytes.
struct alignas(64) Shape {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
const Shape kShape{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

void begin() {
  __asm__ volatile("" : : "r"(&kShape) : "memory");
  _tile_loadconfig(&kShape);
}

void end() { _tile_release(); }

void tiles(const uint16_t* a, int64_t tile_stride, const uint16_t* b, int64_t steps, int64_t count, int64_t terms,
           float* acc) {
  constexpr int64_t kAccBytes = kPanelColumns * sizeof(float);
  __asm__ volatile("" : : : "memory");  // what the tiles read has been written
  const uint16_t* second = a + tile_stride;
  float* below = acc + 16 * kPanelColumns;
  _tile_loadd(0, acc, kAccBytes);
  _tile_loadd(1, acc + 16, kAccBytes);
  if (count == 1) {
    for (int64_t step = 0; step < steps; ++step, b += 16 * 2 * kPanelColumns) {
      _tile_loadd(6, b, kRowBytes);
      _tile_loadd(7, b + 32, kRowBytes);
      for (int64_t term = 0; term < terms; ++term, a += kTile) {
        _tile_loadd(4, a, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
    }
  } else {
    _tile_loadd(2, below, kAccBytes);
    _tile_loadd(3, below + 16, kAccBytes);
    for (int64_t step = 0; step < steps; ++step, b += 16 * 2 * kPanelColumns) {
      _tile_loadd(6, b, kRowBytes);
      _tile_loadd(7, b + 32, kRowBytes);
      for (int64_t term = 0; term < terms; ++term, a += kTile, second += kTile) {
        _tile_loadd(4, a, 64);
        _tile_loadd(5, second, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(2, below, kAccBytes);
    _tile_stored(3, below + 16, kAccBytes);
  }
  _tile_stored(0, acc, kAccBytes);
  _tile_stored(1, acc + 16, kAccBytes);
}

}  // namespace

const Isa& amx() {
  using Vector = float __attribute__((vector_size(64)));
  static const Isa isa{
      "amx", direct, 4, decode_f32, decode_bf16, block_f32<Vector, 2, 12>, 12, nullptr, 0,
      tiles, begin, end, prepare, split,
  };
  return isa;
}

}  // namespace spq::cpu
