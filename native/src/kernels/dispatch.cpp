#include <cstring>

#ifdef EQUIBIT_AMX
#include <cpuid.h>
#endif

#include "kernels/kernels.h"

namespace equibit {
namespace {

#ifdef EQUIBIT_AMX
bool has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kTile) != 0 && (d & kInt8) != 0;
}
#endif

struct Choices {
  const Kernels* tables[5] = {};
  const char* names[6] = {};

  Choices() {
    int count = 0;
#ifdef EQUIBIT_X86
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
#ifdef EQUIBIT_AMX
      if (has_tiles() && amx_permitted()) tables[count++] = &amx_kernels();
#endif
      tables[count++] = &avx512_kernels();
    }
    if (fma) tables[count++] = &avx2_kernels();
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

const Kernels& best_kernels() { return *choices().tables[0]; }

const Kernels* find_kernels(const char* name) {
  for (const Kernels* const* table = choices().tables; *table != nullptr; ++table) {
    if (std::strcmp((*table)->name, name) == 0) return *table;
  }
  return nullptr;
}

const char* const* kernel_names() { return choices().names; }

}  // namespace equibit
