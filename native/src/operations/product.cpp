#include "operations/product.h"

#include <algorithm>
#include <cstdlib>

namespace equibit {
namespace {

constexpr int kLongestSum = 512;  // of 16-bit times 8-bit codes in 32 bits
constexpr int kHighest16 = 32767;
constexpr int kVectorBits = 24;

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

/// Codes of a matrix [out][in] for inputs of up to 8, 16 or 24 bits. `group` inputs share one of the
/// steps [out][groups].
template <typename CodeAt, typename StepAt>
PackedCodes pack_codes(const Kernels& kernels, int out, int in, int group, int bits,
                       const CodeAt& code_at, const StepAt& step_at) {
  PackedCodes result;
  const bool wide = bits > 8;
  result.out = out;
  const int stored = group >= in ? 1 : (in + group - 1) / group;
  int repeat = 1;  // groups here per stored step
  if (stored == 1) {
    group = in;
    if (in > kLongestSum) {
      group = kLongestSum;
      repeat = (in + group - 1) / group;
    }
  }
  const auto words_of = [](int n, int per_word) { return (n + per_word - 1) / per_word; };
  result.groups = stored * repeat;
  int words = words_of(in, 4), group_words = words_of(group, 4);
  const bool tiles = kernels.gemm_split != nullptr;
  if (tiles && result.groups == 1) group_words = words = (words + 15) / 16 * 16;
  int heaviest = 0;
  for (int o = 0; o < out; ++o) {
    for (int k = 0; k < in; ++k) heaviest = std::max(heaviest, std::abs(code_at(o, k)));
  }
  if (!wide && heaviest <= kernels.codes8_limit) {
    result.layout = PackedCodes::Layout::kBytes;
  } else if (wide && tiles && split_fits(words, group_words)) {
    result.layout = PackedCodes::Layout::kSplit;
    result.planes = bits > 16 ? 3 : 2;
  }
  const int per_word = result.layout == PackedCodes::Layout::kPairs ? 2 : 4;
  if (per_word == 2) {
    words = words_of(in, 2);
    group_words = words_of(group, 2);
  }
  result.words = words;
  result.group_words = group_words;
  const int panel = kernels.panel, panels = (out + panel - 1) / panel;
  result.codes.assign(static_cast<size_t>(panels) * words * panel, 0);
  result.steps.assign(static_cast<size_t>(panels) * result.groups * panel, 0.0f);
  result.offsets.assign(result.steps.size(), 0);
  const bool shifted = result.layout == PackedCodes::Layout::kBytes;
  for (int o = 0; o < out; ++o) {
    const size_t block = static_cast<size_t>(o / panel), lane = static_cast<size_t>(o % panel);
    for (int g = 0; g < result.groups; ++g) {
      result.steps[(block * result.groups + g) * panel + lane] = step_at(o, g / repeat);
    }
    for (int k = 0; k < in; ++k) {
      const int code = code_at(o, k);
      int32_t& word = result.codes[(block * words + k / per_word) * panel + lane];
      const int shift = 32 / per_word * (k % per_word);
      const uint32_t mask = per_word == 4 ? 0xffu : 0xffffu;
      word = static_cast<int32_t>(static_cast<uint32_t>(word) |
                                  (static_cast<uint32_t>(code) & mask) << shift);
      if (shifted) result.offsets[(block * result.groups + k / group) * panel + lane] -= 128 * code;
    }
  }
  return result;
}

}  // namespace

Product::Product(const Kernels& kernels, const Tensors& tensors, const std::string& name, int in,
                 int out, bool bias, int species)
    : kernels_(&kernels), in_(in), out_(out) {
  if (tensors.has(name + ".codes")) read_codes(tensors, name);
  if (highest_ == 0 || reverse_.empty()) {
    const std::vector<float> weight = tensors.floats(name + ".weight", {out, in});
    if (highest_ == 0) forward_ = packed(weight, out, in, kernels.panel, false);
    backward_ = packed(weight, in, out, kernels.panel, true);
  }
  if (tensors.has(name + ".vector")) {
    const std::vector<int32_t> highest = tensors.integers(name + ".vector", {2});
    if (highest[0] < 1 || highest[0] > 65535 || highest[1] < 1 || highest[1] > 32767) {
      throw ModelFault(name + ".vector is out of range");
    }
    magnitude_ = highest[0];
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
  const int bits = single(tensors, name + ".bits", 2, kVectorBits);
  if (bits > 16 && bits < kVectorBits) throw ModelFault(name + ".bits is out of range");
  const int group = single(tensors, name + ".group", 2, 1 << 16);
  const int stored = group >= in_ ? 1 : (in_ + group - 1) / group;
  if (stored > 1 && group % 4 != 0) {
    throw ModelFault(name + ": input channels that share a step must be a multiple of four");
  }
  if (stored > 1 && group > kLongestSum) {
    throw ModelFault(name + ": too many input channels share a step");
  }
  const std::vector<float> steps = tensors.floats(name + ".steps", {out_, stored});
  const auto code_at = [&](int o, int k) {
    return static_cast<int>(codes[static_cast<size_t>(o) * in_ + k]);
  };
  const auto step_at = [&](int o, int g) { return steps[static_cast<size_t>(o) * stored + g]; };
  codes_ = pack_codes(*kernels_, out_, in_, group, bits, code_at, step_at);
  if (bits <= 16 || codes_.layout == PackedCodes::Layout::kSplit) {
    // Of 24 bits a few codes stay unused, since the largest is not exact in float32.
    highest_ = bits == kVectorBits ? (1 << (bits - 1)) - 256 : (1 << (bits - 1)) - 1;
  }

  // Wᵀ dy: the steps belong to what is summed over, so they scale dy, apart for each group.
  if (stored > 1 && group % kernels_->panel != 0) return;
  for (int g = 0; g < stored; ++g) {
    const int begin = stored == 1 ? 0 : g * group;
    const int end = stored == 1 ? in_ : std::min(in_, begin + group);
    reverse_.push_back(pack_codes(
        *kernels_, end - begin, out_, out_, 16,
        [&](int k, int o) { return code_at(o, begin + k); }, [](int, int) { return 1.0f; }));
    for (int o = 0; o < out_; ++o) reverse_factors_.push_back(step_at(o, g));
  }
}

std::string Product::forward_arithmetic() const {
  if (highest_ == 0) return "float32";
  const std::string bits = highest_ <= 127 ? "8" : (highest_ <= kHighest16 ? "16" : "24");
  return "integer: " + bits + "-bit inputs, 8-bit weights";
}

std::string Product::reverse_arithmetic() const {
  return reverse_.empty() ? "float32" : "integer: 16-bit gradients, 8-bit weights";
}

void Product::run(const PackedCodes& codes, const CodeRows& wanted, const float* bias,
                  const int32_t* bias_index, float* y, int64_t ldy, bool add,
                  Workspace& workspace) const {
  CodeRows rows = wanted;
  rows.words = codes.words;
  rows.codes = workspace.take<int32_t>((rows.rows + 15) / 16 * 16 * codes.words * codes.planes);
  rows.scales = workspace.take<float>(rows.rows);
  const CodeProduct product = {.rows = rows.rows,
                               .words = codes.words,
                               .group_words = codes.group_words,
                               .groups = codes.groups,
                               .out = codes.out,
                               .planes = codes.planes,
                               .x = rows.codes,
                               .scales = rows.scales,
                               .weight = codes.codes.data(),
                               .steps = codes.steps.data(),
                               .offsets = codes.offsets.data(),
                               .bias = bias,
                               .bias_index = bias_index,
                               .y = y,
                               .ldy = ldy,
                               .add = add};
  switch (codes.layout) {
    case PackedCodes::Layout::kBytes:
      kernels_->round_rows8(rows);
      kernels_->gemm_codes8(product);
      break;
    case PackedCodes::Layout::kPairs:
      kernels_->round_rows16(rows);
      kernels_->gemm_codes16(product);
      break;
    case PackedCodes::Layout::kSplit:
      kernels_->round_split(rows);
      kernels_->gemm_split(product);
      break;
  }
}

void Product::forward(int64_t rows, const int32_t* species, const float* x, int64_t ldx, float* y,
                      int64_t ldy, bool add, Workspace& workspace) const {
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  if (highest_ == 0) {
    kernels_->gemm(rows, in_, out_, x, ldx, forward_.data(), bias, y, ldy, add);
    return;
  }
  const bool centered = !centers_.empty();
  const CodeRows wanted = {.rows = rows,
                           .n = in_,
                           .x = x,
                           .ldx = ldx,
                           .centers = centered ? centers_.data() : nullptr,
                           .species = species,
                           .factors = nullptr,
                           .highest = highest_,
                           .codes = nullptr,
                           .words = 0,
                           .scales = nullptr};
  run(codes_, wanted, bias, centered ? species : nullptr, y, ldy, add, workspace);
}

void Product::forward_vectors(int64_t atoms, int components, const float* x, float* y,
                              Workspace& workspace) const {
  const int64_t rows = atoms * components;
  if (magnitude_ > 0) {
    float* rounded = workspace.take<float>(rows * in_);
    kernels_->round_vectors(atoms, components, in_, x, magnitude_, direction_, rounded);
    x = rounded;
  }
  forward(rows, nullptr, x, in_, y, out_, false, workspace);
}

void Product::backward(int64_t rows, const float* dy, int64_t ldy, float* dx, int64_t ldx,
                       bool add, Workspace& workspace) const {
  if (reverse_.empty()) {
    kernels_->gemm(rows, out_, in_, dy, ldy, backward_.data(), nullptr, dx, ldx, add);
    return;
  }
  int64_t column = 0;
  for (size_t g = 0; g < reverse_.size(); ++g) {
    const CodeRows wanted = {.rows = rows,
                             .n = out_,
                             .x = dy,
                             .ldx = ldy,
                             .centers = nullptr,
                             .species = nullptr,
                             .factors = reverse_factors_.data() + g * static_cast<size_t>(out_),
                             .highest = kHighest16,
                             .codes = nullptr,
                             .words = 0,
                             .scales = nullptr};
    run(reverse_[g], wanted, nullptr, nullptr, dx + column, ldx, add, workspace);
    column += reverse_[g].out;
  }
}

void Product::backward_vectors(int64_t atoms, int components, const float* x, const float* dy,
                               float* dx, Workspace& workspace) const {
  backward(atoms * components, dy, out_, dx, in_, false, workspace);
  if (magnitude_ > 0) {
    kernels_->round_vectors_backward(atoms, components, in_, x, magnitude_, direction_, dx);
  }
}

}  // namespace equibit
