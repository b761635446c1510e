// AVX-512 F, BW, DQ, VL: Skylake-X and later. Codes go by way of float16 as with AVX2, products run 16 lanes wide.
#include <immintrin.h>

#include <cstring>

#include "isa.hpp"

namespace spq::cpu {
#include "x86_half.inl"
#include "portable.inl"

const Isa& avx512() {
  using Vector = float __attribute__((vector_size(64)));
  static const Isa isa{
      "avx512", direct, 1, decode_f32, nullptr, block_f32<Vector, 2, 12>, 12, nullptr, 0,
      nullptr, nullptr, nullptr, nullptr, prepare, split,
  };
  return isa;
}

}  // namespace spq::cpu
