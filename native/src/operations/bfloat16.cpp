#include "operations/bfloat16.h"

#include <bit>

#include "kernels/bfloat16.h"

namespace equibit {
namespace {

/// A float whose lower bits are those of a bfloat16 number: none. What is not a number stays none.
uint32_t rounded_bits(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  const bool none = (bits & 0x7fffffffu) > 0x7f800000u;
  return none ? 0x7fc00000u : nearest;
}

}  // namespace

float nearest_bfloat16(float x) { return std::bit_cast<float>(rounded_bits(x)); }

void round_to_bfloat16(const CodeRows& p, float* values) {
  for (int64_t r = 0; r < p.rows; ++r, values += p.n) {
    const float* in = p.x + r * p.ldx;
    if (p.centers != nullptr) {
      const float* center = p.centers + static_cast<int64_t>(p.species[r]) * p.n;
      for (int c = 0; c < p.n; ++c) values[c] = nearest_bfloat16(in[c] - center[c]);
    } else {
      for (int c = 0; c < p.n; ++c) values[c] = nearest_bfloat16(in[c]);
    }
  }
}

Bfloat16Matrix::Bfloat16Matrix(const Kernels& kernels, const std::vector<float>& weight, int out,
                               int in, int planes, bool transpose)
    : out_(out), planes_(planes) {
  if (kernels.bfloat16 == nullptr || planes > kernels.bfloat16->most_planes) return;
  for (const float w : weight) {
    if (nearest_bfloat16(w) != w) return;
  }
  const int unit = kernels.bfloat16->words_per_row, panel = kernels.panel;
  words_ = ((in + 1) / 2 + unit - 1) / unit * unit;
  const int panels = (out + panel - 1) / panel;
  numbers_.assign(static_cast<size_t>(panels) * words_ * panel, 0);
  for (int o = 0; o < out; ++o) {
    for (int k = 0; k < in; ++k) {
      const size_t at =
          transpose ? static_cast<size_t>(k) * out + o : static_cast<size_t>(o) * in + k;
      const uint32_t number = std::bit_cast<uint32_t>(weight[at]) >> 16;
      const size_t word = static_cast<size_t>(o / panel) * words_ + k / 2;
      int32_t& both = numbers_[word * panel + o % panel];
      both = static_cast<int32_t>(static_cast<uint32_t>(both) | number << (16 * (k % 2)));
    }
  }
}

void Bfloat16Matrix::multiply(const Kernels& kernels, const CodeRows& rows, const float* bias,
                              const int32_t* bias_index, float* y, int64_t ldy, bool add,
                              Workspace& workspace) const {
  const int64_t room = (rows.rows + 15) / 16 * 16 * planes_ * words_;
  CodeRows inputs = rows;
  inputs.codes = workspace.take<int32_t>(room);
  inputs.words = words_;
  kernels.bfloat16->split(inputs, planes_);
  CodeProduct product{};
  product.rows = rows.rows;
  product.words = words_;
  product.out = out_;
  product.planes = planes_;
  product.x = inputs.codes;
  product.weight = numbers_.data();
  product.bias = bias;
  product.bias_index = bias_index;
  product.y = y;
  product.ldy = ldy;
  product.add = add;
  kernels.bfloat16->gemm(product);
}

}  // namespace equibit
