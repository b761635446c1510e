// AMX: tiles of 16 x 32 bfloat16, Sapphire Rapids and later. Three terms of bfloat16 hold a float32 exactly, so exact
// products come out of the same tiles at a third of the speed.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa.hpp"
#include "tiles.hpp"

namespace spq::cpu {
#include "x86_table.inl"
#include "portable.inl"

namespace {

constexpr int64_t kTile = 16 * 32;            // bfloat16 of a tile of A
constexpr int64_t kRowBytes = 2 * 2 * kPanelColumns;  // of one pair of rows of B

inline void decode_ahead(const Decoder& decoder, Ahead* ahead) {
  const int64_t pairs = std::min(ahead->each, ahead->pairs);
  decode_bf16(decoder, ahead->codes, pairs, ahead->b);
  ahead->codes += pairs * kPanelBytes;
  ahead->b += pairs * 2 * kPanelColumns;
  ahead->pairs -= pairs;
}

void tiles(const uint16_t* a, int64_t tile_stride, const uint16_t* b, int64_t steps, int64_t count, int64_t terms,
           float* acc, Ahead* ahead) {
  constexpr int64_t kAccBytes = kPanelColumns * sizeof(float);
  const Decoder decoder(ahead->format);
  __asm__ volatile("" : : : "memory");  // what the tiles read has been written
  const uint16_t* second = a + tile_stride;
  float* below = acc + 16 * kPanelColumns;
  _tile_loadd(0, acc, kAccBytes);
  _tile_loadd(1, acc + 16, kAccBytes);
  if (count == 1) {
    for (int64_t step = 0; step < steps; ++step, b += 16 * 2 * kPanelColumns) {
      decode_ahead(decoder, ahead);
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
      decode_ahead(decoder, ahead);
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

constexpr int64_t kTileStreams = 4;  // each visit reads a whole KiB of its stream

// Weights of one step, as the tiles want them: two of 16 rows of 16 columns.
using Step = uint16_t[2 * 16 * 2 * 16];

inline void decode_step(const Decoder& decoder, const uint8_t* row, int64_t pairs, int64_t ahead, uint16_t* b) {
  for (int64_t k = 0; k < pairs; ++k, row += kPanelBytes, b += 2 * kPanelColumns) {
    _mm_prefetch(reinterpret_cast<const char*>(row + ahead), _MM_HINT_T0);
    __m512i left, right;
    decoder(row, &left, &right);
    _mm512_store_si512(b, left);
    _mm512_store_si512(b + 32, right);
  }
}

// A few rows: tiles take over what the vector units would multiply, so those only decode, and memory is the limit.
void direct_tiles(const uint8_t* panel, int64_t pairs, const uint16_t* a, int64_t rows, Format format, float* acc) {
  constexpr int64_t kAccBytes = kPanelColumns * sizeof(float);
  const Decoder decoder(format);
  alignas(64) Step steps[2];  // one is decoded while the other is multiplied
  int64_t turn = 0;
  _tile_zero(0);
  _tile_zero(1);
  const auto multiply = [&](int64_t step, int64_t count, int64_t ahead = kAhead) {
    uint16_t* b = steps[turn++ % 2];
    if (count < 16) std::memset(b, 0, sizeof(Step));
    decode_step(decoder, panel + step * 16 * kPanelBytes, count, ahead, b);
    __asm__ volatile("" : : "r"(b) : "memory");
    _tile_loadd(4, a + step * rows * 32, 64);
    _tile_loadd(6, b, kRowBytes);
    _tile_loadd(7, b + 32, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  };
  const int64_t whole = pairs / 16, stretch = whole / kTileStreams;
  const int64_t over = (pairs - 16 * stretch) * kPanelBytes + kAhead;
  for (int64_t i = 0; i < stretch; ++i) {
    const int64_t ahead = i + 1 < stretch ? kAhead : over;
    for (int64_t stream = 0; stream < kTileStreams; ++stream) multiply(stream * stretch + i, 16, ahead);
  }
  for (int64_t step = stretch * kTileStreams; step < whole; ++step) multiply(step, 16);
  if (pairs % 16 != 0) multiply(whole, pairs % 16);
  _tile_stored(0, acc, kAccBytes);
  _tile_stored(1, acc + 16, kAccBytes);
}

}  // namespace

const Isa& amx() {
  using Vector = float __attribute__((vector_size(64)));
  static const Isa isa{
      "amx", direct, 4, decode_f32, decode_bf16, block_f32<Vector, 2, 12>, 12, nullptr, 0,
      tiles, direct_tiles, begin_tiles, end_tiles, prepare, split,
  };
  return isa;
}

}  // namespace spq::cpu
