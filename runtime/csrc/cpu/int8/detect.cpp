// Which of the kernels this machine runs.
#include <cstdlib>
#include <cstring>

#include "../isa.hpp"
#include "kernels.hpp"

#if defined(SPQ_X86)
#include <cpuid.h>
#endif

namespace spq::cpu::int8 {
namespace {

#if defined(SPQ_X86)
// AVX512_VNNI, and AVX-VNNI, of leaf 7.
bool has_vnni(bool avx512) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, avx512 ? 0 : 1, &a, &b, &c, &d) == 0) return false;
  return ((avx512 ? c >> 11 : a >> 4) & 1u) != 0;
}
#endif

struct Found {
  const Kernels* sets[5] = {&generic()};
  int count = 1;
  Found() {
#if defined(SPQ_X86)
    if (cpu::find("avx2") == nullptr) return;
    sets[count++] = &avx2();
    if (has_vnni(false)) sets[count++] = &avx_vnni();
    if (cpu::find("avx512") != nullptr && has_vnni(true)) sets[count++] = &avx512_vnni();
#endif
  }
};

const Found& found() {
  static const Found all;
  return all;
}

}  // namespace

const Kernels* const* available() { return found().sets; }

// SPQ_GRAPH_ISA names a set of these, or one of the FP8 operator's: then the best that needs no more than that.
const Kernels& best() {
  const char* wanted = std::getenv("SPQ_GRAPH_ISA");
  const Kernels* chosen = found().sets[found().count - 1];
  if (wanted == nullptr) return *chosen;
  const bool narrow = std::strcmp(wanted, "avx2") == 0 || std::strcmp(wanted, "avx512") == 0;  // neither has VNNI
  for (int i = 0; i < found().count; ++i) {
    const Kernels* set = found().sets[i];
    if (std::strcmp(set->name, narrow ? "avx2" : wanted) == 0) chosen = set;
  }
  return *chosen;
}

}  // namespace spq::cpu::int8
