#include "files/model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <numbers>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "files/container.h"
#include "files/faults.h"
#include "operations/rounding.h"
#include "operations/tensors.h"
#include "potentials/equivariant_transformer.h"
#include "potentials/so3krates.h"

namespace equibit {
namespace {

constexpr int64_t kModelVersion = 3;
constexpr int64_t kMostValues = int64_t{1} << 28;  // of one tensor, unpacked

constexpr int32_t kVectorBits = 24;     // of the components of rounded vectors, multiplied out
constexpr int32_t kBfloat16Bits = 16;   // of weights, whose integer codes have 8 at most
constexpr int32_t kRoundedNumbers = 1;  // bfloat16 numbers that carry an input that is rounded,
constexpr int32_t kFloatNumbers = 3;    // and one that is float32

/// Sizes of a matrix product.
struct Shape {
  int64_t out, in;
};

/// The arrays of the engine, which `Tensors` only points to.
struct Arrays {
  Tensors tensors;
  std::deque<std::vector<float>> floats;
  std::deque<std::vector<double>> doubles;
  std::deque<std::vector<int8_t>> bytes;
  std::deque<std::vector<int32_t>> integers;

  void add(const std::string& name, std::vector<float> values, std::vector<int64_t> shape) {
    floats.push_back(std::move(values));
    tensors.add(name, {Tensor::Type::kFloat32, floats.back().data(), std::move(shape)});
  }
  void add(const std::string& name, std::vector<double> values, std::vector<int64_t> shape) {
    doubles.push_back(std::move(values));
    tensors.add(name, {Tensor::Type::kFloat64, doubles.back().data(), std::move(shape)});
  }
  void add(const std::string& name, std::vector<int8_t> values, std::vector<int64_t> shape) {
    bytes.push_back(std::move(values));
    tensors.add(name, {Tensor::Type::kInt8, bytes.back().data(), std::move(shape)});
  }
  void add(const std::string& name, std::vector<int32_t> values, std::vector<int64_t> shape) {
    integers.push_back(std::move(values));
    tensors.add(name, {Tensor::Type::kInt32, integers.back().data(), std::move(shape)});
  }
};

[[noreturn]] void unfit(const std::string& what) {
  throw FileFault("its tensors do not fit together: " + what);
}

float half(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  double value = exponent == 0    ? std::ldexp(mantissa, -24)
                 : exponent == 31 ? (mantissa == 0 ? HUGE_VAL : NAN)
                                  : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>((bits & 0x8000) != 0 ? -value : value);
}

template <typename T>
std::vector<double> as_doubles(const StoredTensor& tensor) {
  std::vector<double> values(static_cast<size_t>(tensor.count()));
  for (size_t k = 0; k < values.size(); ++k) {
    T value;
    std::memcpy(&value, tensor.data + k * sizeof(T), sizeof(T));
    values[k] = static_cast<double>(value);
  }
  return values;
}

std::vector<float> to_floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

/// What a recipe says of the layers, as far as the engine asks.
struct Quantization {
  const Json* layers;
  const Json* common;     // to all layers that do not say otherwise; null before version 3
  const Json* exponents;  // of centres, by name; null from version 3 on
  std::string name;
  bool scalars = false, centered = false, learned = false, bfloat16 = false, local = false;
  // Of vectors the codec, 0 where they stay float, bits, and whether their step was learned.
  int32_t codec = 0, magnitude_bits = 0, direction_bits = 0;
  bool learned_vectors = false;
  int32_t scalar_bits = 0, attention_bits = 0;
};

/// Of what the rows are that enter a product.
enum class Inputs { kAtoms, kEdges };

/// Whether a scale is a step that was learned, or found anew each time.
bool learned_scale(const Json& json, const std::string& recipe) {
  const std::string& scale = json.text("scale");
  if (scale != "dynamic" && scale != "static") {
    throw UnsupportedModel("the engine does not run the recipe " + recipe + " (steps of scale " +
                           scale + ")");
  }
  return scale == "static";
}

int32_t bits(const Json& json, const char* what, int64_t most = 16) {
  const int64_t value = json.integer(what);
  if (value < 2 || value > most) throw FileFault(std::string("its ") + what + " are out of range");
  return static_cast<int32_t>(value);
}

std::optional<Quantization> quantization_of(const Json* json) {
  if (json == nullptr || json->is_null()) return std::nullopt;
  const Json& recipe = json->at("recipe");
  Quantization q;
  q.layers = &json->at("layers");
  q.common = json->find("common");
  q.exponents = json->find("center_exponents");
  q.name = recipe.at("name").text("name");
  const Json& scalars = recipe.at("scalars");
  if (!scalars.is_null()) {
    q.scalars = true;
    q.scalar_bits = bits(scalars.at("bits"), "bits of scalars");
    q.centered = scalars.at("centered").boolean("centered");
    q.bfloat16 = scalars.at("scale").text("scale") == "bfloat16";
    q.learned = !q.bfloat16 && learned_scale(scalars.at("scale"), q.name);
  }
  const Json& vectors = recipe.at("vectors");
  const std::string& codec = vectors.at("codec").text("codec");
  if (codec != "identity") {
    // As VectorRounding's.
    constexpr const char* kCodecs[] = {"mddq", "mddq-codebook", "cartesian", "mddq-cube"};
    for (int32_t k = 0; k < 4; ++k) {
      if (codec == kCodecs[k]) q.codec = k + 1;
    }
    if (q.codec == 0) {
      throw UnsupportedModel("the engine does not run the recipe " + q.name +
                             " (vectors of codec " + codec + ")");
    }
    q.magnitude_bits = bits(vectors.at("magnitude_bits"), "magnitude bits");
    q.direction_bits = bits(vectors.at("direction_bits"), "direction bits");
    q.learned_vectors = learned_scale(vectors.at("scale"), q.name);
  }
  q.local = vectors.at("frame").text("frame") == "local";
  const Json& attention = recipe.at("attention_bits");
  if (!attention.is_null()) q.attention_bits = bits(attention, "attention bits");
  if (q.bfloat16 && q.attention_bits != 0) {
    throw UnsupportedModel("the engine does not run the recipe " + q.name +
                           " (queries and keys as bfloat16)");
  }
  return q;
}

class Source {
 public:
  Source(const Container& container, const Quantization* quantization)
      : tensors_(container.tensors()), quantization_(quantization) {}

  const Quantization* quantization() const { return quantization_; }

  std::vector<double> doubles(const std::string& name) const {
    const StoredTensor& tensor = find(name);
    if (tensor.type == "float64") return as_doubles<double>(tensor);
    if (tensor.type == "float32") return as_doubles<float>(tensor);
    if (tensor.type == "int8") return as_doubles<int8_t>(tensor);
    if (tensor.type == "float16") {
      std::vector<double> values = as_doubles<uint16_t>(tensor);
      for (double& value : values) value = half(static_cast<uint16_t>(value));
      return values;
    }
    unfit(name + " is of type " + tensor.type);
  }
  std::vector<float> floats(const std::string& name) const { return to_floats(doubles(name)); }
  const std::vector<int64_t>& shape(const std::string& name) const { return find(name).shape; }
  bool has(const std::string& name) const { return tensors_.count(name) != 0; }

  const Json* layer(const std::string& name) const {
    return quantization_ == nullptr ? nullptr : quantization_->layers->find(name);
  }
  bool rounds_inputs(const std::string& name) const {
    const Json* entry = layer(name);
    if (entry == nullptr) return false;
    const Json* only = entry->find("weight_only");
    return only == nullptr || !only->boolean("weight_only");
  }

  /// Width of the codes of a layer's inputs; files of version 1 have one for all.
  int32_t input_bits(const std::string& name) const {
    const Json* own = said(*layer(name), "input_bits");
    return own == nullptr ? quantization_->scalar_bits : bits(*own, "input bits");
  }

  /// Whether the codes of a layer's weights are bfloat16 numbers.
  bool bfloat16(const std::string& name) const {
    return needed(*layer(name), "bits").integer("bits") == kBfloat16Bits;
  }

  /// Codes of a matrix, or of blocks on its diagonal, as the file has them.
  struct Codes {
    int64_t heads, out, in;  // of each block
    int32_t bits;
    std::vector<int8_t> codes;   // [heads, out, in] integers, or else
    std::vector<float> numbers;  // bfloat16
    std::vector<float> steps;    // [heads, out, groups]
    int64_t groups, group;

    Shape whole() const { return {heads * out, heads * in}; }
    float step(int64_t row, int64_t k) const {
      const int64_t own = groups > 1 ? k / group : 0;
      return steps[static_cast<size_t>(row * groups + own)];
    }
  };
  Codes codes(const std::string& name) const {
    const Json& entry = *layer(name);
    if (entry.find("offsets") != nullptr) {
      throw UnsupportedModel("the engine does not run weights with offsets (" + name + ")");
    }
    Codes result = sizes_of(entry, name);
    const int64_t count = result.heads * result.out * result.in;
    const int32_t width = result.bits =
        bfloat16(name) ? kBfloat16Bits : bits(needed(entry, "bits"), "bits", 8);
    const StoredTensor& packed = find(name + ".codes");
    const int64_t bytes = (count * width + 7) / 8;
    const bool alone = has(name + ".steps");  // else steps follow the codes
    if (packed.type != "uint8" || packed.count() < bytes || (alone && packed.count() > bytes)) {
      unfit(name + ".codes cannot hold " + std::to_string(count) + " codes");
    }
    if (width == kBfloat16Bits) result.numbers = numbers_of(packed, count, name);
    result.codes.resize(width == kBfloat16Bits ? 0 : static_cast<size_t>(count));
    for (size_t k = 0; k < result.codes.size(); ++k) {
      int value = 0;
      for (int32_t bit = 0; bit < width; ++bit) {
        const size_t at = k * static_cast<size_t>(width) + static_cast<size_t>(bit);
        value |= (std::to_integer<int>(packed.data[at / 8]) >> (at % 8) & 1) << bit;
      }
      const int top = 1 << (width - 1);
      result.codes[k] = static_cast<int8_t>((value ^ top) - top);
    }
    const std::string& granularity = needed(entry, "granularity").text("granularity");
    const int64_t size = needed(entry, "group_size").integer("group_size");
    if (size < 2) unfit(name + " has groups of " + std::to_string(size));
    result.group = granularity == "group" ? std::min(size, result.in) : result.in;
    result.groups = (result.in + result.group - 1) / result.group;
    const StoredTensor& stored = alone ? find(name + ".steps") : packed;
    std::vector<float> steps = steps_of(entry, stored, alone ? 0 : bytes, name);
    if (granularity == "tensor" && steps.size() == 1) {
      steps.assign(static_cast<size_t>(result.heads * result.out), steps[0]);
    }
    if (static_cast<int64_t>(steps.size()) != result.heads * result.out * result.groups) {
      unfit(name + ".steps has " + std::to_string(steps.size()) + " steps");
    }
    result.steps = std::move(steps);
    return result;
  }

  /// The weight as the network uses it, [out, in], and its sizes; blocks become block-diagonal.
  std::pair<std::vector<float>, Shape> weight(const std::string& name) const {
    Codes c;
    std::vector<float> blocks;
    if (layer(name) == nullptr) {
      c = sizes_of(shape(name + ".weight"), name);
      blocks = floats(name + ".weight");
    } else {
      c = codes(name);
      const bool numbers = !c.numbers.empty();
      for (int64_t k = 0; k < c.heads * c.out * c.in; ++k) {
        const auto at = static_cast<size_t>(k);
        const float code = numbers ? c.numbers[at] : static_cast<float>(c.codes[at]);
        blocks.push_back(code * c.step(k / c.in, k % c.in));
      }
    }
    return {on_the_diagonal(blocks, c), c.whole()};
  }

  /// [heads, out, in] as [heads·out, heads·in].
  template <typename T>
  static std::vector<T> on_the_diagonal(const std::vector<T>& blocks, const Codes& c) {
    if (c.heads == 1) return blocks;
    std::vector<T> result(static_cast<size_t>(c.heads * c.out * c.heads * c.in), T{0});
    for (int64_t row = 0; row < c.heads * c.out; ++row) {
      const auto from = blocks.begin() + row * c.in;
      std::copy(from, from + c.in, result.begin() + row * c.heads * c.in + row / c.out * c.in);
    }
    return result;
  }

  /// A step that was learned.
  float step(const std::string& name) const {
    const std::vector<double> log2 = doubles(name + ".log2_step");
    if (log2.size() != 1) unfit(name + ".log2_step is no number");
    return static_cast<float>(std::exp2(log2[0]));
  }

  /// Mean inputs by species, [species, in].
  std::vector<float> centers(const std::string& name) const {
    const Json* other = layer(name)->find("centers_of");
    const std::string owner = other == nullptr ? name : other->text("centers_of");
    const std::string key = owner + ".input_quantizer.centers";
    if (layer(owner) == nullptr) throw FileFault("the layer " + owner + " is missing");
    const Json& written = quantization_->exponents == nullptr ? layer(owner)->at("center")
                                                              : quantization_->exponents->at(key);
    const int64_t exponent = written.integer("a centre's exponent");
    if (std::abs(exponent) > 126) throw FileFault("its centres are out of range");
    std::vector<double> values = doubles(key);
    for (double& value : values) value = std::ldexp(value, static_cast<int>(exponent));
    return to_floats(values);
  }

 private:
  /// What a layer's entry says, or what is common to all.
  const Json* said(const Json& entry, std::string_view key) const {
    const Json* own = entry.find(key);
    if (own != nullptr || quantization_->common == nullptr) return own;
    return quantization_->common->find(key);
  }
  const Json& needed(const Json& entry, std::string_view key) const {
    const Json* found = said(entry, key);
    return found == nullptr ? entry.at(key) : *found;  // which says what is missing
  }

  const StoredTensor& find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw FileFault("the tensor " + name + " is missing");
    if (found->second.count() > kMostValues) unfit(name + " is larger than any of a model");
    return found->second;
  }

  static Codes sizes_of(const Json& entry, const std::string& name) {
    std::vector<int64_t> axes;
    for (const Json& axis : entry.at("shape").list("shape")) axes.push_back(axis.integer("shape"));
    return sizes_of(axes, name);
  }

  /// [out, in], or [heads, out, in].
  static Codes sizes_of(std::vector<int64_t> axes, const std::string& name) {
    if (axes.size() == 2) axes.insert(axes.begin(), 1);
    if (axes.size() != 3) unfit(name + " is no matrix");
    int64_t room = kMostValues;
    for (const int64_t axis : {axes[0], axes[1], axes[0], axes[2]}) {
      if (axis < 1 || axis > room) unfit(name + " has an impossible shape");
      room /= axis;
    }
    Codes result{};
    result.heads = axes[0];
    result.out = axes[1];
    result.in = axes[2];
    return result;
  }

  /// The bfloat16 numbers at the beginning of a tensor of bytes.
  static std::vector<float> numbers_of(const StoredTensor& packed, int64_t count,
                                       const std::string& name) {
    std::vector<float> numbers(static_cast<size_t>(count));
    for (size_t k = 0; k < numbers.size(); ++k) {
      const auto low = std::to_integer<uint32_t>(packed.data[2 * k]);
      const auto high = std::to_integer<uint32_t>(packed.data[2 * k + 1]);
      numbers[k] = std::bit_cast<float>(low << 16 | high << 24);
      if (!std::isfinite(numbers[k])) unfit(name + ".codes holds numbers that are not finite");
    }
    return numbers;
  }

  /// Steps that begin at a byte of a tensor, or a tensor of floats.
  std::vector<float> steps_of(const Json& entry, const StoredTensor& stored, int64_t begin,
                              const std::string& name) const {
    const std::string& format = needed(entry, "step_format").text("step_format");
    if (format != "log2") return floats(name + ".steps");
    if (stored.type != "uint8") unfit(name + ".steps is of type " + stored.type);
    const int64_t first = entry.at("first_step").integer("first_step");
    if (std::abs(first) > 4096) unfit(name + ".steps are out of range");
    std::vector<float> steps;
    for (int64_t k = begin; k < stored.count(); ++k) {
      const int64_t index = std::to_integer<int64_t>(stored.data[k]) + first;
      const int64_t sixteenth = ((index % 16) + 16) % 16;
      const double mantissa = std::pow(2.0, static_cast<double>(sixteenth) / 16.0);
      steps.push_back(
          static_cast<float>(std::ldexp(mantissa, static_cast<int>((index - sixteenth) / 16))));
    }
    return steps;
  }

  const std::map<std::string, StoredTensor>& tensors_;
  const Quantization* quantization_;
};

void add_norm(Arrays& arrays, const Source& source, const std::string& name) {
  for (const char* part : {".weight", ".bias"}) {
    arrays.add(name + part, source.floats(name + part), source.shape(name + part));
  }
}

/// Inputs that share a step, if products of integer codes can follow them: as many everywhere in
/// the matrix, and whole words. Else 0.
int64_t even_group(const Source::Codes& c) {
  if (!c.numbers.empty()) return 0;
  if (c.groups == 1) return c.heads * c.in;
  const bool even = c.heads == 1 || c.in % c.group == 0;
  return even && c.group % 4 == 0 && c.group <= 512 ? c.group : 0;
}

/// The codes of products of one input, whose inputs are rounded to so many bits. Where the groups
/// of blocks do not cut the whole matrix evenly, codes are left out, and decoded weights serve.
void add_codes(Arrays& arrays, const Source& source, const std::string& name,
               const std::vector<std::string>& parts, int32_t input_bits) {
  std::vector<int8_t> codes;
  std::vector<float> steps;
  int64_t in = 0, out = 0, groups = 0, group = 0;
  int32_t weight_bits = 0;
  for (const std::string& part : parts) {
    const Source::Codes c = source.codes(part);
    const auto [rows, columns] = c.whole();
    in = columns;
    out += rows;
    group = even_group(c);
    groups = group == 0 ? 0 : (in + group - 1) / group;
    weight_bits = std::max(weight_bits, c.bits);
    if (group == 0) continue;
    const std::vector<int8_t> whole = Source::on_the_diagonal(c.codes, c);
    codes.insert(codes.end(), whole.begin(), whole.end());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        // Codes of other blocks are 0, so that any step will do.
        const int64_t k = g * group - row / c.out * c.in;
        steps.push_back(c.step(row, k >= 0 && k < c.in ? k : 0));
      }
    }
  }
  arrays.add(name + ".bits", std::vector<int32_t>{input_bits, weight_bits}, {2});
  if (group == 0) return;
  arrays.add(name + ".codes", std::move(codes), {out, in});
  arrays.add(name + ".steps", std::move(steps), {out, groups});
  const auto members = static_cast<int32_t>(std::max<int64_t>(group, 2));
  arrays.add(name + ".group", std::vector<int32_t>{members}, {1});
}

/// What has to be alike in products of one input for them to be one product.
struct InputRounding {
  int64_t in = 0, group = 0;
  int32_t bits = 0;
  float step = 0.0f;
  std::vector<float> centers;
  bool rounded = false, bfloat16 = false;
  bool operator==(const InputRounding&) const = default;
};

InputRounding rounding_of(const Source& source, const std::string& part, int64_t in,
                          Inputs inputs) {
  const Quantization* q = source.quantization();
  InputRounding result;
  result.in = in;
  result.rounded = q != nullptr && q->scalars && source.rounds_inputs(part);
  if (!result.rounded) return result;
  result.bits = source.input_bits(part);
  result.bfloat16 = q->bfloat16;
  if (q->bfloat16 && result.bits != kBfloat16Bits)
    throw FileFault("its input bits are out of range");
  result.group = q->bfloat16 ? in : even_group(source.codes(part));
  if (q->learned) result.step = source.step(part + ".input_quantizer");
  // Edges have no species to be centred by.
  if (q->centered && inputs != Inputs::kEdges) result.centers = source.centers(part);
  return result;
}

/// Products of one input side by side; parts without a bias get zeros.
void add_product(Arrays& arrays, const Source& source, const std::string& name,
                 const std::vector<std::string>& parts, Inputs inputs = Inputs::kAtoms) {
  std::vector<float> weight;
  std::vector<double> bias;
  int64_t in = 0, out = 0;
  InputRounding rounding;
  for (const std::string& part : parts) {
    auto [values, shape] = source.weight(part);
    if (in != 0 && shape.in != in) unfit(part + " and its neighbours differ in inputs");
    in = shape.in;
    out += shape.out;
    weight.insert(weight.end(), values.begin(), values.end());
    std::vector<double> own(static_cast<size_t>(shape.out), 0.0);
    if (source.has(part + ".bias")) own = source.doubles(part + ".bias");
    if (static_cast<int64_t>(own.size()) != shape.out) unfit(part + ".bias");
    bias.insert(bias.end(), own.begin(), own.end());
    const InputRounding next = rounding_of(source, part, in, inputs);
    if (part == parts[0]) {
      rounding = next;
    } else if (next != rounding) {
      arrays.add(name + ".parts", std::vector<int32_t>{static_cast<int32_t>(parts.size())}, {1});
      for (size_t k = 0; k < parts.size(); ++k) {
        add_product(arrays, source, name + "." + std::to_string(k), {parts[k]}, inputs);
      }
      return;
    }
  }
  if (rounding.bfloat16) {
    arrays.add(name + ".bfloat16", std::vector<int32_t>{kRoundedNumbers}, {1});
  } else if (rounding.rounded) {
    add_codes(arrays, source, name, parts, rounding.bits);
    if (rounding.step != 0.0f) arrays.add(name + ".step", std::vector<float>{rounding.step}, {1});
  }
  if (rounding.centers.empty() || rounding.group == 0) {
    arrays.add(name + ".bias", to_floats(bias), {out});
  }
  if (!rounding.centers.empty()) {
    const auto species = static_cast<int64_t>(rounding.centers.size()) / in;
    if (species * in != static_cast<int64_t>(rounding.centers.size())) {
      unfit(name + " has odd centres");
    }
    arrays.add(name + ".centers", rounding.centers, {species, in});
    std::vector<float> biases;
    for (int64_t z = 0; z < species && rounding.group != 0; ++z) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = bias[static_cast<size_t>(o)];
        for (int64_t k = 0; k < in; ++k) {
          sum += static_cast<double>(rounding.centers[static_cast<size_t>(z * in + k)]) *
                 weight[static_cast<size_t>(o * in + k)];
        }
        biases.push_back(static_cast<float>(sum));
      }
    }
    if (rounding.group != 0) arrays.add(name + ".bias", std::move(biases), {species, out});
  }
  arrays.add(name + ".weight", std::move(weight), {out, in});
}

/// The learned steps of queries and keys, where there are any.
void add_attention_steps(Arrays& arrays, const Source& source, const std::string& attention,
                         const std::string& query, const std::string& key) {
  const Quantization* q = source.quantization();
  if (q == nullptr || q->attention_bits == 0 || !(q->scalars && q->learned)) return;
  arrays.add(query, std::vector<float>{source.step(attention + ".query_input")}, {1});
  arrays.add(key, std::vector<float>{source.step(attention + ".key_input")}, {1});
}

/// Coupling tensors of real harmonics, ∝ ∫ Y_m Y_n Y_k dΩ, with Σ_mn C_mnk² = 1; see
/// `equibit.engine.couplings`.
class Couplings {
 public:
  Couplings() {
    // Gauss–Legendre nodes by Newton's method; exact for three harmonics of degree 3.
    for (int k = 0; k < kNodes; ++k) {
      double z = std::cos(std::numbers::pi * (k + 0.75) / (kNodes + 0.5)), slope = 1.0;
      for (int round = 0; round < 50; ++round) {
        double before = 1.0, p = z;
        for (int n = 2; n <= kNodes; ++n) {
          const double next = ((2 * n - 1) * z * p - (n - 1) * before) / n;
          before = p;
          p = next;
        }
        slope = kNodes * (z * p - before) / (z * z - 1.0);
        z -= p / slope;
      }
      const double weight = 2.0 / ((1.0 - z * z) * slope * slope);
      for (int phi = 0; phi < 2 * kNodes; ++phi) {
        const double angle = phi * std::numbers::pi / kNodes, r = std::sqrt(1.0 - z * z);
        points_.push_back({r * std::cos(angle), r * std::sin(angle), z});
        weights_.push_back(weight);
      }
    }
  }

  /// [2ℓ1+1][2ℓ2+1][2ℓ3+1]
  std::vector<double> tensor(int l1, int l2, int l3) const {
    const int n1 = 2 * l1 + 1, n2 = 2 * l2 + 1, n3 = 2 * l3 + 1;
    std::vector<double> gaunt(static_cast<size_t>(n1 * n2 * n3), 0.0);
    for (size_t p = 0; p < points_.size(); ++p) {
      const auto a = harmonics(l1, points_[p]), b = harmonics(l2, points_[p]),
                 c = harmonics(l3, points_[p]);
      size_t at = 0;
      for (int m = 0; m < n1; ++m) {
        for (int n = 0; n < n2; ++n) {
          const double both = weights_[p] * a[static_cast<size_t>(m)] * b[static_cast<size_t>(n)];
          for (int k = 0; k < n3; ++k) gaunt[at++] += both * c[static_cast<size_t>(k)];
        }
      }
    }
    double largest = 0.0;
    for (double value : gaunt) largest = std::max(largest, std::abs(value));
    std::vector<double> square(static_cast<size_t>(n3), 0.0);
    for (size_t at = 0; at < gaunt.size(); ++at) {
      if (std::abs(gaunt[at]) < 1e-12 * largest) gaunt[at] = 0.0;
      square[at % static_cast<size_t>(n3)] += gaunt[at] * gaunt[at];
    }
    for (size_t at = 0; at < gaunt.size(); ++at) {
      gaunt[at] /= std::sqrt(square[at % static_cast<size_t>(n3)]);
    }
    return gaunt;
  }

 private:
  static constexpr int kNodes = 8;

  /// Real harmonics, m = −ℓ … ℓ, of one norm for all m.
  static std::array<double, 7> harmonics(int degree, const std::array<double, 3>& r) {
    const auto [x, y, z] = r;
    const double s3 = std::sqrt(3.0), s6 = std::sqrt(6.0), s10 = std::sqrt(10.0),
                 s15 = std::sqrt(15.0);
    if (degree == 1) return {y, z, x};
    if (degree == 2) {
      return {s3 * x * y, s3 * y * z, 0.5 * (3 * z * z - 1), s3 * x * z,
              0.5 * s3 * (x * x - y * y)};
    }
    return {s10 / 4 * y * (3 * x * x - y * y), s15 * x * y * z,
            s6 / 4 * y * (5 * z * z - 1),      0.5 * z * (5 * z * z - 3),
            s6 / 4 * x * (5 * z * z - 1),      s15 / 2 * z * (x * x - y * y),
            s10 / 4 * x * (x * x - 3 * y * y)};
  }

  std::vector<std::array<double, 3>> points_;
  std::vector<double> weights_;
};

/// Channels by degree of irreps such as 64x0e+32x1o.
std::vector<int> channels_of(const std::string& irreps) {
  std::vector<int> channels;
  std::string_view rest = irreps;
  while (!rest.empty()) {
    const std::string_view term = rest.substr(0, rest.find('+'));
    rest = term.size() < rest.size() ? rest.substr(term.size() + 1) : std::string_view();
    const size_t cross = term.find('x');
    int count = 0;
    for (size_t k = 0; k < cross && cross != term.npos && k < 6; ++k) {
      if (term[k] < '0' || term[k] > '9') throw FileFault("its irreps are not usable: " + irreps);
      count = 10 * count + (term[k] - '0');
    }
    if (cross == term.npos || cross == 0 || cross > 6 || term.size() != cross + 3 ||
        term[cross + 1] != static_cast<char>('0' + channels.size()) ||
        channels.size() > kMaxDegree) {
      throw FileFault("its irreps are not usable: " + irreps);
    }
    channels.push_back(count);
  }
  for (size_t degree = 2; degree < channels.size(); ++degree) {
    if (channels[degree] != channels[1]) {
      throw UnsupportedModel("the engine needs degrees above 0 of one width: " + irreps);
    }
  }
  if (channels.empty()) throw FileFault("its irreps are empty");
  return channels;
}

int small(const Json& json, const char* what) {
  const int64_t value = json.integer(what);
  if (value < 0 || value > 1 << 20)
    throw FileFault(std::string("its ") + what + " is out of range");
  return static_cast<int>(value);
}

void add_energy_and_embedding(Arrays& arrays, const Source& source) {
  for (const char* name : {"energy_scale", "energy_shift"}) {
    arrays.add(name, source.doubles(name), source.shape(name));
  }
  arrays.add("embedding", source.floats("embedding.weight"), source.shape("embedding.weight"));
}

Arrays arrays_of(const TransformerConfig& config, const Source& source) {
  Arrays arrays;
  add_energy_and_embedding(arrays, source);
  const std::vector<double> projection = source.doubles("basis.projection");
  const auto& projection_shape = source.shape("basis.projection");
  if (projection_shape.size() != 2) unfit("basis.projection is no matrix");
  const int64_t splines = projection_shape[0], functions = projection_shape[1];
  for (int layer = 0; layer < config.layers; ++layer) {
    const std::string attend = "attention." + std::to_string(layer);
    const std::string update = "update." + std::to_string(layer);
    add_norm(arrays, source, attend + ".norm");
    add_product(arrays, source, attend + ".qkv",
                {attend + ".query", attend + ".key", attend + ".value"});
    if (config.robust) {
      const std::string name = attend + ".attention.temperature";
      arrays.add(attend + ".temperature", source.floats(name), source.shape(name));
    }
    add_attention_steps(arrays, source, attend + ".attention", attend + ".query_step",
                        attend + ".key_step");
    const auto [filter, shape] = source.weight(attend + ".filter");
    if (shape.in != functions) unfit(attend + ".filter and basis.projection differ");
    if (splines > kMostValues / std::max<int64_t>(shape.out, 1))
      unfit(attend + ".filter is too large");
    std::vector<float> table;
    for (int64_t s = 0; s < splines; ++s) {
      for (int64_t o = 0; o < shape.out; ++o) {
        double sum = 0.0;
        for (int64_t f = 0; f < functions; ++f) {
          sum += projection[static_cast<size_t>(s * functions + f)] *
                 filter[static_cast<size_t>(o * functions + f)];
        }
        table.push_back(static_cast<float>(sum));
      }
    }
    arrays.add(attend + ".table", std::move(table), {splines, shape.out});
    add_product(arrays, source, attend + ".output", {attend + ".output"});
    add_norm(arrays, source, update + ".norm");
    for (int degree = 1; degree <= config.max_degree; ++degree) {
      const std::string name = update + ".mix." + std::to_string(degree);
      auto [weight, sizes] = source.weight(name);
      arrays.add(name + ".weight", std::move(weight), {sizes.out, sizes.in});
      if (!source.rounds_inputs(name)) continue;
      const Quantization* q = source.quantization();
      const bool components = q->codec == static_cast<int>(VectorRounding::Codec::kComponents);
      if (source.bfloat16(name) && !components) {
        arrays.add(name + ".bfloat16", std::vector<int32_t>{kFloatNumbers}, {1});
      } else {
        add_codes(arrays, source, name, {name}, components ? q->magnitude_bits : kVectorBits);
      }
      if (q->codec == 0) continue;
      arrays.add(name + ".vector",
                 std::vector<int32_t>{q->codec, q->magnitude_bits, q->direction_bits}, {3});
      if (q->learned_vectors) {
        const float step = source.step(name + ".input_quantizer.codec");
        arrays.add(name + ".step", std::vector<float>{step}, {1});
      }
    }
    if (config.max_degree > 1 && layer < config.layers - 1) {
      const std::string name = update + ".products.weight";
      arrays.add(update + ".products", source.floats(name), source.shape(name));
    }
    add_product(arrays, source, update + ".hidden", {update + ".hidden"});
    add_product(arrays, source, update + ".output", {update + ".output"});
  }
  add_norm(arrays, source, "head.norm");
  for (const std::string part : {"head.hidden", "head.output"}) {
    auto [weight, sizes] = source.weight(part);
    arrays.add(part + ".weight", std::move(weight), {sizes.out, sizes.in});
    arrays.add(part + ".bias", source.floats(part + ".bias"), source.shape(part + ".bias"));
  }
  if (config.max_degree > 1) {
    const Couplings couplings;
    for (int l1 = 1; l1 <= config.max_degree; ++l1) {
      for (int l2 = 1; l2 <= config.max_degree; ++l2) {
        for (int l3 = 1; l3 <= config.max_degree; ++l3) {
          if (l3 < std::abs(l1 - l2) || l3 > l1 + l2 || (l1 + l2 + l3) % 2 != 0) continue;
          arrays.add("coupling." + std::to_string(l1) + "." + std::to_string(l2) + "." +
                         std::to_string(l3),
                     couplings.tensor(l1, l2, l3), {2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1});
        }
      }
    }
  }
  return arrays;
}

/// The largest code of queries and keys, 0 where they are not rounded.
int attention_highest(const Quantization* q) {
  return q == nullptr || q->attention_bits == 0 ? 0 : (1 << (q->attention_bits - 1)) - 1;
}

Arrays so3krates_arrays(const So3kratesConfig& config, const Source& source) {
  Arrays arrays;
  add_energy_and_embedding(arrays, source);
  /// A layer whose inputs are not rounded.
  const auto add_float = [&](const std::string& from, const std::string& to) {
    auto [weight, sizes] = source.weight(from);
    arrays.add(to + ".weight", std::move(weight), {sizes.out, sizes.in});
    arrays.add(to + ".bias", source.floats(from + ".bias"), source.shape(from + ".bias"));
  };
  const std::string branches[2] = {"invariant", "equivariant"};
  for (int index = 0; index < config.layers; ++index) {
    const std::string layer = "layers." + std::to_string(index) + ".";
    std::vector<std::string> atoms, hidden, radial;
    for (int b = 0; b < 2; ++b) {
      const std::string filter = layer + branches[b] + "_filter.", at = std::to_string(b);
      const std::string attention = layer + branches[b] + "_attention";
      const std::string own = layer + "radial." + at;
      if (config.tabulated) {
        add_float(filter + "radial.first", own + ".first");
        add_float(filter + "radial.second", own + ".second");
      } else {
        radial.push_back(filter + "radial.first");
        add_product(arrays, source, own + ".second", {filter + "radial.second"}, Inputs::kEdges);
      }
      add_product(arrays, source, layer + "spherical." + at, {filter + "spherical.second"},
                  Inputs::kEdges);
      hidden.push_back(filter + "spherical.first");
      atoms.push_back(attention + ".query");
      atoms.push_back(attention + ".key");
      add_attention_steps(arrays, source, attention, layer + "query_step." + at,
                          layer + "key_step." + at);
      if (config.robust) {
        const std::string temperature = attention + ".temperature";
        arrays.add(layer + "temperature." + at, source.floats(temperature),
                   source.shape(temperature));
      }
    }
    atoms.push_back(layer + "value");
    add_product(arrays, source, layer + "atoms", atoms);
    if (!config.tabulated) {
      add_product(arrays, source, layer + "radial.first", radial, Inputs::kEdges);
    }
    add_product(arrays, source, layer + "spherical.first", hidden, Inputs::kEdges);
    add_product(arrays, source, layer + "interaction", {layer + "interaction"});
  }
  add_float("head.first", "head.first");
  add_float("head.second", "head.second");
  return arrays;
}

std::unique_ptr<const Network> so3krates(const Json& network, int elements, const Quantization* q,
                                         const Container& container, const Kernels& kernels) {
  So3kratesConfig config{.elements = elements,
                         .layers = small(network.at("layers"), "layers"),
                         .heads = small(network.at("heads"), "heads"),
                         .features = small(network.at("features"), "features"),
                         .degrees = {},
                         .radial_basis = small(network.at("radial_basis"), "radial_basis"),
                         .cutoff = network.at("cutoff").number("cutoff"),
                         .robust = network.at("robust_attention").boolean("robust_attention"),
                         .tabulated = true,
                         .attention_highest = attention_highest(q)};
  for (const Json& degree : network.at("degrees").list("degrees")) {
    config.degrees.push_back(small(degree, "degrees"));
  }
  if (config.layers > 64 || config.features < 1 || config.degrees.empty()) {
    throw ModelFault("the network's sizes are not supported");
  }
  const Source source(container, q);
  for (int index = 0; index < config.layers; ++index) {
    for (const char* branch : {"invariant", "equivariant"}) {
      const std::string second =
          "layers." + std::to_string(index) + "." + branch + "_filter.radial.second";
      if (q != nullptr && q->scalars && source.rounds_inputs(second)) config.tabulated = false;
    }
  }
  const Arrays arrays = so3krates_arrays(config, source);
  return std::make_unique<So3krates>(config, arrays.tensors, kernels);
}

}  // namespace

LoadedModel load_model(std::vector<std::byte> bytes, const Kernels& kernels) {
  const Container container(std::move(bytes), "model", kModelVersion);
  const Json& header = container.header();
  const Json& network = header.at("network");
  const std::string& architecture = network.at("architecture").text("architecture");
  LoadedModel model;
  model.name = header.at("name").text("name");
  for (const Json& element : network.at("elements").list("elements")) {
    const int number = small(element, "elements");
    if (number < 1 || number > 118 ||
        (!model.elements.empty() && number <= model.elements.back())) {
      throw FileFault("its elements are not ascending atomic numbers");
    }
    model.elements.push_back(number);
  }
  const std::optional<Quantization> quantization = quantization_of(header.find("quantization"));
  const Quantization* q = quantization ? &*quantization : nullptr;
  model.recipe = q == nullptr ? "fp32" : q->name;
  if (architecture == "so3krates") {
    model.network =
        so3krates(network, static_cast<int>(model.elements.size()), q, container, kernels);
    return model;
  }
  if (architecture != "equivariant_transformer") {
    throw UnsupportedModel("the engine does not run the network " + architecture + " yet");
  }
  const Json* axial = network.find("axial_messages");
  const std::vector<int> channels = channels_of(network.at("irreps").text("irreps"));
  const bool rounded = q != nullptr && q->codec != 0;
  const TransformerConfig config{
      .elements = static_cast<int>(model.elements.size()),
      .layers = small(network.at("layers"), "layers"),
      .heads = small(network.at("heads"), "heads"),
      .scalars = channels[0],
      .channels = channels.size() > 1 ? channels[1] : 0,
      .max_degree = static_cast<int>(channels.size()) - 1,
      .hidden = static_cast<int>(
          std::min<int64_t>(int64_t{small(network.at("hidden"), "hidden")} * channels[0], 1 << 20)),
      .splines = small(network.at("splines"), "splines"),
      .cutoff = network.at("cutoff").number("cutoff"),
      .softmax = network.at("attention").text("attention") == "softmax",
      .axial = axial != nullptr && axial->boolean("axial_messages"),
      .robust = network.at("robust_attention").boolean("robust_attention"),
      .attention_highest = attention_highest(q),
      .local_frames = rounded && q->local,
      .orient = !rounded || q->local};
  const Arrays arrays = arrays_of(config, Source(container, q));
  model.network = std::make_unique<EquivariantTransformer>(config, arrays.tensors, kernels);
  return model;
}

}  // namespace equibit
