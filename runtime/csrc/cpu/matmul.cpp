#include "matmul.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

namespace spq::cpu {
namespace {

constexpr int64_t kMaxRows = 512;                  // of A that are packed and multiplied at a time
constexpr int64_t kMaxPackedBytes = int64_t{16} << 20;
constexpr int64_t kDepthF32 = 256;                 // rows of B decoded at a time: 32 KiB, which stays in the first cache
constexpr int64_t kDepthBf16 = 512;
constexpr int64_t kFirstDepth = 256;               // of what tiles have to wait for
constexpr int64_t kTileRows = 16, kTileDepth = 32, kTileElements = kTileRows * kTileDepth;
constexpr int64_t kStretch = 16 * kTileDepth;      // columns of a row of A that are rounded at a time: 2 KiB
constexpr int64_t kMaxGroup = 4;                   // panels that share one pass over A

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

bool is_finite(const Problem& p, const Isa& isa, int64_t row) {
  alignas(64) float x[kStretch];
  for (int64_t k0 = 0; k0 < p.depth; k0 += kStretch) {
    const int64_t count = std::min(kStretch, p.depth - k0);
    isa.prepare(p.a, row, k0, count, x);
    if (!std::all_of(x, x + count, [](float value) { return std::isfinite(value); })) return false;
  }
  return true;
}

// One number of Y as the operator defines it: of weights with their scales, summed in float64.
float defined(const Problem& p, const Isa& isa, int64_t row, int64_t column) {
  const uint8_t* panel = p.b + column / kPanelColumns * ceil_div(p.depth, 2) * kPanelBytes;
  const float scale = p.b_scale[p.per_channel ? column : 0];
  alignas(64) float x[kStretch];
  double sum = 0.0;
  for (int64_t k0 = 0; k0 < p.depth && !std::isnan(sum); k0 += kStretch) {
    const int64_t count = std::min(kStretch, p.depth - k0);
    isa.prepare(p.a, row, k0, count, x);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t k = k0 + i;
      const uint8_t code = panel[k / 2 * kPanelBytes + panel_byte(column % kPanelColumns, k % 2)];
      const float weight = decode(code, p.b_format) * scale;
      sum += static_cast<double>(x[i]) * static_cast<double>(weight);
    }
  }
  return static_cast<float>(sum * static_cast<double>(p.a.format == Format::kNone ? 1.0f : p.a.scale));
}

// Sums are of codes, without their scale: of activations that are finite they may pass what float32 holds where the
// result does not.
void store(const Problem& p, const Isa& isa, int64_t row, int64_t panel, const float* acc) {
  const int64_t start = panel * kPanelColumns;
  const int64_t count = std::min(kPanelColumns, p.columns - start);
  const float a_scale = p.a.format == Format::kNone ? 1.0f : p.a.scale;
  const float* scale = p.b_scale + (p.per_channel ? start : 0);
  float y[kPanelColumns];
  for (int64_t i = 0; i < count; ++i) y[i] = acc[i] * (p.per_channel ? scale[i] : *scale) * a_scale;
  bool all = true;
  for (int64_t i = 0; i < count; ++i) all &= std::isfinite(y[i]);
  if (!all && is_finite(p, isa, row)) {
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(y[i])) y[i] = defined(p, isa, row, start + i);
    }
  }
  if (p.a.half) {
    uint16_t* out = static_cast<uint16_t*>(p.y) + row * p.columns + start;
    for (int64_t i = 0; i < count; ++i) out[i] = half_from_float(y[i]);
  } else {
    std::copy(y, y + count, static_cast<float*>(p.y) + row * p.columns + start);
  }
}

// Hands over rows of A, rounded as asked, in stretches that are padded with zeros to whole steps of a tile. Beyond the
// last row, and up to a depth beyond the last column, all is zero. What stretches of neighbouring rows are packed into
// lies together, so all rows have their turn before the next stretch.
template <typename Take>
void for_stretches(const Problem& p, const Isa& isa, int64_t first, int64_t rows, int64_t depth, Take take) {
  alignas(64) float x[kStretch];
  for (int64_t k0 = 0; k0 < depth; k0 += kStretch) {
    const int64_t columns = std::min(kStretch, depth - k0);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t there = first + row < p.rows ? std::clamp<int64_t>(p.depth - k0, 0, columns) : 0;
      std::fill(x + there, x + round_up(columns, kTileDepth), 0.0f);
      if (there > 0) isa.prepare(p.a, first + row, k0, there, x);
      take(row, k0, columns, x);
    }
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
  for (int64_t row = 0; row < p.rows; ++row) store(p, job.isa, row, panel, acc + row * kPanelColumns);
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
    store(p, job.isa, row, panel, sum);
  }
}

bool run_direct_tiles(const Problem& p, const Isa& isa, int64_t terms, const Parallel& parallel) {
  const int64_t steps = ceil_div(p.depth, kTileDepth), rows = p.rows * terms;
  uint16_t* a = static_cast<uint16_t*>(packed_scratch.reserve(steps * rows * kTileDepth * 2));
  if (a == nullptr) return false;
  for_stretches(p, isa, 0, p.rows, p.depth, [&](int64_t row, int64_t k0, int64_t columns, const float* x) {
    uint16_t* out = a + k0 * rows + row * kTileDepth;
    isa.split(x, ceil_div(columns, kTileDepth), terms, out, rows * kTileDepth, p.rows * kTileDepth);
  });
  DirectTiles job{p, isa, a, terms, ceil_div(p.depth, 2)};
  parallel.run(parallel.self, static_cast<size_t>(ceil_div(p.columns, kPanelColumns)), direct_tiles_task, &job);
  return true;
}

// --------------------------------------------------------------------------------------------------- many rows

void pack_task(void* user, size_t index) {
  const Job& job = *static_cast<const Job*>(user);
  const int64_t block = static_cast<int64_t>(index), first = job.first_row + block * job.block;
  const auto pack = [&](int64_t row, int64_t k0, int64_t columns, const float* x) {
    const int64_t start = (block * job.padded_depth + k0) * job.block;
    const int64_t groups = ceil_div(columns, kTileDepth);
    if (job.layout == Layout::kF32) {
      float* out = static_cast<float*>(job.packed) + start + row;
      for (int64_t k = 0; k < columns; ++k) out[k * job.block] = x[k];
    } else if (job.layout == Layout::kBf16) {
      alignas(64) uint16_t narrow[kStretch];
      job.isa.split(x, groups, 1, narrow, kTileDepth, 0);
      uint16_t* out = static_cast<uint16_t*>(job.packed) + start + 2 * row;
      for (int64_t k = 0; k < columns; k += 2) std::memcpy(out + k * job.block, narrow + k, 4);
    } else {
      uint16_t* out = static_cast<uint16_t*>(job.packed) + start * job.terms + row * kTileDepth;
      job.isa.split(x, groups, job.terms, out, job.terms * kTileElements, kTileElements);
    }
  };
  for_stretches(job.problem, job.isa, first, job.block, job.padded_depth, pack);
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

// Panels that share one pass over A.
struct Panels {
  int64_t first, count;
  char* b;              // decoded chunks of b_bytes, one for each panel, or two for tiles
  int64_t b_bytes;
  float* acc;           // [panel][row][32]
};

void multiply_blocks(const Job& job, const Panels& panels, int64_t chunk) {
  const int64_t sums = job.padded_rows() * kPanelColumns;
  for (int64_t k0 = 0; k0 < job.padded_depth; k0 += chunk) {
    const int64_t depth = std::min(chunk, job.padded_depth - k0);
    for (int64_t g = 0; g < panels.count; ++g) {
      decode_chunk(job, panels.first + g, k0 / 2, depth, panels.b + g * panels.b_bytes);
    }
    for (int64_t block = 0; block < job.blocks; ++block) {
      for (int64_t g = 0; g < panels.count; ++g) {
        multiply_chunk(job, block, k0, depth, panels.b + g * panels.b_bytes,
                       panels.acc + g * sums + block * job.block * kPanelColumns);
      }
    }
  }
}

// By tiles, each chunk is decoded while the one before it is multiplied; only the first, which is short, is waited for.
void multiply_tiles(const Job& job, const Panels& panels) {
  const Problem& p = job.problem;
  const int64_t sums = job.padded_rows() * kPanelColumns;
  const int64_t tile_stride = job.padded_depth / kTileDepth * job.terms * kTileElements;
  const auto decoded = [&](int64_t turn, int64_t g) {
    return reinterpret_cast<uint16_t*>(panels.b + (turn * panels.count + g) * panels.b_bytes);
  };
  Ahead ahead[kMaxGroup];
  int64_t depth = std::min(kFirstDepth, job.padded_depth), turn = 0;
  for (int64_t g = 0; g < panels.count; ++g) decode_chunk(job, panels.first + g, 0, depth, decoded(turn, g));
  job.isa.tiles_begin(kTileRows);
  for (int64_t k0 = 0; k0 < job.padded_depth; turn = 1 - turn) {
    const int64_t next = k0 + depth, wanted = std::min(kDepthBf16, job.padded_depth - next) / 2;
    const int64_t there = std::clamp<int64_t>(job.panel_pairs - next / 2, 0, wanted);
    const int64_t steps = depth / kTileDepth;
    for (int64_t g = 0; g < panels.count; ++g) {
      uint16_t* b = decoded(1 - turn, g);
      std::fill(b + there * 2 * kPanelColumns, b + wanted * 2 * kPanelColumns, uint16_t{0});
      ahead[g] = {p.b + ((panels.first + g) * job.panel_pairs + next / 2) * kPanelBytes, there,
                  ceil_div(there, steps * ceil_div(job.blocks, 2)), p.b_format, b};
    }
    for (int64_t block = 0; block < job.blocks; block += 2) {
      const uint16_t* a = static_cast<const uint16_t*>(job.packed) + block * tile_stride +
                          k0 / kTileDepth * job.terms * kTileElements;
      for (int64_t g = 0; g < panels.count; ++g) {
        job.isa.tiles(a, tile_stride, decoded(turn, g), steps, std::min<int64_t>(2, job.blocks - block), job.terms,
                      panels.acc + g * sums + block * job.block * kPanelColumns, &ahead[g]);
      }
    }
    k0 = next;
    depth = 2 * wanted;
  }
  job.isa.tiles_end();
}

void panel_task(void* user, size_t index) {
  Job& job = *static_cast<Job*>(user);
  const bool tiled = job.layout == Layout::kTiles;
  const int64_t chunk = job.layout == Layout::kF32 ? kDepthF32 : kDepthBf16;
  const int64_t sums = job.padded_rows() * kPanelColumns;
  Panels panels{static_cast<int64_t>(index) * job.group, 0, nullptr,
                round_up(chunk * kPanelColumns * job.element(), kAlignment), nullptr};
  panels.count = std::min(job.group, job.panels - panels.first);
  const int64_t chunks = panels.count * (tiled ? 2 : 1) * panels.b_bytes;
  panels.b = static_cast<char*>(panel_scratch.reserve(chunks + panels.count * sums * 4));
  if (panels.b == nullptr) {
    job.failed = true;
    return;
  }
  panels.acc = reinterpret_cast<float*>(panels.b + chunks);
  std::memset(panels.acc, 0, static_cast<size_t>(panels.count * sums * 4));
  if (tiled) {
    multiply_tiles(job, panels);
  } else {
    multiply_blocks(job, panels, chunk);
  }
  for (int64_t row = 0; row < job.rows; ++row) {
    for (int64_t g = 0; g < panels.count; ++g) {
      store(job.problem, job.isa, job.first_row + row, panels.first + g, panels.acc + g * sums + row * kPanelColumns);
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
