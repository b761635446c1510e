#include "matmul.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace spq::cpu {
namespace {

constexpr int64_t kMaxRows = 512;                  // of A that are packed and multiplied at a time
constexpr int64_t kMaxPackedBytes = int64_t{16} << 20;
constexpr int64_t kDepthF32 = 256;                 // rows of B decoded at a time: 32 KiB, which stays in the first cache
constexpr int64_t kDepthBf16 = 512;
constexpr int64_t kTileRows = 16, kTileDepth = 32, kTileElements = kTileRows * kTileDepth;
constexpr int64_t kAlignment = 64;                  // of working copies: a cache line
constexpr int64_t kMaxGroup = 4;                   // panels that share one pass over A

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Memory that a thread keeps between calls, so that no call pays for fresh pages.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }
  void* reserve(int64_t bytes) {
    if (bytes > capacity_) {
      std::free(data_);
      capacity_ = round_up(bytes, kAlignment);
      data_ = std::aligned_alloc(kAlignment, static_cast<size_t>(capacity_));
      if (data_ == nullptr) capacity_ = 0;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  int64_t capacity_ = 0;
};

thread_local Scratch packed_scratch;  // of the calling thread: A
thread_local Scratch panel_scratch;   // of every thread: decoded B and sums

struct Job {
  const Problem& problem;
  const Isa& isa;
  Layout layout;
  int64_t terms;        // bfloat16 numbers for one of A
  int64_t panel_pairs;  // rows of a stored panel
  int64_t panels;
  int64_t first_row, rows;      // of A, in this pass
  int64_t block, blocks;        // rows in a block of packed A, and how many blocks
  int64_t group;                // panels in a task
  int64_t padded_depth;         // K as the kernel wants it
  void* packed;
  std::atomic<bool> failed{false};

  int64_t element() const { return layout == Layout::kF32 ? 4 : 2; }
  int64_t padded_rows() const { return block * blocks; }
};

void store(const Problem& p, int64_t row, int64_t panel, const float* acc) {
  const int64_t start = panel * kPanelColumns;
  const int64_t count = std::min(kPanelColumns, p.columns - start);
  const float a_scale = p.a.format == Format::kNone ? 1.0f : p.a.scale;
  float values[kPanelColumns];
  for (int64_t i = 0; i < count; ++i) {
    values[i] = acc[i] * p.b_scale[p.per_channel ? start + i : 0] * a_scale;
  }
  if (p.a.half) {
    uint16_t* y = static_cast<uint16_t*>(p.y) + row * p.columns + start;
    for (int64_t i = 0; i < count; ++i) y[i] = half_from_float(values[i]);
  } else {
    std::memcpy(static_cast<float*>(p.y) + row * p.columns + start, values, static_cast<size_t>(count) * sizeof(float));
  }
}

// ------------------------------------------------------------------------------------------- a few rows, from codes

struct Direct {
  const Problem& problem;
  const Isa& isa;
  const float* a;
  int64_t stride, pairs;
};

void direct_task(void* user, size_t index) {
  const Direct& job = *static_cast<const Direct*>(user);
  const Problem& p = job.problem;
  const int64_t panel = static_cast<int64_t>(index);
  float acc[8 * kPanelColumns];
  job.isa.direct(p.b + panel * job.pairs * kPanelBytes, job.pairs, job.a, job.stride, p.rows, p.b_format, acc);
  for (int64_t row = 0; row < p.rows; ++row) store(p, row, panel, acc + row * kPanelColumns);
}

bool run_direct(const Problem& p, const Isa& isa, const Parallel& parallel) {
  Direct job{p, isa, static_cast<const float*>(p.a.data), p.a.stride, ceil_div(p.depth, 2)};
  if (p.a.half || p.a.format != Format::kNone || p.depth % 2 != 0) {
    job.stride = 2 * job.pairs;
    float* copy = static_cast<float*>(packed_scratch.reserve(p.rows * job.stride * 4));
    if (copy == nullptr) return false;
    for (int64_t row = 0; row < p.rows; ++row) {
      float* x = copy + row * job.stride;
      x[job.stride - 1] = 0.0f;
      isa.prepare(p.a, row, 0, p.depth, x);
    }
    job.a = copy;
  }
  parallel.run(parallel.self, static_cast<size_t>(ceil_div(p.columns, kPanelColumns)), direct_task, &job);
  return true;
}

// ------------------------------------------------------------------------------------- a few rows, from codes, by tiles

struct DirectTiles {
  const Problem& problem;
  const Isa& isa;
  const uint16_t* a;      // [step][term * rows + row][32]
  int64_t terms, pairs;
};

void direct_tiles_task(void* user, size_t index) {
  const DirectTiles& job = *static_cast<const DirectTiles*>(user);
  const Problem& p = job.problem;
  const int64_t panel = static_cast<int64_t>(index), rows = p.rows * job.terms;
  alignas(64) float acc[kTileRows * kPanelColumns];
  job.isa.tiles_begin(rows);
  job.isa.direct_tiles(p.b + panel * job.pairs * kPanelBytes, job.pairs, job.a, rows, p.b_format, acc);
  job.isa.tiles_end();
  for (int64_t row = 0; row < p.rows; ++row) {
    float* sum = acc + row * kPanelColumns;
    for (int64_t term = 1; term < job.terms; ++term) {
      for (int64_t i = 0; i < kPanelColumns; ++i) sum[i] += acc[(term * p.rows + row) * kPanelColumns + i];
    }
    store(p, row, panel, sum);
  }
}

bool run_direct_tiles(const Problem& p, const Isa& isa, int64_t terms, const Parallel& parallel) {
  const int64_t steps = ceil_div(p.depth, kTileDepth), rows = p.rows * terms;
  uint16_t* a = static_cast<uint16_t*>(packed_scratch.reserve(steps * rows * kTileDepth * 2));
  if (a == nullptr) return false;
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t step = 0; step < steps; ++step) {
      alignas(64) float x[kTileDepth] = {};
      isa.prepare(p.a, row, step * kTileDepth, std::min(kTileDepth, p.depth - step * kTileDepth), x);
      isa.split(x, terms, a + (step * rows + row) * kTileDepth, p.rows * kTileDepth);
    }
  }
  DirectTiles job{p, isa, a, terms, ceil_div(p.depth, 2)};
  parallel.run(parallel.self, static_cast<size_t>(ceil_div(p.columns, kPanelColumns)), direct_tiles_task, &job);
  return true;
}

// --------------------------------------------------------------------------------------------------- many rows

// Packs one block of A, 32 columns of one row at a time.
void pack_task(void* user, size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const Problem& p = job.problem;
  const int64_t block = static_cast<int64_t>(index);
  const int64_t steps = ceil_div(job.padded_depth, kTileDepth);
  for (int64_t r = 0; r < job.block; ++r) {
    const int64_t row = block * job.block + r;
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t k0 = step * kTileDepth;
      const int64_t wanted = std::min(kTileDepth, job.padded_depth - k0);
      const int64_t there = row < job.rows ? std::clamp<int64_t>(p.depth - k0, 0, wanted) : 0;
      alignas(64) float x[kTileDepth];
      if (there < kTileDepth) std::memset(x, 0, sizeof x);
      if (there > 0) job.isa.prepare(p.a, job.first_row + row, k0, there, x);
      if (job.layout == Layout::kF32) {
        float* out = static_cast<float*>(job.packed) + (block * job.padded_depth + k0) * job.block + r;
        for (int64_t k = 0; k < wanted; ++k) out[k * job.block] = x[k];
      } else if (job.layout == Layout::kBf16) {
        alignas(64) uint16_t narrow[kTileDepth];
        job.isa.split(x, 1, narrow, 0);
        uint16_t* out = static_cast<uint16_t*>(job.packed) + (block * job.padded_depth + k0) * job.block + 2 * r;
        for (int64_t k = 0; k < wanted; k += 2) std::memcpy(out + k * job.block, narrow + k, 4);
      } else {
        uint16_t* tile = static_cast<uint16_t*>(job.packed) + (block * steps + step) * job.terms * kTileElements;
        job.isa.split(x, job.terms, tile + r * kTileDepth, kTileElements);
      }
    }
  }
}

void decode_chunk(const Job& job, int64_t panel, int64_t pair, int64_t depth, void* b) {
  const Problem& p = job.problem;
  const uint8_t* codes = p.b + (panel * job.panel_pairs + pair) * kPanelBytes;
  const int64_t there = std::min(depth / 2, job.panel_pairs - pair);
  if (job.layout == Layout::kF32) {
    job.isa.decode_f32(codes, there, p.b_format, static_cast<float*>(b));
  } else {
    job.isa.decode_bf16(codes, there, p.b_format, static_cast<uint16_t*>(b));
  }
  const int64_t bytes = job.element() * 2 * kPanelColumns;
  std::memset(static_cast<char*>(b) + there * bytes, 0, static_cast<size_t>((depth / 2 - there) * bytes));
}

void multiply_chunk(const Job& job, int64_t block, int64_t k0, int64_t depth, const void* b, float* acc) {
  const int64_t start = (block * job.padded_depth + k0) * job.block;
  if (job.layout == Layout::kF32) {
    job.isa.block_f32(static_cast<const float*>(job.packed) + start, static_cast<const float*>(b), depth, job.block,
                      acc);
  } else {
    job.isa.block_bf16(static_cast<const uint16_t*>(job.packed) + start, static_cast<const uint16_t*>(b), depth / 2,
                       job.block, acc);
  }
}

void panel_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  const int64_t first = static_cast<int64_t>(index) * job.group;
  const int64_t count = std::min(job.group, job.panels - first);
  const int64_t chunk = job.layout == Layout::kF32 ? kDepthF32 : kDepthBf16;
  const int64_t b_bytes = round_up(chunk * kPanelColumns * job.element(), 64);
  const int64_t sums = job.padded_rows() * kPanelColumns;
  char* memory = static_cast<char*>(panel_scratch.reserve(count * (b_bytes + sums * 4)));
  if (memory == nullptr) {
    job.failed = true;
    return;
  }
  float* acc = reinterpret_cast<float*>(memory + count * b_bytes);
  std::memset(acc, 0, static_cast<size_t>(count * sums * 4));
  const bool tiled = job.layout == Layout::kTiles;
  if (tiled) job.isa.tiles_begin(kTileRows);
  const int64_t tile_stride = (job.padded_depth / kTileDepth) * job.terms * kTileElements;
  for (int64_t k0 = 0; k0 < job.padded_depth; k0 += chunk) {
    const int64_t depth = std::min(chunk, job.padded_depth - k0);
    for (int64_t g = 0; g < count; ++g) decode_chunk(job, first + g, k0 / 2, depth, memory + g * b_bytes);
    for (int64_t block = 0; block < job.blocks; block += tiled ? 2 : 1) {
      for (int64_t g = 0; g < count; ++g) {
        const void* b = memory + g * b_bytes;
        float* sum = acc + g * sums + block * job.block * kPanelColumns;
        if (tiled) {
          const uint16_t* a = static_cast<const uint16_t*>(job.packed) + block * tile_stride +
                              (k0 / kTileDepth) * job.terms * kTileElements;
          job.isa.tiles(a, tile_stride, static_cast<const uint16_t*>(b), depth / kTileDepth,
                        std::min<int64_t>(2, job.blocks - block), job.terms, sum);
        } else {
          multiply_chunk(job, block, k0, depth, b, sum);
        }
      }
    }
  }
  if (tiled) job.isa.tiles_end();
  for (int64_t row = 0; row < job.rows; ++row) {
    for (int64_t g = 0; g < count; ++g) {
      store(job.problem, job.first_row + row, first + g, acc + g * sums + row * kPanelColumns);
    }
  }
}

// An FP8 number is a bfloat16 too, so rounding such activations again loses nothing.
bool is_narrow(const Problem& p) { return p.fast || p.a.format != Format::kNone; }

// How many numbers of bfloat16 stand for an activation in tiles; 0 where tiles do not serve. The lower terms may be
// zero, and zero times an infinite weight is NaN: only E5M2 has infinities.
int64_t tile_terms(const Problem& p, const Isa& isa) {
  if (isa.tiles == nullptr) return 0;
  return is_narrow(p) ? 1 : p.b_format == Format::kE4M3 ? 3 : 0;
}

bool run_blocked(const Problem& p, const Isa& isa, const Parallel& parallel) {
  const bool narrow = is_narrow(p);
  Job job{p, isa, Layout::kF32, 1, ceil_div(p.depth, 2), ceil_div(p.columns, kPanelColumns), 0, 0, 0, 0, 1, 0, nullptr};
  int64_t most = isa.block_rows_f32;
  job.padded_depth = round_up(p.depth, 2);
  if (const int64_t terms = tile_terms(p, isa)) {
    job.layout = Layout::kTiles;
    job.terms = terms;
    job.padded_depth = round_up(p.depth, kTileDepth);
  } else if (isa.block_bf16 != nullptr && narrow) {
    job.layout = Layout::kBf16;
    most = isa.block_rows_bf16;
  }
  job.group = std::clamp<int64_t>(job.panels / 16, 1, kMaxGroup);
  const int64_t row_bytes = job.padded_depth * job.element() * job.terms;
  const int64_t fitting = std::max<int64_t>(kMaxPackedBytes / row_bytes / 32 * 32, 32);
  const int64_t pass = std::min({p.rows, kMaxRows, fitting});
  for (; job.first_row < p.rows; job.first_row += job.rows) {
    job.rows = std::min(pass, p.rows - job.first_row);
    // Blocks of equal height: 32 rows are three times 11 rather than 12, 12 and 8.
    job.blocks = ceil_div(job.rows, job.layout == Layout::kTiles ? kTileRows : most);
    job.block = job.layout == Layout::kTiles ? kTileRows : ceil_div(job.rows, job.blocks);
    job.packed = packed_scratch.reserve(job.padded_rows() * row_bytes);
    if (job.packed == nullptr) return false;
    parallel.run(parallel.self, static_cast<size_t>(job.blocks), pack_task, &job);
    parallel.run(parallel.self, static_cast<size_t>(ceil_div(job.panels, job.group)), panel_task, &job);
    if (job.failed) return false;
  }
  return true;
}

}  // namespace

bool matmul(const Problem& problem, const Isa& isa, const Parallel& parallel) noexcept {
  if (problem.rows == 0 || problem.columns == 0) return true;
  const int64_t terms = tile_terms(problem, isa);
  if (terms > 0 && problem.rows * terms <= kTileRows) return run_direct_tiles(problem, isa, terms, parallel);
  return problem.rows <= isa.max_direct_rows ? run_direct(problem, isa, parallel)
                                             : run_blocked(problem, isa, parallel);
}

}  // namespace spq::cpu
