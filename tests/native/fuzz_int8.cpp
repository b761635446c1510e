// Runs spq::cpu::int8::matmul on random problems with every instruction set of this machine. With scales of 1 the result
// is the integer sum, which must be exact; by token it is that of a float product within half a step for each number.
// Buffers end where they must, for the address sanitizer.
//
//   fuzz_int8 [cases] [seed]
#include <algorithm>
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

struct Case {
  int64_t m, k, n, zero;
  bool half;
  std::vector<float> a;
  std::vector<int> weight;  // [k][n]
  std::vector<int64_t> channels;
  std::vector<bool> outlier;  // [k]
  std::vector<float> bias;    // [n], whole numbers, or one zero

  float at(int64_t i, int64_t c) const { return a[static_cast<size_t>(i * k + c)]; }
  int weight_at(int64_t c, int64_t j) const { return weight[static_cast<size_t>(c * n + j)]; }
  float bias_at(int64_t j) const { return bias[bias.size() == 1 ? 0 : static_cast<size_t>(j)]; }
  float clipped(int64_t i, int64_t c) const {
    return std::fmin(std::fmax(at(i, c), static_cast<float>(-zero)), 255.0f - static_cast<float>(zero));
  }
};

// With scales of 1, and twice a channel's weight in the branch.
bool is_exact(const Case& c, int64_t i, int64_t j, float y) {
  double sum = c.bias_at(j);
  for (int64_t x = 0; x < c.k; ++x) {
    sum += c.weight_at(x, j) * (c.outlier[static_cast<size_t>(x)] ? 2.0 * c.at(i, x) : c.clipped(i, x));
  }
  return y == static_cast<float>(sum);
}

// Half a step of the row's for each number, of which there are 255, and what float16 rounds; of outliers nothing else is.
bool is_close(const Case& c, int64_t i, int64_t j, float y) {
  double low = 0, high = 0, sum = c.bias_at(j), sizes = 0;
  for (int64_t x = 0; x < c.k; ++x) {
    sum += static_cast<double>(c.at(i, x)) * c.weight_at(x, j);
    if (c.outlier[static_cast<size_t>(x)]) continue;
    low = std::fmin(low, c.at(i, x));
    high = std::fmax(high, c.at(i, x));
    sizes += std::abs(c.weight_at(x, j));
  }
  const double step = (high - low) / 255;
  return std::fabs(y - sum) <= 0.51 * step * sizes + std::fabs(sum) * 1e-3 + 1e-2;
}

bool run_case(long index, unsigned long seed) {
  std::mt19937_64 random(seed * 1000003 + static_cast<unsigned long>(index));
  const auto between = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const bool by_token = between(0, 1) != 0;
  // A few rows are multiplied by panels abreast.
  const bool few = between(0, 2) == 0;
  Case c{few ? between(1, 6) : between(0, 60), between(1, 700), few ? between(1, 400) : between(1, 130), between(0, 255),
         by_token && between(0, 1) != 0, {}, {}, {}, {}, {}};
  const int64_t steps = int8::steps_of(c.k), panels = ceil_div(c.n, int8::kColumns);
  std::vector<int64_t> all(static_cast<size_t>(c.k));
  for (int64_t x = 0; x < c.k; ++x) all[static_cast<size_t>(x)] = x;
  std::shuffle(all.begin(), all.end(), random);
  c.channels.assign(all.begin(), all.begin() + std::min(between(0, 20), c.k));
  c.outlier.resize(all.size());
  for (const int64_t x : c.channels) c.outlier[static_cast<size_t>(x)] = true;
  std::vector<float> y(static_cast<size_t>(c.m * c.n)), one{1.0f};
  const bool per_channel = between(0, 1) != 0, biased = between(0, 1) != 0;
  const std::vector<float> scales(per_channel ? static_cast<size_t>(c.n) : 1, 1.0f);
  c.bias.resize(biased ? static_cast<size_t>(c.n) : 1);
  for (float& value : c.bias) value = biased ? static_cast<float>(between(-1000, 1000)) : 0.0f;
  std::vector<uint16_t> half_a, half_y(y.size());
  std::vector<int8_t> b(static_cast<size_t>(panels * steps * int8::kStepBytes));
  std::vector<uint16_t> rows;
  const int64_t size = between(1, 300);  // of most numbers: outliers lie among others
  for (int64_t i = 0; i < c.m * c.k; ++i) c.a.push_back(static_cast<float>(between(-size, size)));
  for (int64_t i = 0; i < c.m; i += between(1, 9)) {
    for (const int64_t x : c.channels) c.a[static_cast<size_t>(i * c.k + x)] = static_cast<float>(between(-900, 900));
  }
  for (const float value : c.a) half_a.push_back(spq::half_from_float(value));
  for (int64_t x = 0; x < c.k; ++x) {
    for (int64_t j = 0; j < c.n; ++j) {
      const int code = static_cast<int>(between(-128, 127));
      c.weight.push_back(code);
      const int64_t place = (j / 32 * steps + x / 64) * int8::kStepBytes;
      b[static_cast<size_t>(place + x % 64 / 4 * 128 + j % 32 * 4 + x % 4)] =
          static_cast<int8_t>(c.outlier[static_cast<size_t>(x)] ? 0 : code);
    }
  }
  for (const int64_t x : c.channels) {
    const float factor = by_token ? 1.0f : 2.0f;
    for (int64_t j = 0; j < c.n; ++j) rows.push_back(spq::half_from_float(factor * static_cast<float>(c.weight_at(x, j))));
  }
  std::vector<uint16_t> panelled(static_cast<size_t>(panels * int8::kColumns) * c.channels.size());
  int8::pack_branch(rows.data(), static_cast<int64_t>(c.channels.size()), c.n, panelled.data());
  std::vector<int32_t> sums(static_cast<size_t>(panels * int8::kColumns));
  for (int64_t p = 0; p < panels; ++p) int8::sum_panel(&b[p * steps * int8::kStepBytes], steps, &sums[p * 32]);
  const void* const a = c.half ? static_cast<const void*>(half_a.data()) : c.a.data();
  void* const out = c.half ? static_cast<void*>(half_y.data()) : y.data();
  int8::Crew crew;
  crew.threads = between(1, 4);
  int8::Problem problem{};
  problem.rows = c.m;
  problem.depth = c.k;
  problem.columns = c.n;
  problem.a = a;
  problem.half = c.half;
  problem.b = b.data();
  problem.sums = sums.data();
  problem.b_scale = scales.data();
  problem.bias = c.bias.data();
  problem.per_channel = per_channel;
  problem.biased = biased;
  problem.a_scale = by_token ? nullptr : one.data();
  problem.a_zero = static_cast<int32_t>(c.zero);
  problem.channels = static_cast<int64_t>(c.channels.size());
  problem.channel = c.channels.data();
  problem.branch = panelled.data();
  problem.y = out;
  std::vector<float> limit(all.size());
  if (between(0, 1) != 0) {
    int8::limit_range(problem, limit.data());
    problem.limit = limit.data();
  }
  if (between(0, 1) != 0) problem.crew = &crew;
  for (const int8::Kernels* const* set = int8::available(); *set != nullptr; ++set) {
    bool done = false;
    // A thread of its own: what it keeps is then no larger than this call needs.
    std::thread([&] { done = int8::matmul(problem, **set, {one_after_another, nullptr}); }).join();
    for (size_t i = 0; c.half && i < y.size(); ++i) y[i] = spq::float_from_half(half_y[i]);
    for (int64_t i = 0; done && i < c.m; ++i) {
      for (int64_t j = 0; j < c.n && done; ++j) {
        const float found = y[static_cast<size_t>(i * c.n + j)];
        const bool beyond = c.half && std::isinf(found);  // of float16
        done = by_token ? beyond || is_close(c, i, j, found) : is_exact(c, i, j, found);
      }
    }
    if (done) continue;
    std::printf("FAILED case %ld of seed %lu with %s: M=%lld K=%lld N=%lld\n", index, seed, (*set)->name,
                static_cast<long long>(c.m), static_cast<long long>(c.k), static_cast<long long>(c.n));
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
