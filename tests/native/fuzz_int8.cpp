// Runs spq::cpu::int8::matmul on random problems with every instruction set of this machine. With scales of 1 the result
// is the integer sum, which must be exact; buffers end where they must, for the address sanitizer.
//
//   fuzz_int8 [cases] [seed]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "../../runtime/csrc/cpu/int8/product.hpp"
#include "../../runtime/csrc/floats.hpp"

namespace {

using namespace spq::cpu;

void one_after_another(void*, size_t count, void (*task)(void*, size_t), void* user) {
  for (size_t i = 0; i < count; ++i) task(user, i);
}

bool run_case(long index, unsigned long seed) {
  std::mt19937_64 random(seed * 1000003 + static_cast<unsigned long>(index));
  const auto between = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const int64_t m = between(0, 60), k = between(1, 700), n = between(1, 130), steps = int8::steps_of(k);
  const int64_t panels = ceil_div(n, int8::kColumns), zero = between(0, 255), outliers = between(0, 3);
  std::vector<float> a(static_cast<size_t>(m * k)), y(static_cast<size_t>(m * n)), one{1.0f}, bias{0.0f};
  std::vector<int8_t> b(static_cast<size_t>(panels * steps * int8::kStepBytes));
  std::vector<int64_t> channels(static_cast<size_t>(outliers));
  std::vector<uint16_t> rows(static_cast<size_t>(outliers * n), spq::half_from_float(2.0f));
  for (float& value : a) value = static_cast<float>(between(-300, 300));
  for (int64_t& channel : channels) channel = between(0, k - 1);
  const auto code = [&](int64_t row, int64_t column) -> int8_t& {
    const int64_t place = (column / 32 * steps + row / 64) * int8::kStepBytes;
    return b[static_cast<size_t>(place + row % 64 / 4 * 128 + column % 32 * 4 + row % 4)];
  };
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < n; ++j) code(i, j) = static_cast<int8_t>(between(-128, 127));
  }
  std::vector<int32_t> sums(static_cast<size_t>(panels * int8::kColumns));
  for (int64_t p = 0; p < panels; ++p) int8::sum_panel(&b[p * steps * int8::kStepBytes], steps, &sums[p * 32]);
  const int8::Problem problem{m, k, n, a.data(), false, b.data(), sums.data(), one.data(), bias.data(), false, false,
                              one.data(), static_cast<int32_t>(zero), outliers, channels.data(), rows.data(), y.data()};
  for (const int8::Kernels* const* set = int8::available(); *set != nullptr; ++set) {
    bool done = false;
    // A thread of its own: what it keeps is then no larger than this call needs.
    std::thread([&] { done = int8::matmul(problem, **set, {one_after_another, nullptr}); }).join();
    for (int64_t i = 0; done && i < m; ++i) {
      const auto clipped = [&](int64_t c) {
        return std::fmin(std::fmax(a[static_cast<size_t>(i * k + c)], static_cast<float>(-zero)), 255.0f - zero);
      };
      float over = 0.0f;
      for (const int64_t c : channels) over += 2.0f * (a[static_cast<size_t>(i * k + c)] - clipped(c));
      for (int64_t j = 0; j < n && done; ++j) {
        int64_t sum = 0;
        for (int64_t c = 0; c < k; ++c) sum += static_cast<int64_t>(clipped(c)) * code(c, j);
        done = y[static_cast<size_t>(i * n + j)] == static_cast<float>(sum) + over;
      }
    }
    if (done) continue;
    std::printf("FAILED case %ld of seed %lu with %s: M=%lld K=%lld N=%lld\n", index, seed, (*set)->name,
                static_cast<long long>(m), static_cast<long long>(k), static_cast<long long>(n));
    return false;
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  const long cases = count > 1 ? std::atol(arguments[1]) : 200;
  const unsigned long seed = count > 2 ? std::strtoul(arguments[2], nullptr, 10) : 0;
  for (long index = 0; index < cases; ++index) {
    if (!run_case(index, seed)) return 1;
  }
  std::printf("all of them pass\n");
  return 0;
}
