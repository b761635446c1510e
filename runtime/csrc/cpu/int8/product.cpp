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
thread_local Scratch row_scratch;    // of every thread: a row of A in float32

struct Job {
  const Problem& problem;
  const Kernels& kernels;
  int64_t steps, first, rows, block, blocks;
  uint8_t* codes;    // [block][step][row][64]
  float* scale;      // of rows
  int32_t* zero;
  float* overflow;   // [block][channel][row]
  uint8_t* exceeds;  // [block][channel]
  std::atomic<bool> failed{false};
};

float value_at(const Problem& p, int64_t row, int64_t column) {
  const int64_t place = row * p.depth + column;
  return p.half ? float_from_half(static_cast<const uint16_t*>(p.a)[place]) : static_cast<const float*>(p.a)[place];
}

// A row in float32; by token, its channels are left out of the range and so stand as zero.
const float* row_of(const Problem& p, int64_t row) {
  const bool without = p.a_scale == nullptr && p.channels > 0;
  if (!p.half && !without) return static_cast<const float*>(p.a) + row * p.depth;
  float* x = static_cast<float*>(row_scratch.reserve(p.depth * 4));
  if (x == nullptr) return nullptr;
  if (p.half) {
    const uint16_t* half = static_cast<const uint16_t*>(p.a) + row * p.depth;
    for (int64_t k = 0; k < p.depth; ++k) x[k] = float_from_half(half[k]);
  } else {
    std::memcpy(x, static_cast<const float*>(p.a) + row * p.depth, static_cast<size_t>(p.depth) * 4);
  }
  for (int64_t c = 0; without && c < p.channels; ++c) x[p.channel[c]] = 0.0f;
  return x;
}

void quantize_row(Job& job, int64_t block, int64_t r) {
  const Problem& p = job.problem;
  const int64_t local = block * job.block + r, row = job.first + local, stride = job.block * kDepth;
  const float* x = row_of(p, row);
  if (x == nullptr) {
    job.failed = true;
    return;
  }
  float scale = p.a_scale != nullptr ? *p.a_scale : 0.0f;
  int32_t zero = p.a_zero;
  if (p.a_scale == nullptr) {
    float low, high;
    job.kernels.range(x, p.depth, &low, &high);
    scale = std::max(high / 255.0f - low / 255.0f, FLT_MIN);
    zero = static_cast<int32_t>(std::nearbyint(std::min(std::max(-low / scale, 0.0f), 255.0f)));
  }
  job.scale[local] = scale;
  job.zero[local] = zero;
  uint8_t* codes = job.codes + block * job.steps * stride + r * kDepth;
  job.kernels.quantize(x, p.depth, scale, zero, codes, stride);
  const float least = static_cast<float>(-zero) * scale, most = static_cast<float>(255 - zero) * scale;
  for (int64_t c = 0; c < p.channels; ++c) {
    const float value = value_at(p, row, p.channel[c]);
    if (p.a_scale == nullptr) {
      uint8_t one[kDepth];
      job.kernels.quantize(&value, 1, scale, zero, one, kDepth);
      codes[p.channel[c] / kDepth * stride + p.channel[c] % kDepth] = one[0];
    }
    const float over = value - std::min(std::max(value, least), most);
    job.overflow[(block * p.channels + c) * job.block + r] = over;
    if (over != 0.0f) job.exceeds[block * p.channels + c] = 1;
  }
}

void quantize_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  const int64_t block = static_cast<int64_t>(index);
  std::fill_n(job.exceeds + block * job.problem.channels, job.problem.channels, uint8_t{0});
  const int64_t rows = std::min(job.block, job.rows - block * job.block);
  for (int64_t r = 0; r < rows; ++r) quantize_row(job, block, r);
  for (int64_t r = rows; r < job.block; ++r) {  // beyond the last row: multiplied, and not written
    for (int64_t s = 0; s < job.steps; ++s) {
      std::memset(job.codes + ((block * job.steps + s) * job.block + r) * kDepth, 0, kDepth);
    }
    for (int64_t c = 0; c < job.problem.channels; ++c) {
      job.overflow[(block * job.problem.channels + c) * job.block + r] = 0.0f;
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

void add_branch(const Job& job, const Columns& columns, int64_t block, int64_t rows, float* y) {
  const Problem& p = job.problem;
  for (int64_t c = 0; c < p.channels; ++c) {
    if (job.exceeds[block * p.channels + c] == 0) continue;
    const uint16_t* w = p.branch + c * p.columns + columns.start;
    uint16_t padded[kColumns] = {};
    if (columns.count < kColumns) {
      std::copy(w, w + columns.count, padded);
      w = padded;
    }
    job.kernels.branch(job.overflow + (block * p.channels + c) * job.block, w, rows, y);
  }
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
  const Job& job = *static_cast<Job*>(user);
  const Problem& p = job.problem;
  const int64_t panel = static_cast<int64_t>(index);
  const Columns columns(p, panel);
  const int8_t* b = p.b + panel * job.steps * kStepBytes;
  alignas(64) int32_t acc[kMostRows * kColumns];
  alignas(64) float y[kMostRows * kColumns];
  for (int64_t block = 0; block < job.blocks; ++block) {
    const int64_t start = block * job.block, rows = std::min(job.block, job.rows - start);
    job.kernels.block(job.codes + start * job.steps * kDepth, b, job.steps, job.block, acc);
    for (int64_t r = 0; r < rows; ++r) {
      job.kernels.finish(acc + r * kColumns, job.zero[start + r], job.scale[start + r], p.sums + columns.start,
                         columns.b_scale, columns.bias, y + r * kColumns);
    }
    add_branch(job, columns, block, rows, y);
    for (int64_t r = 0; r < rows; ++r) write(p, columns, job.first + start + r, y + r * kColumns);
  }
}

}  // namespace

int64_t steps_of(int64_t depth) { return ceil_div(depth, kDepth); }

void sum_panel(const int8_t* panel, int64_t steps, int32_t* sums) {
  std::fill_n(sums, kColumns, 0);
  for (int64_t i = 0; i < steps * kStepBytes; ++i) sums[i % (4 * kColumns) / 4] += panel[i];
}

bool matmul(const Problem& p, const Kernels& kernels, const Parallel& parallel) noexcept {
  if (p.rows == 0 || p.columns == 0) return true;
  Job job{p, kernels, steps_of(p.depth), 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  const int64_t row_bytes = job.steps * kDepth;
  const int64_t pass = std::min({p.rows, kMaxRows, std::max(kMaxBytes / row_bytes, kFewRows)});
  for (; job.first < p.rows; job.first += job.rows) {
    job.rows = std::min(pass, p.rows - job.first);
    // Blocks of equal height: 32 rows are three times 11 rather than 12, 12 and 8.
    job.blocks = ceil_div(job.rows, kernels.block_rows);
    job.block = ceil_div(job.rows, job.blocks);
    const int64_t padded = job.block * job.blocks;
    const int64_t bytes = padded * (row_bytes + 8 + 4 * p.channels) + job.blocks * p.channels;
    job.codes = static_cast<uint8_t*>(codes_scratch.reserve(bytes));
    if (job.codes == nullptr) return false;
    job.scale = reinterpret_cast<float*>(job.codes + padded * row_bytes);
    job.zero = reinterpret_cast<int32_t*>(job.scale + padded);
    job.overflow = reinterpret_cast<float*>(job.zero + padded);
    job.exceeds = reinterpret_cast<uint8_t*>(job.overflow + padded * p.channels);
    parallel.run(parallel.self, static_cast<size_t>(job.blocks), quantize_task, &job);
    if (job.failed) return false;
    parallel.run(parallel.self, static_cast<size_t>(ceil_div(p.columns, kColumns)), panel_task, &job);
  }
  return true;
}

}  // namespace spq::cpu::int8
