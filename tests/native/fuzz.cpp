// Runs spq::cpu::matmul on random problems with every instruction set of this machine and compares with a plain product
// in float64. Buffers are as large as they must be and no larger, so that the address sanitizer sees what reads or
// writes beyond them.
//
//   fuzz [cases] [seed] [first]      `first` starts at a later case: what failed can be run alone
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../../runtime/csrc/cpu/matmul.hpp"
#include "cases.hpp"

// Memory that nobody has written yet is NaN in every type. The sanitizer, a shared library, must find this.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "malloc_fill_byte=255:max_malloc_fill_size=1073741824";
}

namespace fuzz {
namespace {

using spq::cpu::Isa;

// Threads of its own for every call: what a thread keeps is then no larger than this call needs.
void in_threads(void* self, size_t count, void (*task)(void*, size_t), void* user) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) task(user, i);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < *static_cast<int*>(self); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

struct Wanted {
  std::vector<double> y, bound;
};

// The product in float64, and how far float32 may be off. Every order of summing K products, each in up to three terms,
// makes 3 K roundings at most, of half an ulp of the sum of magnitudes; eight more are for scales and the end. An
// activation that may be bfloat16 has 8 bits. Hardware that takes subnormals for zero misses 2^-126 times a weight.
Wanted multiply(const Case& c, Operands& o) {
  const double steps = (3.0 * static_cast<double>(c.depth) + 8.0) * 0x1p-24;
  const double narrow = c.fast && c.a_format == Format::kNone ? 0x1p-8 : 0.0;
  Wanted wanted;
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t n = 0; n < c.columns; ++n) {
      const double* x = o.x.data() + i * c.depth;
      const double* w = o.w.data() + n * c.depth;
      double sum = 0.0, magnitude = 0.0;
      for (int64_t k = 0; k < c.depth; ++k) {
        sum += x[k] * w[k];
        magnitude += std::fabs(x[k] * w[k]);
      }
      const double b_scale = o.b_scale[c.per_channel ? n : 0];
      const double scale = b_scale * (c.a_format == Format::kNone ? 1.0 : static_cast<double>(c.a_scale));
      const double y = sum * scale;
      double bound = (steps + narrow) * magnitude * scale + static_cast<double>(c.depth) * 0x1p-110 * scale + 0x1p-149;
      if (c.data == Data::kWhole) bound = 0.0;
      if (c.half) bound += std::fabs(y) * 0x1p-11 + 0x1p-25;
      wanted.y.push_back(y);
      wanted.bound.push_back(bound);
    }
  }
  return wanted;
}

bool fits(double found, double y, double bound, bool half) {
  if (!std::isfinite(y)) return std::isnan(y) ? std::isnan(found) : found == y;
  if (half && std::fabs(y) + bound >= 65504.0 && std::isinf(found)) return (found > 0) == (y > 0);
  return std::fabs(found - y) <= bound;
}

bool check(const Case& c, Operands& o, const Wanted& wanted, const Isa& isa, Random& random) {
  const int64_t size = c.rows * c.columns;
  std::vector<unsigned char> results[2];
  for (const bool alone : {true, false}) {
    Buffer<float> y(c.half ? 0 : size, between(random, 0, 17));
    Buffer<uint16_t> y_half(c.half ? size : 0, between(random, 0, 17));
    int threads = alone ? 1 : c.threads;
    const void* a = c.half ? static_cast<const void*>(o.a_half.data()) : o.a.data();
    void* out = c.half ? static_cast<void*>(y_half.data()) : y.data();
    const spq::cpu::Problem problem{c.rows, c.depth, c.columns, {a, c.stride, c.half, c.a_format, c.a_scale},
                                    o.b.data(), c.b_format, o.b_scale.data(), c.per_channel, c.fast, out};
    bool done = false;
    std::thread([&] { done = spq::cpu::matmul(problem, isa, {in_threads, &threads}); }).join();
    if (!done) {
      std::printf("FAILED out of memory\n");
      return false;
    }
    for (int64_t i = 0; i < size; ++i) {
      const double found = c.half ? spq::float_from_half(y_half[i]) : y[i];
      if (fits(found, wanted.y[static_cast<size_t>(i)], wanted.bound[static_cast<size_t>(i)], c.half)) continue;
      std::printf("FAILED at row %lld, column %lld: found %.9g, want %.9g within %.3g\n",
                  static_cast<long long>(i / c.columns), static_cast<long long>(i % c.columns), found,
                  wanted.y[static_cast<size_t>(i)], wanted.bound[static_cast<size_t>(i)]);
      return false;
    }
    const auto* bytes = static_cast<const unsigned char*>(out);
    results[alone].assign(bytes, bytes + size * (c.half ? 2 : 4));
  }
  if (results[0] == results[1]) return true;
  std::printf("FAILED: other bytes from %d threads than from one\n", c.threads);
  return false;
}

bool run_case(long index, unsigned long seed) {
  Random random(seed * 1000003 + static_cast<unsigned long>(index));
  const Case c = make_case(random);
  Operands operands = make_operands(c, random);
  const Wanted wanted = multiply(c, operands);
  for (const char* const* name = spq::cpu::available(); *name != nullptr; ++name) {
    if (check(c, operands, wanted, *spq::cpu::find(*name), random)) continue;
    std::printf("case %ld of seed %lu with %s: %s\n", index, seed, *name, c.text().c_str());
    return false;
  }
  return true;
}

}  // namespace
}  // namespace fuzz

int main(int count, char** arguments) {
  const long cases = count > 1 ? std::atol(arguments[1]) : 200;
  const unsigned long seed = count > 2 ? std::strtoul(arguments[2], nullptr, 10) : 0;
  const long first = count > 3 ? std::atol(arguments[3]) : 0;
  std::printf("seed %lu, cases %ld to %ld, instruction sets:", seed, first, first + cases - 1);
  for (const char* const* name = spq::cpu::available(); *name != nullptr; ++name) std::printf(" %s", *name);
  std::printf("\n");
  if (fuzz::check_numbers() != 0) return 1;
  for (long index = first; index < first + cases; ++index) {
    if (!fuzz::run_case(index, seed)) return 1;
  }
  std::printf("all of them pass\n");
  return 0;
}
