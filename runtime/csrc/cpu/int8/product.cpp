#include "product.hpp"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "../../floats.hpp"

namespace spq::cpu::int8 {
namespace {

constexpr int64_t kMaxRows = 512;                // of A that are quantized at a time
constexpr int64_t kMaxBytes = int64_t{1} << 19;  // of their codes: half of a usual second cache
constexpr int64_t kFewRows = 4 * kMostRows;

thread_local Scratch codes_scratch;  // of the calling thread: A
thread_local Scratch limit_scratch;  // of the calling thread: which channels are in the range of a token
thread_local Scratch row_scratch;    // of every thread: a row of A in float32
thread_local Scratch rows_scratch;   // of every thread: rows of the weight in float32, for one panel

struct Job {
  const Problem& problem;
  const Kernels& kernels;
  int64_t steps, first, rows, block, blocks;
  uint8_t* codes;    // [block][step][row][64]
  float* scale;      // of rows
  int32_t* zero;
  float* outliers;     // [block][channel][row]
  const float* limit;  // by token with a branch: zero at its channels, infinite elsewhere
  std::atomic<bool> failed{false};
};

// The limits of a problem, [K]; nullptr where there is no memory for them.
const float* limit_of(const Problem& p) {
  float* limit = static_cast<float*>(limit_scratch.reserve(p.depth * 4));
  if (limit == nullptr) return nullptr;
  std::fill_n(limit, p.depth, std::numeric_limits<float>::infinity());
  for (int64_t c = 0; c < p.channels; ++c) limit[p.channel[c]] = 0.0f;
  return limit;
}

// A row in float32; nullptr where there is no memory for a copy of one in float16.
const float* row_of(const Job& job, int64_t row) {
  const Problem& p = job.problem;
  if (!p.half) return static_cast<const float*>(p.a) + row * p.depth;
  float* x = static_cast<float*>(row_scratch.reserve(p.depth * 4));
  if (x == nullptr) return nullptr;
  const uint16_t* half = static_cast<const uint16_t*>(p.a) + row * p.depth;
  const int64_t whole = p.depth / kColumns * kColumns;
  job.kernels.widen(half, whole, x);
  for (int64_t k = whole; k < p.depth; ++k) x[k] = float_from_half(half[k]);
  return x;
}

void quantize_row(Job& job, int64_t block, int64_t r) {
  const Problem& p = job.problem;
  const int64_t local = block * job.block + r, row = job.first + local, stride = job.block * kDepth;
  const bool by_token = p.a_scale == nullptr;
  const float* x = row_of(job, row);
  if (x == nullptr) {
    job.failed = true;
    return;
  }
  float scale = by_token ? 0.0f : *p.a_scale;
  int32_t zero = p.a_zero;
  if (by_token) {
    float low, high;
    job.kernels.range(x, job.limit, p.depth, &low, &high);
    scale = std::max(high / 255.0f - low / 255.0f, FLT_MIN);
    zero = static_cast<int32_t>(std::nearbyint(std::min(std::max(-low / scale, 0.0f), 255.0f)));
  }
  job.scale[local] = scale;
  job.zero[local] = zero;
  job.kernels.quantize(x, p.depth, scale, zero, job.codes + block * job.steps * stride + r * kDepth, stride);
  float* outliers = job.outliers + block * p.channels * job.block + r;
  for (int64_t c = 0; c < p.channels; ++c) outliers[c * job.block] = x[p.channel[c]];
}

void quantize_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  const int64_t block = static_cast<int64_t>(index);
  const int64_t rows = std::min(job.block, job.rows - block * job.block);
  for (int64_t r = 0; r < rows; ++r) quantize_row(job, block, r);
  for (int64_t r = rows; r < job.block; ++r) {  // beyond the last row: multiplied, and not written
    for (int64_t s = 0; s < job.steps; ++s) {
      std::memset(job.codes + ((block * job.steps + s) * job.block + r) * kDepth, 0, kDepth);
    }
  }
}

// What belongs to the columns of a panel, filled up to 32 of them.
struct Columns {
  int64_t start, count;
  float b_scale[kColumns], bias[kColumns];
  Columns(const Problem& p, int64_t panel)
      : start(panel * kColumns), count(std::min(kColumns, p.columns - panel * kColumns)), b_scale{}, bias{} {
    for (int64_t i = 0; i < count; ++i) {
      b_scale[i] = p.b_scale[p.per_channel ? start + i : 0];
      bias[i] = p.bias[p.biased ? start + i : 0];
    }
  }
};

// The branch's rows of the weight in float32, [channels][32] of a panel; nullptr where there is no memory for them.
const float* weights_of(const Job& job, int64_t panel) {
  const int64_t count = job.problem.channels * kColumns;
  float* w = static_cast<float*>(rows_scratch.reserve(count * 4));
  if (w != nullptr) job.kernels.widen(job.problem.branch + panel * count, count, w);
  return w;
}

void write(const Problem& p, const Columns& columns, int64_t row, const float* y) {
  const int64_t place = row * p.columns + columns.start;
  if (!p.half) {
    std::memcpy(static_cast<float*>(p.y) + place, y, static_cast<size_t>(columns.count) * 4);
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(p.y) + place;
  for (int64_t i = 0; i < columns.count; ++i) out[i] = half_from_float(y[i]);
}

void panel_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  const Problem& p = job.problem;
  const int64_t panel = static_cast<int64_t>(index);
  const Columns columns(p, panel);
  const int8_t* b = p.b + panel * job.steps * kStepBytes;
  alignas(64) int32_t acc[kMostRows * kColumns];
  alignas(64) float y[kMostRows * kColumns];
  const float* w = nullptr;
  for (int64_t block = 0; block < job.blocks; ++block) {
    const int64_t start = block * job.block, rows = std::min(job.block, job.rows - start);
    job.kernels.block(job.codes + start * job.steps * kDepth, b, job.steps, job.block, acc);
    for (int64_t r = 0; r < rows; ++r) {
      job.kernels.finish(acc + r * kColumns, job.zero[start + r], job.scale[start + r], p.sums + columns.start,
                         columns.b_scale, columns.bias, y + r * kColumns);
    }
    if (p.channels > 0) {
      if (w == nullptr) w = weights_of(job, panel);
      if (w == nullptr) {
        job.failed = true;
        return;
      }
      job.kernels.branch(job.outliers + start * p.channels, job.block, w, p.channels, rows, y);
    }
    for (int64_t r = 0; r < rows; ++r) write(p, columns, job.first + start + r, y + r * kColumns);
  }
}

}  // namespace

int64_t steps_of(int64_t depth) { return ceil_div(depth, kDepth); }

void pack_branch(const uint16_t* rows, int64_t channels, int64_t columns, uint16_t* packed) {
  for (int64_t start = 0; start < columns; start += kColumns) {
    const int64_t count = std::min(kColumns, columns - start);
    for (int64_t c = 0; c < channels; ++c, packed += kColumns) {
      const uint16_t* row = rows + c * columns + start;
      std::copy(row, row + count, packed);
      std::fill(packed + count, packed + kColumns, uint16_t{0});
    }
  }
}

void sum_panel(const int8_t* panel, int64_t steps, int32_t* sums) {
  std::fill_n(sums, kColumns, 0);
  for (int64_t i = 0; i < steps * kStepBytes; ++i) sums[i % (4 * kColumns) / 4] += panel[i];
}

bool matmul(const Problem& p, const Kernels& kernels, const Parallel& parallel) noexcept {
  if (p.rows == 0 || p.columns == 0) return true;
  Job job{p, kernels, steps_of(p.depth), 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  if (p.a_scale == nullptr && p.channels > 0) {
    job.limit = limit_of(p);
    if (job.limit == nullptr) return false;
  }
  const int64_t row_bytes = job.steps * kDepth;
  const int64_t pass = std::min({p.rows, kMaxRows, std::max(kMaxBytes / row_bytes, kFewRows)});
  for (; job.first < p.rows; job.first += job.rows) {
    job.rows = std::min(pass, p.rows - job.first);
    // Blocks of equal height: 32 rows are three times 11 rather than 12, 12 and 8.
    job.blocks = ceil_div(job.rows, kernels.block_rows);
    job.block = ceil_div(job.rows, job.blocks);
    const int64_t padded = job.block * job.blocks;
    const int64_t bytes = padded * (row_bytes + 8 + 4 * p.channels);
    job.codes = static_cast<uint8_t*>(codes_scratch.reserve(bytes));
    if (job.codes == nullptr) return false;
    job.scale = reinterpret_cast<float*>(job.codes + padded * row_bytes);
    job.zero = reinterpret_cast<int32_t*>(job.scale + padded);
    job.outliers = reinterpret_cast<float*>(job.zero + padded);
    parallel.run(parallel.self, static_cast<size_t>(job.blocks), quantize_task, &job);
    if (job.failed) return false;
    parallel.run(parallel.self, static_cast<size_t>(ceil_div(p.columns, kColumns)), panel_task, &job);
    if (job.failed) return false;
  }
  return true;
}

}  // namespace spq::cpu::int8
