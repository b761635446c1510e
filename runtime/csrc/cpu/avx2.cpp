// AVX2 with FMA and F16C: Haswell, Zen and later.
#include <immintrin.h>

#include <cstring>

#include "isa.hpp"

namespace spq::cpu {
#include "x86_half.inl"
#include "portable.inl"

const Isa& avx2() {
  using Vector = float __attribute__((vector_size(32)));
  static const Isa isa{
      "avx2", direct, 1, decode_f32, nullptr, block_f32<Vector, 2, 6>, 6, nullptr, 0,
      nullptr, nullptr, nullptr, nullptr, prepare, split,
  };
  return isa;
}

}  // namespace spq::cpu
