// Y = X . W for a few rows of X, straight from the panels: every byte of the weight is read once for every 8 rows, and
// nothing is written but the result. A block takes one panel and a share of K.
//
// A thread reads 16 bytes at a time, 8 columns by 2 rows of the weight, so a warp reads 512 bytes in one piece. It
// keeps float32 sums of its 8 columns for all rows of X; at the end lanes, then warps, then blocks are added up in that
// fixed order, so a result does not depend on timing.
#include "device.cuh"

namespace spq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSteps = kDirectPairs * 4 / kThreads;  // loads of 16 bytes in flight for each thread
constexpr int kChunk = 2 * kDirectPairs;             // rows of the weight in a round
constexpr int kColumns = kPanelColumns;

// x [kRows][kChunk] = activations from a row and a column of A on, zero outside of A.
template <int kRows>
__device__ void stage(const Activations& a, int64_t first_row, int64_t first_column, float (*x)[kChunk]) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kChunk; i += kThreads) {
    const int64_t row = first_row + i / kChunk, column = first_column + i % kChunk;
    float value = 0.0f;
    if (row < a.rows && column < a.depth) value = round_activation(load(a, row * a.depth + column), a.scale, a.format);
    x[i / kChunk][i % kChunk] = value;
  }
}

template <Format kFormat, int kRows>
__device__ void multiply(const uint4& codes, const float (*x)[kChunk], int pair, float (&sums)[kRows][8]) {
  float2 w[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) w[c] = decode_pair<kFormat>(pair_of(codes, c));
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float2 v = *reinterpret_cast<const float2*>(&x[r][2 * pair]);
#pragma unroll
    for (int c = 0; c < 8; ++c) sums[r][c] = fmaf(v.y, w[c].y, fmaf(v.x, w[c].x, sums[r][c]));
  }
}

// total [kWarps][kRows][32]: lanes l, l + 4, ... have the same columns.
template <int kRows>
__device__ void add_lanes(const float (&sums)[kRows][8], float (*total)[kRows][kColumns]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      float sum = sums[r][c];
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (lane < 4) total[warp][r][panel_column(lane, c)] = sum;
    }
  }
}

template <int kRows>
__device__ void write(const Direct& work, int64_t first_row, const float (*total)[kRows][kColumns]) {
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int r = i / kColumns;
    const int64_t row = first_row + r, column = int64_t{blockIdx.x} * kColumns + i % kColumns;
    if (row >= work.a.rows || column >= work.b.columns) continue;
    if (work.marks != nullptr && work.marks[1 + row] == 0) continue;
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += total[warp][r][i % kColumns];
    if (work.splits == 1) {
      store(work.y, row, column, sum);
    } else {
      work.partial[(blockIdx.z * work.a.rows + row) * work.b.columns + column] = sum;
    }
  }
}

// The same answer in every thread of a block, since they all read the same.
template <int kRows>
__device__ bool wanted(const Direct& work, int64_t first_row) {
  if (work.marks == nullptr) return true;
  bool any = false;
  for (int64_t row = first_row; row < first_row + kRows && row < work.a.rows; ++row) any |= work.marks[1 + row] != 0;
  return any;
}

// Two blocks or more on a multiprocessor, so that one reads while another waits at its barrier.
template <Format kFormat, int kRows>
__global__ void __launch_bounds__(kThreads, kRows <= 2 ? 3 : 2) direct(const Direct work) {
  alignas(16) __shared__ float x[kRows][kChunk];
  __shared__ float total[kWarps][kRows][kColumns];
  if (work.marks != nullptr && work.marks[0] == 0) return;
  const int64_t depth = work.b.depth, pairs = work.b.pairs();
  const uint4* panel = reinterpret_cast<const uint4*>(work.b.panels) + blockIdx.x * pairs * (kPanelBytes / 16);
  const int64_t begin = blockIdx.z * work.share;
  const int64_t end = begin + work.share < pairs ? begin + work.share : pairs;
  const int thread = threadIdx.x;
  for (int64_t row = int64_t{blockIdx.y} * kRows; row < work.a.rows; row += int64_t{gridDim.y} * kRows) {
    if (!wanted<kRows>(work, row)) continue;
    float sums[kRows][8] = {};
    for (int64_t first = begin; first < end; first += kDirectPairs) {
      uint4 codes[kSteps];  // asked for before the activations, so that both are under way at once
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        codes[s] = load_codes(panel, first + s * (kThreads / 4) + thread / 4, thread % 4, depth);
      }
      __syncthreads();  // every thread is done with x
      stage<kRows>(work.a, row, 2 * first, x);
      __syncthreads();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) multiply<kFormat>(codes[s], x, s * (kThreads / 4) + thread / 4, sums);
    }
    // `total` is free: whoever wrote the rows before has since passed the barriers above.
    add_lanes(sums, total);
    __syncthreads();
    write<kRows>(work, row, total);
  }
}

__global__ void __launch_bounds__(kThreads) add_shares(const Direct work) {
  const int64_t size = work.a.rows * work.b.columns;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += int64_t{gridDim.x} * kThreads) {
    float sum = 0.0f;
    for (int z = 0; z < work.splits; ++z) sum += work.partial[z * size + i];
    store(work.y, i / work.b.columns, i % work.b.columns, sum);
  }
}

template <Format kFormat, int kRows>
cudaError_t start(const Direct& work, cudaStream_t stream) {
  // Rows marked are few: a handful of blocks for each panel looks for them, and most find none.
  const int64_t most = work.marks != nullptr ? 4 : 65535;
  const int64_t groups = (work.a.rows + kRows - 1) / kRows;
  const dim3 grid(static_cast<unsigned>(work.b.panel_count()), static_cast<unsigned>(groups < most ? groups : most),
                  static_cast<unsigned>(work.splits));
  direct<kFormat, kRows><<<grid, kThreads, 0, stream>>>(work);
  if (work.splits > 1) {
    const int64_t blocks = (work.a.rows * work.b.columns + kThreads - 1) / kThreads;
    const unsigned count = static_cast<unsigned>(blocks < 4096 ? blocks : 4096);
    add_shares<<<count, kThreads, 0, stream>>>(work);
  }
  return cudaGetLastError();
}

template <Format kFormat>
cudaError_t start_rows(const Direct& work, cudaStream_t stream) {
  static_assert(kDirectRows == 8);
  if (work.a.rows <= 1) return start<kFormat, 1>(work, stream);
  if (work.a.rows <= 2) return start<kFormat, 2>(work, stream);
  if (work.a.rows <= 4) return start<kFormat, 4>(work, stream);
  return start<kFormat, 8>(work, stream);
}

}  // namespace

cudaError_t run_direct(const Direct& work, cudaStream_t stream) {
  if (work.b.format == Format::kE4M3) return start_rows<Format::kE4M3>(work, stream);
  return start_rows<Format::kE5M2>(work, stream);
}

}  // namespace spq::cuda
