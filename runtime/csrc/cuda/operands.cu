// What surrounds a matrix product by cuBLASLt: its two operands, and the scales afterwards. Each kernel is bound by
// memory and moves four elements at a time.
#include "device.cuh"

namespace spq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTilePairs = kThreads / 4;  // a block turns 64 pairs of a panel at a time
constexpr int kColumns = kPanelColumns;

unsigned at_most(int64_t count, int64_t most) { return static_cast<unsigned>(count < most ? count : most); }

__device__ __forceinline__ uint32_t half_bits(float value) { return __half_as_ushort(__float2half_rn(value)); }

// Element 4 * index to 4 * index + 3 of a matrix. FP8 takes only numbers that the format has.
template <Operand kOperand>
__device__ __forceinline__ void store_four(void* matrix, int64_t index, const float (&v)[4]) {
  if constexpr (kOperand == Operand::kFloat) {
    static_cast<float4*>(matrix)[index] = make_float4(v[0], v[1], v[2], v[3]);
  } else if constexpr (kOperand == Operand::kHalf) {
    static_cast<uint2*>(matrix)[index] =
        make_uint2(half_bits(v[0]) | half_bits(v[1]) << 16, half_bits(v[2]) | half_bits(v[3]) << 16);
  } else if constexpr (kOperand == Operand::kBfloat16) {
    static_cast<uint2*>(matrix)[index] =
        make_uint2(to_bfloat16(v[0]) | to_bfloat16(v[1]) << 16, to_bfloat16(v[2]) | to_bfloat16(v[3]) << 16);
  } else {
    constexpr Format kFormat = kOperand == Operand::kE4M3 ? Format::kE4M3 : Format::kE5M2;
    static_cast<uint32_t*>(matrix)[index] = encode_number(v[0], kFormat) | encode_number(v[1], kFormat) << 8 |
                                            encode_number(v[2], kFormat) << 16 | encode_number(v[3], kFormat) << 24;
  }
}

// One block turns a tile of 64 pairs of a panel around, through shared memory, so that both sides are read and written
// in whole lines. Rows of the tile are an odd number of banks apart.
template <Operand kOperand>
__global__ void __launch_bounds__(kThreads) unpack_panels(const Weight b, int64_t depth_padded, void* w) {
  alignas(4) __shared__ uint16_t tile[kColumns][kTilePairs + 2];
  const uint4* panel = reinterpret_cast<const uint4*>(b.panels) + blockIdx.x * b.pairs() * (kPanelBytes / 16);
  const int thread = threadIdx.x, lane = thread % 32;
  constexpr int kDepth = 2 * kTilePairs;
  for (int64_t first = int64_t{blockIdx.y} * kDepth; first < depth_padded; first += int64_t{gridDim.y} * kDepth) {
    const uint4 codes = load_codes(panel, first / 2 + thread / 4, thread % 4, b.depth);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      tile[panel_column(thread % 4, c)][thread / 4] = static_cast<uint16_t>(pair_of(codes, c));
    }
    __syncthreads();
    const int64_t k = first + 4 * lane;
    for (int column = thread / 32; column < kColumns && k < depth_padded; column += kThreads / 32) {
      const uint32_t four = *reinterpret_cast<const uint32_t*>(&tile[column][2 * lane]);
      const int64_t index = ((int64_t{blockIdx.x} * kColumns + column) * depth_padded + k) / 4;
      if constexpr (kOperand == Operand::kE4M3 || kOperand == Operand::kE5M2) {
        static_cast<uint32_t*>(w)[index] = four;
      } else {
        const float values[4] = {decode_number(four & 0xffu, b.format), decode_number(four >> 8 & 0xffu, b.format),
                                 decode_number(four >> 16 & 0xffu, b.format), decode_number(four >> 24, b.format)};
        store_four<kOperand>(w, index, values);
      }
    }
    __syncthreads();
  }
}

// Four elements of a row, zero behind its end. `vector`: all fours lie inside and are aligned.
__device__ __forceinline__ void load_four(const Activations& a, bool vector, int64_t row, int64_t k, float (&v)[4]) {
  const int64_t index = row * a.depth + k;
  if (vector && k < a.depth) {
    if (a.half) {
      const uint2 halves = static_cast<const uint2*>(a.data)[index / 4];
      const uint32_t bits[4] = {halves.x & 0xffffu, halves.x >> 16, halves.y & 0xffffu, halves.y >> 16};
      for (int i = 0; i < 4; ++i) v[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(bits[i])));
    } else {
      const float4 four = static_cast<const float4*>(a.data)[index / 4];
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    }
  } else {
    for (int i = 0; i < 4; ++i) v[i] = k + i < a.depth ? load(a, index + i) : 0.0f;
  }
}

template <Operand kOperand>
__global__ void __launch_bounds__(kThreads)
    prepare_rows(const Activations a, bool vector, int64_t depth_padded, void* x, int* marks) {
  const int64_t quad = int64_t{blockIdx.x} * kThreads + threadIdx.x, quads = depth_padded / 4;
  if (quad >= quads) return;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    float v[4];
    load_four(a, vector, row, 4 * quad, v);
    if (kOperand == Operand::kE4M3 &&
        (is_infinite(v[0]) || is_infinite(v[1]) || is_infinite(v[2]) || is_infinite(v[3]))) {
      atomicExch(marks, 1);
      atomicExch(marks + 1 + row, 1);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = round_activation(v[i], a.scale, a.format);
    store_four<kOperand>(x, row * quads + quad, v);
  }
}

// `vector`: fours of the result are aligned and complete.
__global__ void __launch_bounds__(kThreads)
    scale_rows(const float* sums, int64_t stride, int64_t rows, int64_t columns, const Result y, bool vector) {
  const int64_t column = 4 * (int64_t{blockIdx.x} * kThreads + threadIdx.x);
  if (column >= columns) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const float4 four = *reinterpret_cast<const float4*>(sums + row * stride + column);
    const float v[4] = {four.x, four.y, four.z, four.w};
    if (vector) {
      float out[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = scaled(y, column + i, v[i]);
      const int64_t index = (row * y.stride + column) / 4;
      if (y.half) {
        store_four<Operand::kHalf>(y.data, index, out);
      } else {
        store_four<Operand::kFloat>(y.data, index, out);
      }
    } else {
      for (int i = 0; i < 4 && column + i < columns; ++i) store(y, row, column + i, v[i]);
    }
  }
}

template <Operand kOperand>
cudaError_t start_unpack(const Weight& b, int64_t depth_padded, void* w, cudaStream_t stream) {
  const int64_t tiles = (depth_padded + 2 * kTilePairs - 1) / (2 * kTilePairs);
  const dim3 grid(static_cast<unsigned>(b.panel_count()), at_most(tiles, 65535));
  unpack_panels<kOperand><<<grid, kThreads, 0, stream>>>(b, depth_padded, w);
  return cudaGetLastError();
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

template <Operand kOperand>
cudaError_t start_prepare(const Activations& a, int64_t depth_padded, void* x, int* marks, cudaStream_t stream) {
  const bool vector = a.depth % 4 == 0 && aligned(a.data, a.half ? 8 : 16);
  const int64_t blocks = (depth_padded / 4 + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(blocks), at_most(a.rows, 65535));
  prepare_rows<kOperand><<<grid, kThreads, 0, stream>>>(a, vector, depth_padded, x, marks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t unpack(const Weight& b, Operand operand, int64_t depth_padded, void* w, cudaStream_t stream) {
  switch (operand) {
    case Operand::kE4M3:
    case Operand::kE5M2: return start_unpack<Operand::kE4M3>(b, depth_padded, w, stream);  // codes, whatever they mean
    case Operand::kHalf: return start_unpack<Operand::kHalf>(b, depth_padded, w, stream);
    case Operand::kBfloat16: return start_unpack<Operand::kBfloat16>(b, depth_padded, w, stream);
    case Operand::kFloat: return start_unpack<Operand::kFloat>(b, depth_padded, w, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t prepare(const Activations& a, Operand operand, int64_t depth_padded, void* x, int* marks,
                    cudaStream_t stream) {
  switch (operand) {
    case Operand::kE4M3: return start_prepare<Operand::kE4M3>(a, depth_padded, x, marks, stream);
    case Operand::kE5M2: return start_prepare<Operand::kE5M2>(a, depth_padded, x, marks, stream);
    case Operand::kHalf: return start_prepare<Operand::kHalf>(a, depth_padded, x, marks, stream);
    case Operand::kBfloat16: return start_prepare<Operand::kBfloat16>(a, depth_padded, x, marks, stream);
    case Operand::kFloat: return start_prepare<Operand::kFloat>(a, depth_padded, x, marks, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t finish(const float* sums, int64_t stride, int64_t rows, int64_t columns, const Result& y,
                   cudaStream_t stream) {
  const bool vector = columns % 4 == 0 && y.stride % 4 == 0 && aligned(y.data, y.half ? 8 : 16);
  const int64_t blocks = ((columns + 3) / 4 + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(blocks), at_most(rows, 65535));
  scale_rows<<<grid, kThreads, 0, stream>>>(sums, stride, rows, columns, y, vector);
  return cudaGetLastError();
}

}  // namespace spq::cuda
