// Products of bfloat16 numbers, for processors that have them.
#pragma once

#include "kernels/kernels.h"

namespace equibit {

/// Numbers come two to a 32-bit word, and sums are float32.
///
/// A row of inputs is carried by one to three planes, x = x_0 + x_1 + x_2, each the rest of those
/// before it, rounded: three are float32 itself.
struct Bfloat16Kernels {
  int most_planes;    // that products take
  int words_per_row;  // come in multiples of this
  /// Rows x − μ, where there are centres, as planes of words, zeros beyond n.
  void (*split)(const CodeRows&, int planes);
  /// Y = Σ_p X_p Wᵀ + b, or Y += … , of codes that are such words. Steps, scales and groups have no
  /// meaning.
  void (*gemm)(const CodeProduct&);
};

const Bfloat16Kernels& bfloat16_kernels();
const Bfloat16Kernels& bfloat16_tile_kernels();
/// Null where the processor lacks AVX512-BF16.
const Bfloat16Kernels* find_bfloat16_kernels();
/// On tiles, or the above where the processor lacks AMX-BF16.
const Bfloat16Kernels* find_bfloat16_tile_kernels();

}  // namespace equibit
