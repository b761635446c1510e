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
// Leaf 7 of the processor's features.
struct Features {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit Features(unsigned sub) { __get_cpuid_count(7, sub, &a, &b, &c, &d); }
};

bool has_avx_vnni() { return ((Features(1).a >> 4) & 1u) != 0; }
bool has_avx512_vnni() { return ((Features(0).c >> 11) & 1u) != 0; }
bool has_amx_int8() { return ((Features(0).d >> 25) & 1u) != 0; }
#endif

struct Found {
  const Kernels* sets[6] = {&generic()};
  int count = 1;
  Found() {
#if defined(SPQ_X86)
    if (cpu::find("avx2") == nullptr) return;
    sets[count++] = &avx2();
    if (has_avx_vnni()) sets[count++] = &avx_vnni();
    if (cpu::find("avx512") == nullptr || !has_avx512_vnni()) return;
    sets[count++] = &avx512_vnni();
    if (cpu::find("amx") != nullptr && has_amx_int8()) sets[count++] = &amx();
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
  if (std::strcmp(wanted, "avx512") == 0) wanted = "avx2";  // it has no VNNI
  if (std::strcmp(wanted, "avx512_bf16") == 0) wanted = "avx512_vnni";
  for (int i = 0; i < found().count; ++i) {
    if (std::strcmp(found().sets[i]->name, wanted) == 0) chosen = found().sets[i];
  }
  return *chosen;
}

}  // namespace spq::cpu::int8
