// y = W Q(x) + b of one layer, in the number format that its recipe says, and its reverse.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "operations/bfloat16.h"
#include "operations/rounding.h"
#include "operations/tensors.h"
#include "operations/workspace.h"

namespace equibit {

/// Codes of a matrix as the kernels read them.
struct PackedCodes {
  CodeLayout layout = CodeLayout::kPairs;
  int planes = 1;
  int out = 0;
  int words = 0, group_words = 0, groups = 0;
  std::vector<int32_t> codes, offsets;
  std::vector<float> steps;
};

/// The step NAME [1] that a model learned, or 0 where it has none.
float learned_step(const Tensors& tensors, const std::string& name);

/// Weights are float32, or integer codes with steps per output channel and group of inputs.
///
/// Scalars are rounded to codes of the recipe's bits with one step per row, or with a step that was
/// learned, and their products are integer products; so are those of vectors rounded component by
/// component. Vectors rounded to magnitude and direction have a step per channel that no integer
/// sum over channels can share: they are carried by 24-bit codes, as exact as float32, where tiles
/// multiply those fast, and by float32 elsewhere. The gradients of the reverse pass are carried by
/// 16-bit codes, with one step per row: 2⁻¹⁶ of the row's largest, two orders of magnitude below
/// what the recipe rounds. The reverse pass uses the rounded weights and passes straight through
/// the rounding of inputs, unless a learned step clipped them.
///
/// Products of bfloat16 numbers are summed in float32. Vectors, which are float32, and the
/// gradients of the reverse pass are carried by three and by two such numbers, which is float32
/// itself and 2⁻¹⁶ of each; where the processor has no such products, or no fast ones, both are
/// float32.
///
/// Several products of one input, side by side, are one product; where their inputs are rounded
/// differently, that is a list of products behind the same face.
class Product {
 public:
  Product() = default;

  /// Reads NAME.weight [out, in] and NAME.bias [out], if there is to be one. For weights in codes
  /// also NAME.codes [out, in] (int8), NAME.steps [out, groups], NAME.group [1] and NAME.bits [2]
  /// (int32; bits of the inputs, 24 for vectors, and of the weights); without codes, inputs are
  /// rounded to those bits and multiplied in floats. With NAME.bfloat16 [1] (int32) instead, inputs
  /// are so many bfloat16 numbers, 1 or 3, and so are weights if products are to be fast. Where
  /// inputs are centred NAME.centers [species, in], whose contribution is in a bias [species, out]
  /// unless codes are missing, and where their step was learned NAME.step [1]. For rounded vectors
  /// NAME.vector [3], the codec and bits of magnitude and direction. With NAME.parts [1], all of
  /// this under NAME.0, NAME.1, … instead.
  Product(const Kernels& kernels, const Tensors& tensors, const std::string& name, int in, int out,
          bool bias, int species);

  /// In words, for people.
  std::string forward_arithmetic() const;
  std::string reverse_arithmetic() const;

  /// Whether gradients pass in codes, or in bfloat16 numbers.
  bool reverse_in_codes() const {
    if (!parts_.empty()) return parts_[0].reverse_in_codes();
    return !reverse_.empty() || !reverse_numbers_.empty();
  }

  int in() const { return in_; }
  int out() const { return out_; }

  /// Bytes per row that `forward` leaves in `clips` for `backward`; 0 where nothing is clipped.
  int64_t clips() const;

  /// y = W Q(x) + b, or y += … . Shape: x [rows][in], y [rows][out], clips [rows][clips()] or null.
  void forward(int64_t rows, const int32_t* species, const float* x, int64_t ldx, float* y,
               int64_t ldy, bool add, Workspace& workspace, uint8_t* clips = nullptr) const;

  /// The same for vectors. Shape: x [atoms][components][in], y [atoms][components][out].
  void forward_vectors(int64_t atoms, int components, const float* x, float* y,
                       Workspace& workspace) const;

  /// dx = Wᵀ dy, or dx += … . Shape: dy [rows][out], dx [rows][in], clips as `forward` left them
  /// for the same rows.
  void backward(int64_t rows, const float* dy, int64_t ldy, float* dx, int64_t ldx, bool add,
                Workspace& workspace, const uint8_t* clips = nullptr) const;

  /// dx from dy for the input x of `forward_vectors`.
  void backward_vectors(int64_t atoms, int components, const float* x, const float* dy, float* dx,
                        Workspace& workspace) const;

 private:
  void read_codes(const Tensors& tensors, const std::string& name);
  std::string words_of_parts(std::string (Product::*words)() const) const;
  void forward_numbers(const CodeRows& rows, const float* bias, float* y, int64_t ldy, bool add,
                       Workspace& workspace) const;
  /// With steps of rows, codes are rounded to them and what is clipped is noted.
  void run(const PackedCodes& codes, const CodeRows& rows, const float* steps, uint8_t* clips,
           const float* bias, const int32_t* bias_index, float* y, int64_t ldy, bool add,
           Workspace& workspace) const;
  void forward_rows(int64_t rows, const int32_t* species, const float* x, int64_t ldx,
                    const float* steps, float* y, int64_t ldy, bool add, Workspace& workspace,
                    uint8_t* clips) const;

  const Kernels* kernels_ = nullptr;
  int in_ = 0, out_ = 0;
  std::vector<float> bias_;
  std::vector<float> forward_;   // packed W, where the product runs in floats
  std::vector<float> backward_;  // packed Wᵀ, likewise

  int highest_ = 0;  // code of an input; 0 where the product runs in floats
  int decoded_ = 0;  // the same of an input that is decoded for such a product
  int weight_bits_ = 0;
  int planes_ = 0;  // bfloat16 numbers of an input; 0 where it is something else
  Bfloat16Matrix numbers_, reverse_numbers_;
  float step_ = 0.0f;  // that was learned, or 0
  VectorRounding vectors_;
  PackedCodes codes_;
  std::vector<float> centers_;
  std::vector<PackedCodes> reverse_;    // Wᵀ, by groups of inputs
  std::vector<float> reverse_factors_;  // [groups][out] steps, which scale dy

  std::vector<Product> parts_;  // side by side, in the place of all of the above
};

}  // namespace equibit
