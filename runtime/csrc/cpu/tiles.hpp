// Tiles of AMX, of which a block takes all eight: 0 to 5 hold sums and activations, 6 and 7 weights. Included where the
// compiler may use them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace spq::cpu {

// What a thread's tiles are: palette 1, rows of 64 bytes, of activations and sums so many and of weights 16.
inline void begin_tiles(int64_t rows) {
  struct alignas(64) Shape {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  const uint8_t r = static_cast<uint8_t>(rows);
  Shape shape{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {r, r, r, r, r, r, 16, 16}};
  // The intrinsic tells the compiler of eight of the bytes that it reads; this, of all.
  __asm__ volatile("" : : "r"(&shape) : "memory");
  _tile_loadconfig(&shape);
}

inline void end_tiles() { _tile_release(); }

}  // namespace spq::cpu
