// Which instruction sets this machine has, asked of the processor and of the operating system.
#include <cstdlib>
#include <cstring>

#include "isa.hpp"

#if defined(SPQ_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace spq::cpu {
namespace {

constexpr int kMost = 5;

struct Found {
  const Isa* sets[kMost];
  const char* names[kMost + 1] = {};
  int count = 0;
  Found();
  void add(const Isa& isa) {
    names[count] = isa.name;
    sets[count++] = &isa;
  }
};

#if defined(SPQ_X86)
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

// The registers that the operating system saves.
uint64_t saved_state() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

constexpr bool has(unsigned word, int bit) { return (word >> bit) & 1u; }

bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

void add_x86(Found& found) {
  const Leaf basic(1, 0), extended(7, 0), more(7, 1);
  if (!has(basic.c, 27)) return;  // OSXSAVE
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
  if (!ymm || !has(basic.c, 12) || !has(basic.c, 29) || !has(extended.b, 5)) return;  // FMA, F16C, AVX2
  found.add(avx2());
  const bool wide = has(extended.b, 16) && has(extended.b, 17) && has(extended.b, 30) && has(extended.b, 31);
  if (!zmm || !wide) return;  // AVX-512 F, DQ, BW, VL
  found.add(avx512());
  if (!has(extended.c, 1) || !has(more.a, 5)) return;  // VBMI, BF16
  found.add(avx512_bf16());
  const bool tiles = has(extended.d, 22) && has(extended.d, 24) && (state & 0x60000) == 0x60000;  // AMX-BF16, AMX-TILE
  if (tiles && may_use_tiles()) found.add(amx());
}
#endif

Found::Found() {
  add(generic());
#if defined(SPQ_X86)
  add_x86(*this);
#endif
}

const Found& found() {
  static const Found all;
  return all;
}

}  // namespace

const char* const* available() { return found().names; }

const Isa* find(const char* name) {
  for (int i = 0; i < found().count; ++i) {
    if (std::strcmp(found().names[i], name) == 0) return found().sets[i];
  }
  return nullptr;
}

const Isa& best() {
  const char* wanted = std::getenv("SPQ_GRAPH_ISA");
  const Isa* named = wanted != nullptr ? find(wanted) : nullptr;
  return named != nullptr ? *named : *found().sets[found().count - 1];
}

}  // namespace spq::cpu
