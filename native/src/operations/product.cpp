#include "operations/product.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

namespace equibit {
namespace {

constexpr int kLongestSum = 512;  // of 16-bit times 8-bit codes in 32 bits
constexpr int kHighest16 = 32767;
constexpr int kVectorBits = 24;
constexpr int kFloatPlanes = 3;    // bfloat16 numbers that are a float32
constexpr int kReversePlanes = 2;  // that carry a gradient

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

int checked(int value, const std::string& name, int lowest, int highest) {
  if (value < lowest || value > highest) throw ModelFault(name + " is out of range");
  return value;
}

VectorRounding vectors_of(const Tensors& tensors, const std::string& name) {
  using Codec = VectorRounding::Codec;
  VectorRounding result;
  if (!tensors.has(name + ".vector")) return result;
  const std::vector<int32_t> values = tensors.integers(name + ".vector", {3});
  result.codec = static_cast<Codec>(checked(values[0], name + ".vector", 1, 4));
  const int magnitude = checked(values[1], name + ".vector", 2, 16);
  const int direction = checked(values[2], name + ".vector", 2, 16);
  const bool components = result.codec == Codec::kComponents;
  result.magnitude = (1 << (components ? magnitude - 1 : magnitude)) - 1;
  result.direction = (1 << (direction - 1)) - 1;
  if (result.codec == Codec::kCodebook) {
    result.codewords = octant_codewords(checked(direction, name + ".vector", 5, 16));
  }
  result.step = learned_step(tensors, name + ".step");
  return result;
}

/// Codes of a matrix [out][in] for inputs of up to 8, 16 or 24 bits. `group` inputs share one of
/// the steps [out][groups].
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
  if (tiles && split_fits(words, group_words)) {
    result.layout = CodeLayout::kSplit;
    result.planes = bits > 16 ? 3 : (wide ? 2 : 1);
  } else if (!wide && heaviest <= kernels.codes8_limit) {
    result.layout = CodeLayout::kBytes;
  }
  const int per_word = result.layout == CodeLayout::kPairs ? 2 : 4;
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
  const bool shifted = result.layout == CodeLayout::kBytes;
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
      word = static_cast<int32_t>(static_cast<uint32_t>(word) | (static_cast<uint32_t>(code) & mask)
                                                                    << shift);
      if (shifted) result.offsets[(block * result.groups + k / group) * panel + lane] -= 128 * code;
    }
  }
  return result;
}

}  // namespace

float learned_step(const Tensors& tensors, const std::string& name) {
  if (!tensors.has(name)) return 0.0f;
  const float step = tensors.floats(name, {1})[0];
  if (!(step > 1e-30f && step < 1e30f)) throw ModelFault(name + " is out of range");
  return step;
}

Product::Product(const Kernels& kernels, const Tensors& tensors, const std::string& name, int in,
                 int out, bool bias, int species)
    : kernels_(&kernels), in_(in), out_(out) {
  if (tensors.has(name + ".parts")) {
    const int parts = checked(tensors.integers(name + ".parts", {1})[0], name + ".parts", 1, 16);
    int total = 0;
    for (int part = 0; part < parts; ++part) {
      const std::string own = name + "." + std::to_string(part);
      const std::vector<int64_t>& shape = tensors.shape(own + ".weight");
      const int64_t width = shape.empty() ? 0 : shape[0];
      if (width < 1 || width > out - total) throw ModelFault(own + ".weight is too large");
      total += static_cast<int>(width);
      parts_.emplace_back(kernels, tensors, own, in, static_cast<int>(width), bias, species);
    }
    if (total != out) throw ModelFault(name + " lacks outputs");
    return;
  }
  vectors_ = vectors_of(tensors, name);
  if (tensors.has(name + ".codes")) {
    read_codes(tensors, name);
  } else if (tensors.has(name + ".bfloat16")) {
    const int planes = tensors.integers(name + ".bfloat16", {1})[0];
    planes_ = checked(planes, name + ".bfloat16", 1, kFloatPlanes);
  } else if (tensors.has(name + ".bits")) {
    const int bits = tensors.integers(name + ".bits", {2})[0];
    if (bits != kVectorBits) decoded_ = (1 << (checked(bits, name + ".bits", 2, 16) - 1)) - 1;
    step_ = learned_step(tensors, name + ".step");
  }
  if (highest_ == 0 || reverse_.empty()) {
    const std::vector<float> weight = tensors.floats(name + ".weight", {out, in});
    if (planes_ > 0) {
      numbers_ = Bfloat16Matrix(kernels, weight, out, in, planes_, false);
      reverse_numbers_ = Bfloat16Matrix(kernels, weight, in, out, kReversePlanes, true);
    }
    if (highest_ == 0 && numbers_.empty()) forward_ = packed(weight, out, in, kernels.panel, false);
    if (reverse_numbers_.empty()) backward_ = packed(weight, in, out, kernels.panel, true);
  }
  if (tensors.has(name + ".centers")) {
    centers_ = tensors.floats(name + ".centers", {species, in});
    bias_ = decoded_ > 0 ? tensors.floats(name + ".bias", {out})
                         : tensors.floats(name + ".bias", {species, out});
  } else if (bias) {
    bias_ = tensors.floats(name + ".bias", {out});
  }
}

void Product::read_codes(const Tensors& tensors, const std::string& name) {
  const std::vector<int8_t> codes = tensors.codes(name + ".codes", {out_, in_});
  const std::vector<int32_t> widths = tensors.integers(name + ".bits", {2});
  const int bits = checked(widths[0], name + ".bits", 2, kVectorBits);
  if (bits > 16 && bits < kVectorBits) throw ModelFault(name + ".bits is out of range");
  weight_bits_ = checked(widths[1], name + ".bits", 2, 8);
  const int group = checked(tensors.integers(name + ".group", {1})[0], name + ".group", 2, 1 << 16);
  if (vectors_.codec == VectorRounding::Codec::kNone) step_ = learned_step(tensors, name + ".step");
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
  if (bits <= 16 || codes_.layout == CodeLayout::kSplit) {
    // Of 24 bits a few codes stay unused, since the largest is not exact in float32.
    highest_ = bits == kVectorBits ? (1 << (bits - 1)) - 256 : (1 << (bits - 1)) - 1;
  }

  // Wᵀ dy: the steps belong to what is summed over, so they scale dy, apart for each group.
  if (stored > 1 && group % kernels_->panel != 0) return;
  for (int g = 0; g < stored; ++g) {
    const int begin = stored == 1 ? 0 : g * group;
    const int end = stored == 1 ? in_ : std::min(in_, begin + group);
    reverse_.push_back(pack_codes(
        *kernels_, end - begin, out_, out_, 16, [&](int k, int o) { return code_at(o, begin + k); },
        [](int, int) { return 1.0f; }));
    for (int o = 0; o < out_; ++o) reverse_factors_.push_back(step_at(o, g));
  }
}

std::string Product::forward_arithmetic() const {
  if (!parts_.empty()) return words_of_parts(&Product::forward_arithmetic);
  if (decoded_ > 0) return "float32 of rounded inputs and weights";
  if (planes_ == 1) {
    return numbers_.empty() ? "float32 of bfloat16 inputs" : "bfloat16, sums in float32";
  }
  if (!numbers_.empty()) return "float32 as three bfloat16 numbers";
  if (highest_ == 0) return "float32";
  const int bits = std::bit_width(static_cast<unsigned>(highest_)) + 1;
  return "integer: " + std::to_string(bits) + "-bit inputs, " + std::to_string(weight_bits_) +
         "-bit weights";
}

std::string Product::reverse_arithmetic() const {
  if (!parts_.empty()) return words_of_parts(&Product::reverse_arithmetic);
  if (!reverse_numbers_.empty()) return "gradients as two bfloat16 numbers";
  if (reverse_.empty()) return "float32";
  return "integer: 16-bit gradients, " + std::to_string(weight_bits_) + "-bit weights";
}

std::string Product::words_of_parts(std::string (Product::*words)() const) const {
  std::string all, last;
  for (const Product& part : parts_) {
    const std::string own = (part.*words)();
    if (own == last) continue;
    all += (all.empty() ? "" : "; ") + own;
    last = own;
  }
  return all;
}

int64_t Product::clips() const {
  int64_t bytes = step_ > 0.0f ? in_ : 0;
  for (const Product& part : parts_) bytes += part.clips();
  return bytes;
}

void Product::run(const PackedCodes& codes, const CodeRows& wanted, const float* steps,
                  uint8_t* clips, const float* bias, const int32_t* bias_index, float* y,
                  int64_t ldy, bool add, Workspace& workspace) const {
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
  const bool given = steps != nullptr;
  if (given) {
    std::copy(steps, steps + rows.rows, rows.scales);
    round_to_steps(rows, codes.layout, codes.planes, clips, this->clips());
  }
  switch (codes.layout) {
    case CodeLayout::kBytes:
      if (!given) kernels_->round_rows8(rows);
      kernels_->gemm_codes8(product);
      break;
    case CodeLayout::kPairs:
      if (!given) kernels_->round_rows16(rows);
      kernels_->gemm_codes16(product);
      break;
    case CodeLayout::kSplit:
      if (!given) kernels_->round_split(rows);
      kernels_->gemm_split(product);
      break;
  }
}

void Product::forward(int64_t rows, const int32_t* species, const float* x, int64_t ldx, float* y,
                      int64_t ldy, bool add, Workspace& workspace, uint8_t* clips) const {
  if (!parts_.empty()) {
    // Noted row by row within each part, so parts follow each other.
    for (const Product& part : parts_) {
      part.forward(rows, species, x, ldx, y, ldy, add, workspace, clips);
      y += part.out_;
      if (clips != nullptr) clips += rows * part.clips();
    }
    return;
  }
  float* steps = nullptr;
  if (step_ > 0.0f) {
    steps = workspace.take<float>(rows);
    std::fill(steps, steps + rows, step_);
  }
  forward_rows(rows, species, x, ldx, steps, y, ldy, add, workspace, clips);
}

void Product::forward_rows(int64_t rows, const int32_t* species, const float* x, int64_t ldx,
                           const float* steps, float* y, int64_t ldy, bool add,
                           Workspace& workspace, uint8_t* clips) const {
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  const bool centered = !centers_.empty();
  CodeRows wanted = {.rows = rows,
                     .n = in_,
                     .x = x,
                     .ldx = ldx,
                     .centers = centered ? centers_.data() : nullptr,
                     .species = species,
                     .factors = nullptr,
                     .highest = decoded_ > 0 ? decoded_ : highest_,
                     .codes = nullptr,
                     .words = 0,
                     .scales = nullptr};
  if (planes_ > 0) {
    forward_numbers(wanted, bias, y, ldy, add, workspace);
    return;
  }
  if (decoded_ > 0) {
    float* decoded = workspace.take<float>(rows * in_);
    wanted.scales = workspace.take<float>(rows);
    if (steps != nullptr) {
      std::copy(steps, steps + rows, wanted.scales);
    } else {
      row_steps(wanted);
    }
    round_to_values(wanted, clips, clips != nullptr ? this->clips() : 0, decoded);
    x = decoded;
    ldx = in_;
  }
  if (highest_ == 0) {
    kernels_->gemm(rows, in_, out_, x, ldx, forward_.data(), bias, y, ldy, add);
    return;
  }
  run(codes_, wanted, steps, clips, bias, centered ? species : nullptr, y, ldy, add, workspace);
}

void Product::forward_numbers(const CodeRows& rows, const float* bias, float* y, int64_t ldy,
                              bool add, Workspace& workspace) const {
  const int32_t* species = rows.centers != nullptr ? rows.species : nullptr;
  if (!numbers_.empty()) {
    numbers_.multiply(*kernels_, rows, bias, species, y, ldy, add, workspace);
    return;
  }
  const float* x = rows.x;
  int64_t ldx = rows.ldx;
  if (planes_ < kFloatPlanes) {
    float* rounded = workspace.take<float>(rows.rows * in_);
    round_to_bfloat16(rows, rounded);
    x = rounded;
    ldx = in_;
  }
  if (species != nullptr) {
    for (int64_t r = 0; r < rows.rows; ++r) {
      const float* own = bias + static_cast<int64_t>(species[r]) * out_;
      for (int o = 0; o < out_; ++o) y[r * ldy + o] = own[o] + (add ? y[r * ldy + o] : 0.0f);
    }
    add = true;
    bias = nullptr;
  }
  kernels_->gemm(rows.rows, in_, out_, x, ldx, forward_.data(), bias, y, ldy, add);
}

void Product::forward_vectors(int64_t atoms, int components, const float* x, float* y,
                              Workspace& workspace) const {
  const int64_t rows = atoms * components;
  float* steps = nullptr;
  if (vectors_.codec == VectorRounding::Codec::kComponents) {
    steps = workspace.take<float>(rows);
    component_steps(vectors_, atoms, components, in_, x, steps);
  } else if (vectors_.codec != VectorRounding::Codec::kNone) {
    float* rounded = workspace.take<float>(rows * in_);
    round_vectors(*kernels_, vectors_, atoms, components, in_, x, rounded);
    x = rounded;
  }
  forward_rows(rows, nullptr, x, in_, steps, y, out_, false, workspace, nullptr);
}

void Product::backward(int64_t rows, const float* dy, int64_t ldy, float* dx, int64_t ldx, bool add,
                       Workspace& workspace, const uint8_t* clips) const {
  if (!parts_.empty()) {
    for (const Product& part : parts_) {
      part.backward(rows, dy, ldy, dx, ldx, add, workspace, clips);
      add = true;
      dy += part.out_;
      if (clips != nullptr) clips += rows * part.clips();
    }
    return;
  }
  if (step_ > 0.0f && clips != nullptr && add) {
    float* own = workspace.take<float>(rows * in_);
    backward(rows, dy, ldy, own, in_, false, workspace, clips);
    for (int64_t r = 0; r < rows; ++r) {
      kernels_->add(in_, own + r * in_, dx + r * ldx, dx + r * ldx);
    }
    return;
  }
  if (!reverse_numbers_.empty()) {
    CodeRows gradients{};
    gradients.rows = rows;
    gradients.n = out_;
    gradients.x = dy;
    gradients.ldx = ldy;
    reverse_numbers_.multiply(*kernels_, gradients, nullptr, nullptr, dx, ldx, add, workspace);
  } else if (reverse_.empty()) {
    kernels_->gemm(rows, out_, in_, dy, ldy, backward_.data(), nullptr, dx, ldx, add);
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
    run(reverse_[g], wanted, nullptr, nullptr, nullptr, nullptr, dx + column, ldx, add, workspace);
    column += reverse_[g].out;
  }
  if (step_ > 0.0f && clips != nullptr) drop_clipped(rows, in_, clips, in_, dx, ldx);
}

void Product::backward_vectors(int64_t atoms, int components, const float* x, const float* dy,
                               float* dx, Workspace& workspace) const {
  const int64_t rows = atoms * components;
  backward(rows, dy, out_, dx, in_, false, workspace);
  if (vectors_.codec == VectorRounding::Codec::kComponents) {
    if (vectors_.step > 0.0f) {
      drop_beyond(rows, in_, x, vectors_.step, vectors_.magnitude, dx, in_);
    }
  } else if (vectors_.codec != VectorRounding::Codec::kNone) {
    round_vectors_backward(*kernels_, vectors_, atoms, components, in_, x, dx);
  }
}

}  // namespace equibit
