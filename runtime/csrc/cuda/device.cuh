// What the kernels share: loading activations, decoding pairs of codes, storing results.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels.hpp"
#include "numbers.hpp"

namespace spq::cuda {

__device__ __forceinline__ float load(const Activations& a, int64_t index) {
  return a.half ? __half2float(static_cast<const __half*>(a.data)[index]) : static_cast<const float*>(a.data)[index];
}

// The values of two codes, the lower byte first. E5M2 is the upper byte of a float16; for E4M3 there is an instruction
// from compute capability 8.9 on.
template <Format kFormat>
__device__ __forceinline__ float2 decode_pair(uint32_t codes) {
  if constexpr (kFormat == Format::kE5M2) {
    const uint32_t halves = __byte_perm(codes, 0, 0x1404);
    return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(halves & 0xffffu))),
                       __half2float(__ushort_as_half(static_cast<unsigned short>(halves >> 16))));
  } else {
#if __CUDA_ARCH__ >= 890
    const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes), __NV_E4M3);
    return __half22float2(__half2(halves));
#else
    return make_float2(decode_e4m3(codes & 0xffu), decode_e4m3(codes >> 8 & 0xffu));
#endif
  }
}

__device__ __forceinline__ float scaled(const Result& y, int64_t column, float sum) {
  return sum * y.b_scale[y.per_channel ? column : 0] * y.a_scale;
}

__device__ __forceinline__ void store(const Result& y, int64_t row, int64_t column, float sum) {
  const float value = scaled(y, column, sum);
  if (y.half) {
    static_cast<__half*>(y.data)[row * y.stride + column] = __float2half_rn(value);
  } else {
    static_cast<float*>(y.data)[row * y.stride + column] = value;
  }
}

// Column within a panel of the pair of codes c = 0..7 in the 16 bytes l = 0..3 of a row.
__device__ __forceinline__ int panel_column(int l, int c) { return 16 * (c / 4) + 4 * l + c % 4; }

// 16 bytes of a panel's row; nothing but zeros outside the weight. What a file has as padding is not looked at.
__device__ __forceinline__ uint4 load_codes(const uint4* panel, int64_t pair, int l, int64_t depth) {
  uint4 codes = make_uint4(0, 0, 0, 0);
  if (2 * pair < depth) codes = __ldg(panel + 4 * pair + l);
  if (2 * pair + 1 == depth) {
    codes.x &= 0x00ff00ffu;
    codes.y &= 0x00ff00ffu;
    codes.z &= 0x00ff00ffu;
    codes.w &= 0x00ff00ffu;
  }
  return codes;
}

// Pair c = 0..7 of 16 bytes, in the lower half.
__device__ __forceinline__ uint32_t pair_of(const uint4& codes, int c) {
  const uint32_t word = c / 2 == 0 ? codes.x : c / 2 == 1 ? codes.y : c / 2 == 2 ? codes.z : codes.w;
  return c % 2 == 0 ? word & 0xffffu : word >> 16;
}

}  // namespace spq::cuda
