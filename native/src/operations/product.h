// y = W Q(x) + b of one layer, in the number format that its recipe says, and its reverse.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "operations/tensors.h"
#include "operations/workspace.h"

namespace equibit {

/// Codes of a matrix as the kernels read them.
struct PackedCodes {
  enum class Layout { kBytes, kPairs, kSplit };

  Layout layout = Layout::kPairs;
  int planes = 1;
  int out = 0;
  int words = 0, group_words = 0, groups = 0;
  std::vector<int32_t> codes, offsets;
  std::vector<float> steps;
};

/// Weights are float32, or integer codes with steps per output channel and group of inputs.
///
/// Scalars are rounded to codes of the recipe's bits with one step per row, and their products are
/// integer products. Vectors, which are first rounded to magnitude and direction where the recipe
/// says so, have a step per channel that no integer sum over channels can share: they are carried by
/// 24-bit codes, as exact as float32, where tiles multiply those fast, and by float32 elsewhere. The
/// gradients of the reverse pass are carried by 16-bit codes, with one step per row: 2⁻¹⁶ of the
/// row's largest, two orders of magnitude below what the recipe rounds. The reverse pass uses the
/// rounded weights and passes straight through the rounding of inputs.
class Product {
 public:
  Product() = default;

  /// Reads NAME.weight [out, in] and NAME.bias [out], if there is to be one. For weights in codes
  /// also NAME.codes [out, in] (int8), NAME.steps [out, groups], NAME.group [1] and NAME.bits [1]
  /// (int32; bits of the inputs, 24 for vectors), and where inputs are centred NAME.centers [species, in], whose
  /// contribution is in a bias [species, out]. For rounded vectors NAME.vector [2], the largest
  /// codes of magnitude and direction.
  Product(const Kernels& kernels, const Tensors& tensors, const std::string& name, int in, int out,
          bool bias, int species);

  /// In words, for people.
  std::string forward_arithmetic() const;
  std::string reverse_arithmetic() const;

  int in() const { return in_; }
  int out() const { return out_; }

  /// y = W Q(x) + b, or y += … . Shape: x [rows][in], y [rows][out].
  void forward(int64_t rows, const int32_t* species, const float* x, int64_t ldx, float* y,
               int64_t ldy, bool add, Workspace& workspace) const;

  /// The same for vectors. Shape: x [atoms][components][in], y [atoms][components][out].
  void forward_vectors(int64_t atoms, int components, const float* x, float* y,
                       Workspace& workspace) const;

  /// dx = Wᵀ dy, or dx += … . Shape: dy [rows][out], dx [rows][in].
  void backward(int64_t rows, const float* dy, int64_t ldy, float* dx, int64_t ldx, bool add,
                Workspace& workspace) const;

  /// dx from dy for the input x of `forward_vectors`.
  void backward_vectors(int64_t atoms, int components, const float* x, const float* dy, float* dx,
                        Workspace& workspace) const;

 private:
  void read_codes(const Tensors& tensors, const std::string& name);
  void run(const PackedCodes& codes, const CodeRows& rows, const float* bias,
           const int32_t* bias_index, float* y, int64_t ldy, bool add, Workspace& workspace) const;

  const Kernels* kernels_ = nullptr;
  int in_ = 0, out_ = 0;
  std::vector<float> bias_;
  std::vector<float> forward_;   // packed W, where the product runs in floats
  std::vector<float> backward_;  // packed Wᵀ, likewise

  int highest_ = 0;                      // code of an input; 0 where the product runs in floats
  int magnitude_ = 0, direction_ = 0;    // codes of rounded vectors, 0 where they are not rounded
  PackedCodes codes_;
  std::vector<float> centers_;
  std::vector<PackedCodes> reverse_;     // Wᵀ, by groups of inputs
  std::vector<float> reverse_factors_;   // [groups][out] steps, which scale dy
};

}  // namespace equibit
