#include "operations/product.h"

namespace equibit {
namespace {

constexpr int kLongestSum = 512;  // of 16-bit times 8-bit codes in 32 bits

/// [⌈rows/panel⌉][columns][panel] of a row-major matrix, or of its transpose.
std::vector<float> packed(const std::vector<float>& matrix, int rows, int columns, int panel,
                          bool transpose) {
  const int panels = (rows + panel - 1) / panel;
  std::vector<float> result(static_cast<size_t>(panels) * columns * panel, 0.0f);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      const size_t at = (static_cast<size_t>(r / panel) * columns + c) * panel + r % panel;
      result[at] = transpose ? matrix[static_cast<size_t>(c) * rows + r]
                             : matrix[static_cast<size_t>(r) * columns + c];
    }
  }
  return result;
}

int single(const Tensors& tensors, const std::string& name, int lowest, int highest) {
  const int value = tensors.integers(name, {1})[0];
  if (value < lowest || value > highest) throw ModelFault(name + " is out of range");
  return value;
}

}  // namespace

Product::Product(const Kernels& kernels, const Tensors& tensors, const std::string& name, int in,
                 int out, bool bias, int species)
    : kernels_(&kernels), in_(in), out_(out) {
  const std::vector<float> weight = tensors.floats(name + ".weight", {out, in});
  backward_ = packed(weight, in, out, kernels.panel, true);
  if (tensors.has(name + ".codes")) {
    read_codes(tensors, name);
  } else {
    forward_ = packed(weight, out, in, kernels.panel, false);
  }
  if (tensors.has(name + ".vector")) {
    const std::vector<int32_t> highest = tensors.integers(name + ".vector", {2});
    if (highest[0] < 1 || highest[0] > 65535 || highest[1] < 1 || highest[1] > 32767 ||
        input_ != Input::kFloat) {
      throw ModelFault(name + ".vector is out of range");
    }
    input_ = Input::kVectors;
    highest_ = highest[0];
    direction_ = highest[1];
  }
  if (tensors.has(name + ".centers")) {
    centers_ = tensors.floats(name + ".centers", {species, in});
    bias_ = tensors.floats(name + ".bias", {species, out});
  } else if (bias) {
    bias_ = tensors.floats(name + ".bias", {out});
  }
}

void Product::read_codes(const Tensors& tensors, const std::string& name) {
  const std::vector<int8_t> codes = tensors.codes(name + ".codes", {out_, in_});
  const int bits = single(tensors, name + ".bits", 2, 16);
  input_ = Input::kCodes;
  highest_ = (1 << (bits - 1)) - 1;
  bytes_ = bits <= 8 && kernels_->gemm_codes8 != nullptr;
  int group = single(tensors, name + ".group", 2, 1 << 16);
  const int stored = group >= in_ ? 1 : (in_ + group - 1) / group;
  if (stored > 1 && group % 4 != 0) {
    throw ModelFault(name + ": input channels that share a step must be a multiple of four");
  }
  const std::vector<float> steps = tensors.floats(name + ".steps", {out_, stored});
  int repeat = 1;  // groups here per stored step
  if (stored == 1) {
    group = in_;
    if (in_ > kLongestSum) {
      group = kLongestSum;
      repeat = (in_ + group - 1) / group;
    }
  } else if (group > kLongestSum) {
    throw ModelFault(name + ": too many input channels share a step");
  }
  const int per_word = bytes_ ? 4 : 2;
  const int panel = kernels_->panel, panels = (out_ + panel - 1) / panel;
  words_ = (in_ + per_word - 1) / per_word;
  group_words_ = (group + per_word - 1) / per_word;
  groups_ = stored * repeat;
  codes_.assign(static_cast<size_t>(panels) * words_ * panel, 0);
  steps_.assign(static_cast<size_t>(panels) * groups_ * panel, 0.0f);
  offsets_.assign(steps_.size(), 0);
  for (int o = 0; o < out_; ++o) {
    const size_t block = static_cast<size_t>(o / panel), lane = static_cast<size_t>(o % panel);
    for (int g = 0; g < groups_; ++g) {
      steps_[(block * groups_ + g) * panel + lane] =
          steps[static_cast<size_t>(o) * stored + g / repeat];
    }
    for (int k = 0; k < in_; ++k) {
      const int code = codes[static_cast<size_t>(o) * in_ + k];
      int32_t& word = codes_[(block * words_ + k / per_word) * panel + lane];
      const int shift = 32 / per_word * (k % per_word);
      const uint32_t mask = bytes_ ? 0xffu : 0xffffu;
      word = static_cast<int32_t>(static_cast<uint32_t>(word) |
                                  (static_cast<uint32_t>(code) & mask) << shift);
      if (bytes_) offsets_[(block * groups_ + k / group) * panel + lane] -= 128 * code;
    }
  }
}

void Product::forward(int64_t rows, const int32_t* species, const float* x, int64_t ldx, float* y,
                      int64_t ldy, bool add, Workspace& workspace) const {
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  if (input_ != Input::kCodes) {
    kernels_->gemm(rows, in_, out_, x, ldx, forward_.data(), bias, y, ldy, add);
    return;
  }
  int32_t* codes = workspace.take<int32_t>(rows * words_);
  float* scales = workspace.take<float>(rows);
  const float* centers = centers_.empty() ? nullptr : centers_.data();
  const CodeProduct product = {.rows = rows,
                               .words = words_,
                               .group_words = group_words_,
                               .groups = groups_,
                               .out = out_,
                               .x = codes,
                               .ldx = words_,
                               .scales = scales,
                               .weight = codes_.data(),
                               .steps = steps_.data(),
                               .offsets = offsets_.data(),
                               .bias = bias,
                               .bias_index = centers != nullptr ? species : nullptr,
                               .y = y,
                               .ldy = ldy,
                               .add = add};
  if (bytes_) {
    kernels_->round_rows8(rows, in_, x, ldx, centers, species, highest_,
                          reinterpret_cast<uint8_t*>(codes), 4 * words_, scales);
    kernels_->gemm_codes8(product);
  } else {
    kernels_->round_rows16(rows, in_, x, ldx, centers, species, highest_,
                           reinterpret_cast<int16_t*>(codes), 2 * words_, scales);
    kernels_->gemm_codes16(product);
  }
}

void Product::forward_vectors(int64_t atoms, int components, const float* x, float* y,
                              Workspace& workspace) const {
  const int64_t rows = atoms * components;
  if (input_ == Input::kVectors) {
    float* rounded = workspace.take<float>(rows * in_);
    kernels_->round_vectors(atoms, components, in_, x, highest_, direction_, rounded);
    x = rounded;
  }
  forward(rows, nullptr, x, in_, y, out_, false, workspace);
}

void Product::backward(int64_t rows, const float* dy, int64_t ldy, float* dx, int64_t ldx,
                       bool add) const {
  kernels_->gemm(rows, out_, in_, dy, ldy, backward_.data(), nullptr, dx, ldx, add);
}

void Product::backward_vectors(int64_t atoms, int components, const float* x, const float* dy,
                               float* dx) const {
  backward(atoms * components, dy, out_, dx, in_, false);
  if (input_ == Input::kVectors) {
    kernels_->round_vectors_backward(atoms, components, in_, x, highest_, direction_, dx);
  }
}

}  // namespace equibit
