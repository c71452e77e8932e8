// y = W Q(x) + b of one layer, in the number format that its recipe says, and its reverse.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "operations/tensors.h"
#include "operations/workspace.h"

namespace equibit {

/// Weights are float32, or integer codes with steps. Inputs of the latter are float32 (weights
/// alone are rounded), codes with one step per row, or vectors rounded to magnitude and direction.
/// The latter have a step per channel, which no integer sum over channels can share: they are
/// multiplied in float32. The reverse pass uses the rounded weights and passes straight through the
/// rounding of inputs.
class Product {
 public:
  Product() = default;

  /// Reads NAME.weight [out, in] and NAME.bias [out], if there is to be one. For inputs rounded to
  /// codes also NAME.codes [out, in] (int8), NAME.steps [out, groups], NAME.group [1] and
  /// NAME.bits [1] (int32), and where inputs are centred NAME.centers [species, in], whose
  /// contribution is in a bias [species, out]. For rounded vectors NAME.vector [2], the largest
  /// codes of magnitude and direction.
  Product(const Kernels& kernels, const Tensors& tensors, const std::string& name, int in, int out,
          bool bias, int species);

  int in() const { return in_; }
  int out() const { return out_; }

  /// y = W Q(x) + b, or y += … . Shape: x [rows][in], y [rows][out].
  void forward(int64_t rows, const int32_t* species, const float* x, int64_t ldx, float* y,
               int64_t ldy, bool add, Workspace& workspace) const;

  /// The same for vectors. Shape: x [atoms][components][in], y [atoms][components][out].
  void forward_vectors(int64_t atoms, int components, const float* x, float* y,
                       Workspace& workspace) const;

  /// dx = Wᵀ dy, or dx += … . Shape: dy [rows][out], dx [rows][in].
  void backward(int64_t rows, const float* dy, int64_t ldy, float* dx, int64_t ldx,
                bool add) const;

  /// dx from dy for the input x of `forward_vectors`.
  void backward_vectors(int64_t atoms, int components, const float* x, const float* dy,
                        float* dx) const;

 private:
  enum class Input { kFloat, kCodes, kVectors };

  void read_codes(const Tensors& tensors, const std::string& name);
  const Kernels* kernels_ = nullptr;
  int in_ = 0, out_ = 0;
  std::vector<float> bias_;
  std::vector<float> forward_;   // packed W, where the product runs in floats
  std::vector<float> backward_;  // packed Wᵀ

  Input input_ = Input::kFloat;
  int highest_ = 0;    // code of a scalar, or of a magnitude
  int direction_ = 0;  // code of a direction component
  bool bytes_ = false;
  int words_ = 0, group_words_ = 0, groups_ = 0;
  std::vector<int32_t> codes_, offsets_;
  std::vector<float> steps_, centers_;
};

}  // namespace equibit
