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
bool has_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && ((c >> 11) & 1u) != 0;
}
#endif

struct Found {
  const Kernels* sets[4] = {&generic()};
  int count = 1;
  Found() {
#if defined(SPQ_X86)
    if (cpu::find("avx2") != nullptr) sets[count++] = &avx2();
    if (cpu::find("avx512") != nullptr && has_vnni()) sets[count++] = &avx512_vnni();
#endif
  }
};

const Found& found() {
  static const Found all;
  return all;
}

}  // namespace

const Kernels* const* available() { return found().sets; }

const Kernels& best() {
  const char* wanted = std::getenv("SPQ_GRAPH_ISA");
  const bool known = wanted != nullptr && cpu::find(wanted) != nullptr;
  const bool plain = known && std::strcmp(wanted, "generic") == 0;
  const bool narrow = known && (std::strcmp(wanted, "avx2") == 0 || std::strcmp(wanted, "avx512") == 0);
  const int last = found().count - 1;
  return *found().sets[plain ? 0 : narrow && last > 1 ? 1 : last];
}

}  // namespace spq::cpu::int8
