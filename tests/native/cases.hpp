// Random problems for the fuzzer, and the buffers that hold their operands.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../runtime/csrc/fp8.hpp"

namespace fuzz {

using spq::Format;
using Random = std::mt19937_64;

// kWhole: small whole numbers, whose sums are exact in any order: results must be equal. kFinite: any finite numbers.
// kAny: every code, and activations that are NaN, infinite, subnormal or huge.
enum class Data { kWhole, kFinite, kAny };

struct Case {
  int64_t rows, depth, columns, stride;
  bool half, per_channel, fast;
  Format a_format, b_format;
  Data data;
  float a_scale;
  int threads;
  std::string text() const;
};

// Numbers that end where their memory ends and start at any address that their type allows.
template <typename T>
class Buffer {
 public:
  Buffer(int64_t count, int64_t offset)
      : memory_(new unsigned char[static_cast<size_t>(count + offset) * sizeof(T)]), offset_(offset) {
    std::memset(memory_.get(), 0xff, static_cast<size_t>(count + offset) * sizeof(T));
  }
  T* data() { return reinterpret_cast<T*>(memory_.get()) + offset_; }
  T& operator[](int64_t i) { return data()[i]; }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  int64_t offset_;
};

struct Operands {
  Buffer<float> a;
  Buffer<uint16_t> a_half;
  Buffer<uint8_t> b;
  Buffer<float> b_scale;
  std::vector<double> x, w;  // what is multiplied: [M, K] after rounding, [N, K] decoded
};

int64_t between(Random& random, int64_t low, int64_t high);
Case make_case(Random& random);
Operands make_operands(const Case& c, Random& random);

// How many conversions of fp8.hpp are wrong; each is printed.
int check_numbers();

}  // namespace fuzz
