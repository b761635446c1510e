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
constexpr int64_t kLeastRows = 64;
constexpr int64_t kMostPanels = 8;  // of a task: it writes half a KiB of a row before it goes on to the next
constexpr int64_t kTasks = 16;      // for all threads to have some

thread_local Scratch codes_scratch;  // of the calling thread: A
thread_local Scratch limit_scratch;  // of the calling thread: which channels are in the range of a token
thread_local Scratch row_scratch;    // of every thread: a row of A in float32
thread_local Scratch rows_scratch;   // of every thread: rows of the weight in float32, for the panels of a task
thread_local uint64_t last_job = 0;  // of every thread: the last that it took part in
std::atomic<uint64_t> jobs{0};

struct Job {
  const Problem& problem;
  const Kernels& kernels;
  int64_t steps, panels;
  int64_t outlier_size;                        // numbers of one row's
  int64_t first = 0, rows = 0;                 // of A, in this pass
  int64_t block = 0, blocks = 0;               // rows of one, and how many
  int64_t group = 0, groups = 0;               // panels of one task, and how many of those there are
  int64_t part = 0, parts = 0;                 // blocks of one task, and how many of those there are
  int64_t abreast = 1;                         // panels that a block is multiplied by at once
  uint8_t* codes = nullptr;                    // [block][step][row][64]
  float* outliers = nullptr;                   // of each block, as the kernels lay them out
  float* scale = nullptr;                      // of rows
  int32_t* zero = nullptr;
  const float* limit = nullptr;                // by token with a branch: zero at its channels, infinite elsewhere
  std::atomic<bool> failed{false};
  uint64_t number = 0;                         // of a few rows: of this call
  std::atomic<int64_t> threads{0};             // that took part
};

// The limits of a problem; nullptr where there is no memory for them.
const float* limit_of(const Problem& p) {
  float* limit = static_cast<float*>(limit_scratch.reserve(p.depth * 4));
  if (limit != nullptr) limit_range(p, limit);
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
  if (p.channels > 0) {
    float* outliers = job.outliers + block * job.block * job.outlier_size;
    job.kernels.branch.row(x, p.channel, p.channels, r, job.block, outliers);
  }
}

void fetch(const int8_t* start, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kAlignment) __builtin_prefetch(start + i, 0, 2);
}

void quantize_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  const int64_t block = static_cast<int64_t>(index);
  const int64_t rows = std::min(job.block, job.rows - block * job.block);
  const int64_t share = std::min(job.group, job.panels) * job.steps * kStepBytes / job.rows;  // of the first weights
  for (int64_t r = 0; r < rows; ++r) {
    fetch(job.problem.b + (block * job.block + r) * share, share);
    quantize_row(job, block, r);
  }
  for (int64_t r = rows; r < job.block; ++r) {  // beyond the last row: multiplied, and not written
    for (int64_t s = 0; s < job.steps; ++s) {
      std::memset(job.codes + ((block * job.steps + s) * job.block + r) * kDepth, 0, kDepth);
    }
  }
}

// Panels whose results are written beside each other.
struct Group {
  int64_t first, count;
  Columns columns[kMostPanels];
  float b_scale[kColumns], bias[kColumns];  // of a panel that is not whole, or one for all
};

// Numbers of the columns of a panel: as they lie there where there are enough, else filled up.
const float* of_panel(const float* given, bool each, int64_t column, int64_t columns, float* own) {
  if (each && column + kColumns <= columns) return given + column;
  for (int64_t i = 0; i < kColumns; ++i) own[i] = !each ? *given : column + i < columns ? given[column + i] : 0.0f;
  return own;
}

// Returns false where there is no memory for the branch's rows of the weight in float32.
bool describe(const Job& job, int64_t first, Group* group) {
  const Problem& p = job.problem;
  const bool widened = p.channels > 0 && job.abreast == 1;
  const int64_t weights = job.kernels.branch.weight_size(p.channels);
  group->first = first;
  group->count = std::min(job.group, job.panels - first);
  float* w = nullptr;
  if (widened) {
    w = static_cast<float*>(rows_scratch.reserve(group->count * weights * 4));
    if (w == nullptr) return false;
  }
  for (int64_t g = 0; g < group->count; ++g) {
    const int64_t panel = first + g, column = panel * kColumns;
    const uint16_t* half = p.branch + panel * p.channels * kColumns;
    if (widened) job.kernels.branch.weight(half, p.channels, w + g * weights);
    group->columns[g] = {p.sums + column, of_panel(p.b_scale, p.per_channel, column, p.columns, group->b_scale),
                         of_panel(p.bias, p.biased, column, p.columns, group->bias), p.channels, w + g * weights,
                         job.abreast == 1 ? nullptr : half};
  }
  return true;
}

// Columns of Y that are not whole panels of float32.
void write(const Problem& p, int64_t row, int64_t column, const float* y) {
  const int64_t place = row * p.columns + column, count = std::min(kColumns, p.columns - column);
  if (!p.half) {
    std::memcpy(static_cast<float*>(p.y) + place, y, static_cast<size_t>(count) * 4);
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(p.y) + place;
  for (int64_t i = 0; i < count; ++i) out[i] = half_from_float(y[i]);
}

void finish(const Job& job, const Columns& columns, int64_t panel, int64_t block, const int32_t* acc) {
  const Problem& p = job.problem;
  const int64_t start = block * job.block, row = job.first + start, column = panel * kColumns;
  const Rows rows{std::min(job.block, job.rows - start), acc, job.zero + start, job.scale + start,
                  job.outliers + start * job.outlier_size, 0, job.block};
  if (!p.half && column + kColumns <= p.columns) {
    job.kernels.finish(columns, rows, static_cast<float*>(p.y) + row * p.columns + column, p.columns);
    return;
  }
  alignas(64) float y[kMostRows * kColumns];
  job.kernels.finish(columns, rows, y, kColumns);
  for (int64_t r = 0; r < rows.count; ++r) write(p, row + r, column, y + r * kColumns);
}

void panel_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  // Parts of one group follow each other, so that its weights are at hand.
  const int64_t group_index = static_cast<int64_t>(index) / job.parts, part = static_cast<int64_t>(index) % job.parts;
  Group group;
  if (!describe(job, group_index * job.group, &group)) {
    job.failed = true;
    return;
  }
  alignas(64) int32_t acc[kMostRows * kColumns];
  job.kernels.begin(job.block);
  const int64_t first = part * job.part, last = std::min(job.blocks, first + job.part);
  const int64_t bytes = job.steps * kStepBytes;
  const int8_t* const panels = job.problem.b + group.first * bytes;
  // The next group is most likely this thread's too: every product of this one fetches a share of it.
  const int64_t left = job.panels - group.first - group.count;
  const int64_t ahead = std::min(left, group.count) * bytes / (job.blocks * group.count);
  const int8_t* next = panels + group.count * bytes + first * group.count * ahead;
  for (int64_t block = first; block < last; ++block) {
    const uint8_t* codes = job.codes + block * job.block * job.steps * kDepth;
    for (int64_t g = 0; g < group.count; ++g, next += ahead) {
      job.kernels.block(codes, panels + g * bytes, job.steps, job.block, acc, {next, ahead});
      finish(job, group.columns[g], group.first + g, block, acc);
    }
  }
  job.kernels.end();
}

// A task alone needs no other thread.
void run(const Parallel& parallel, int64_t count, void (*task)(void*, size_t), Job* job) {
  count == 1 ? task(job, 0) : parallel.run(parallel.self, static_cast<size_t>(count), task, job);
}

// One block of a few rows, by panels abreast.
void few_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  if (last_job != job.number) {
    last_job = job.number;
    ++job.threads;
  }
  Group group;
  if (!describe(job, static_cast<int64_t>(index) * job.group, &group)) {
    job.failed = true;
    return;
  }
  alignas(64) int32_t acc[kMostRows * kColumns];
  const int64_t bytes = job.steps * kStepBytes;
  for (int64_t g = 0; g < group.count; g += job.abreast) {
    const int64_t count = std::min(job.abreast, group.count - g);
    job.kernels.few(job.codes, job.problem.b + (group.first + g) * bytes, job.steps, job.block, count, acc);
    for (int64_t i = 0; i < count; ++i) {
      finish(job, group.columns[g + i], group.first + g + i, 0, acc + i * job.block * kColumns);
    }
  }
}

void run_few(Job& job, const Parallel& parallel) {
  Crew* const crew = job.problem.crew;
  const int64_t threads = crew == nullptr ? 1 : crew->threads.load(std::memory_order_relaxed);
  // Two tasks for each thread, of panels shared out evenly.
  job.group = std::clamp<int64_t>(ceil_div(job.panels, 2 * threads), 1, kMostPanels);
  job.groups = ceil_div(job.panels, job.group);
  job.group = ceil_div(job.panels, job.groups);
  job.number = ++jobs;
  run(parallel, job.groups, few_task, &job);
  if (crew != nullptr) crew->threads.store(job.threads, std::memory_order_relaxed);
}

}  // namespace

int64_t steps_of(int64_t depth) { return ceil_div(depth, kDepth); }

std::vector<int64_t> panels_of(int64_t depth, int64_t columns) {
  return {ceil_div(columns, kColumns), steps_of(depth), kStepBytes};
}

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

void limit_range(const Problem& p, float* limit) {
  std::fill_n(limit, p.depth, std::numeric_limits<float>::infinity());
  for (int64_t c = 0; c < p.channels; ++c) limit[p.channel[c]] = 0.0f;
}

bool matmul(const Problem& p, const Kernels& kernels, const Parallel& parallel) noexcept {
  if (p.rows == 0 || p.columns == 0) return true;
  if (p.rows <= kernels.lower_rows) return matmul(p, *kernels.lower, parallel);
  Job job{p, kernels, steps_of(p.depth), ceil_div(p.columns, kColumns), kernels.branch.row_size(p.channels)};
  if (p.a_scale == nullptr && p.channels > 0) {
    job.limit = p.limit != nullptr ? p.limit : limit_of(p);
    if (job.limit == nullptr) return false;
  }
  const int64_t row_bytes = job.steps * kDepth;
  const int64_t pass = std::min({p.rows, kMaxRows, std::max(kMaxBytes / row_bytes, kLeastRows)});
  for (; job.first < p.rows; job.first += job.rows) {
    job.rows = std::min(pass, p.rows - job.first);
    // Blocks of equal height: 32 rows are three times 11 rather than 12, 12 and 8.
    job.blocks = ceil_div(job.rows, kernels.block_rows);
    job.block = ceil_div(job.rows, job.blocks);
    if (kernels.even) job.block = round_up(job.block, 2);
    job.abreast = kernels.few != nullptr && p.rows <= kFewRows ? kernels.abreast(p.rows) : 1;
    // Results of one block are few enough to be anywhere.
    job.group = job.blocks > 1 ? kMostPanels : 1;
    job.groups = ceil_div(job.panels, job.group);
    job.part = ceil_div(job.blocks, ceil_div(kTasks, job.groups));
    job.parts = ceil_div(job.blocks, job.part);
    const int64_t padded = job.block * job.blocks;
    const int64_t bytes = padded * (row_bytes + 8 + 4 * job.outlier_size);
    job.codes = static_cast<uint8_t*>(codes_scratch.reserve(bytes));
    if (job.codes == nullptr) return false;
    job.outliers = reinterpret_cast<float*>(job.codes + padded * row_bytes);
    job.scale = job.outliers + padded * job.outlier_size;
    job.zero = reinterpret_cast<int32_t*>(job.scale + padded);
    run(parallel, job.blocks, quantize_task, &job);
    if (job.failed) return false;
    if (job.abreast > 1) run_few(job, parallel);
    else run(parallel, job.groups * job.parts, panel_task, &job);
    if (job.failed) return false;
  }
  return true;
}

}  // namespace spq::cpu::int8
