// Rounding with steps that a model learned, and of directions to codewords on the sphere. What
// finds its steps anew in every row is in the kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "operations/workspace.h"

namespace equibit {

/// How codes lie in 32-bit words; see `CodeProduct`.
enum class CodeLayout { kBytes, kPairs, kSplit };

/// Codes clip((x − μ)/step, ±highest) of rows whose steps are in `rows.scales`. Bytes of `clips`
/// [rows][clip_ld], unless that is null, say what was clipped and has no gradient.
void round_to_steps(const CodeRows& rows, CodeLayout layout, int planes, uint8_t* clips,
                    int64_t clip_ld);

/// Fills `rows.scales` with steps that cover the largest of each row.
void row_steps(const CodeRows& rows);

/// μ + step · clip((x − μ)/step, ±highest), and clips as above. Shape: values [rows][n].
void round_to_values(const CodeRows& rows, uint8_t* clips, int64_t clip_ld, float* values);

/// dx = 0 where `clips` says so. Shape: dx [rows][n].
void drop_clipped(int64_t rows, int n, const uint8_t* clips, int64_t clip_ld, float* dx,
                  int64_t ldx);

/// scaled = factor_h · step · clip(z/step), z and `scaled` [rows][heads · width].
void round_heads(int64_t rows, int heads, int width, const float* z, float step, int highest,
                 const float* factor, float* scaled);

/// dz = 0 where clip(z/step, ±highest) clips. Shape: z [rows][n], dz [rows][n].
void drop_beyond(int64_t rows, int n, const float* z, float step, int highest, float* dz,
                 int64_t ld);

/// How vectors entering a product are rounded, `step` being 0 where each atom finds its own.
struct VectorRounding {
  enum class Codec { kNone, kMagnitudeDirection, kCodebook, kComponents, kCube };

  Codec codec = Codec::kNone;
  int magnitude = 0;  // highest code of a magnitude, or of a component
  int direction = 0;  // highest code of a direction's component
  float step = 0.0f;
  std::vector<float> codewords;  // [n][3] of the positive octant
};

/// Codewords of the positive octant of `equibit.quantization.codebooks.codebook_points`.
/// Shape: [n][3].
std::vector<float> octant_codewords(int bits);

/// v̂ of vectors [atoms][components][channels], components not being rounded alone. Directions of
/// degrees above 1 have no codebook.
void round_vectors(const Kernels& kernels, const VectorRounding& how, int64_t atoms, int components,
                   int channels, const float* v, float* rounded);
/// In place: from ∂E/∂v̂ to ∂E/∂v, straight through the rounding; on the sphere, what is along v
/// vanishes.
void round_vectors_backward(const Kernels& kernels, const VectorRounding& how, int64_t atoms,
                            int components, int channels, const float* v, float* gradient);

/// Steps of vectors rounded component by component, one per row of an atom. Shape: steps
/// [atoms · components].
void component_steps(const VectorRounding& how, int64_t atoms, int components, int channels,
                     const float* v, float* steps);

}  // namespace equibit
