#include <cstring>

#if defined(EQUIBIT_X86)
#include <cpuid.h>
#elif defined(EQUIBIT_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels/bfloat16.h"
#include "kernels/kernels.h"

namespace equibit {
namespace {

#ifdef EQUIBIT_X86
/// Whether all these bits of EAX or EDX of CPUID leaf 7 are set.
bool leaf7(unsigned subleaf, unsigned eax, unsigned edx) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, subleaf, &a, &b, &c, &d) != 0 && (a & eax) == eax && (d & edx) == edx;
}
constexpr unsigned kAvxVnni = 1u << 4;                          // subleaf 1, EAX
[[maybe_unused]] constexpr unsigned kTiles = 3u << 24;          // subleaf 0, EDX: tiles and int8
[[maybe_unused]] constexpr unsigned kHalves = 1u << 23;         // subleaf 0, EDX
[[maybe_unused]] constexpr unsigned kBfloat16 = 1u << 5;        // subleaf 1, EAX
[[maybe_unused]] constexpr unsigned kBfloat16Tiles = 1u << 22;  // subleaf 0, EDX
#endif

#ifdef EQUIBIT_NEON
bool has_dot_products() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;  // every 64-bit Apple processor since 2018
#endif
}
#endif

struct Choices {
  const Kernels* tables[6] = {};
  const char* names[7] = {};

  Choices() {
    int count = 0;
#ifdef EQUIBIT_X86
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
#ifdef EQUIBIT_AMX
      if (leaf7(0, 0, kTiles) && amx_permitted()) tables[count++] = &amx_kernels();
#endif
      static const Kernels avx512 = [] {
        Kernels kernels = avx512_kernels();
        kernels.bfloat16 = find_bfloat16_kernels();
        return kernels;
      }();
      tables[count++] = &avx512;
    }
    if (fma && leaf7(1, kAvxVnni, 0)) tables[count++] = &avxvnni_kernels();
    if (fma) tables[count++] = &avx2_kernels();
#endif
#ifdef EQUIBIT_NEON
    if (has_dot_products()) tables[count++] = &neon_kernels();
#endif
    tables[count++] = &portable_kernels();
    for (int k = 0; k < count; ++k) names[k] = tables[k]->name;
  }
};

const Choices& choices() {
  static const Choices instance;
  return instance;
}

}  // namespace

const HalfKernels* find_half_kernels() {
#ifdef EQUIBIT_HALVES
  if (leaf7(0, 0, kHalves)) return &half_kernels();
#endif
  return nullptr;
}

const Bfloat16Kernels* find_bfloat16_kernels() {
#ifdef EQUIBIT_BFLOAT16
  if (leaf7(1, kBfloat16, 0)) return &bfloat16_kernels();
#endif
  return nullptr;
}

const Bfloat16Kernels* find_bfloat16_tile_kernels() {
#ifdef EQUIBIT_BFLOAT16_TILES
  if (leaf7(0, 0, kBfloat16Tiles) && find_bfloat16_kernels() != nullptr) {
    return &bfloat16_tile_kernels();
  }
#endif
  return find_bfloat16_kernels();
}

const Kernels& best_kernels() { return *choices().tables[0]; }

const Kernels* find_kernels(const char* name) {
  for (const Kernels* const* table = choices().tables; *table != nullptr; ++table) {
    if (std::strcmp((*table)->name, name) == 0) return *table;
  }
  return nullptr;
}

const char* const* kernel_names() { return choices().names; }

}  // namespace equibit
