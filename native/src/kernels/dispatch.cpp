#include <cstring>

#include "kernels/kernels.h"

namespace equibit {
namespace {

struct Choices {
  const Kernels* tables[4] = {};
  const char* names[5] = {};

  Choices() {
    int count = 0;
#ifdef EQUIBIT_X86
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
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
