// Numbers rounded to bfloat16, and products of matrices of them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "operations/workspace.h"

namespace equibit {

/// The nearest bfloat16 number, ties to even, as a float.
float nearest_bfloat16(float x);

/// x − μ, or x where there are no centres, rounded to bfloat16. Shape: values [rows][n].
void round_to_bfloat16(const CodeRows& rows, float* values);

/// A matrix of bfloat16 numbers as kernels read it.
class Bfloat16Matrix {
 public:
  Bfloat16Matrix() = default;
  /// Of W [out][in], or of its transpose, for inputs that so many planes carry. It stays empty
  /// where the kernels have no such products, or where a weight is no bfloat16 number.
  Bfloat16Matrix(const Kernels& kernels, const std::vector<float>& weight, int out, int in,
                 int planes, bool transpose);

  bool empty() const { return numbers_.empty(); }

  /// Y = W (x − μ) + b, or Y += … . Shape: y [rows.rows][out], bias [out], or [species][out] with
  /// indices.
  void multiply(const Kernels& kernels, const CodeRows& rows, const float* bias,
                const int32_t* bias_index, float* y, int64_t ldy, bool add,
                Workspace& workspace) const;

 private:
  int out_ = 0, words_ = 0, planes_ = 0;
  std::vector<int32_t> numbers_;  // [⌈out/panel⌉][words][panel], two to a word
};

}  // namespace equibit
