// What every operator works with: threads, memory that threads keep, and sizes in whole steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace spq::cpu {

constexpr int64_t kAlignment = 64;  // of working copies: a cache line

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

// Runs `task(user, i)` for every i below count, in any order and on any threads, and returns when all are done.
struct Parallel {
  void (*run)(void* self, size_t count, void (*task)(void* user, size_t index), void* user);
  void* self;
};

}  // namespace spq::cpu
