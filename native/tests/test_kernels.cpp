// Every table of kernels against plain loops, and the loader against tensors that do not fit.
// Built with -DEQUIBIT_TESTS=ON, and with -DEQUIBIT_SANITIZE=ON for AddressSanitizer and UBSan.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/bfloat16.h"
#include "kernels/kernels.h"
#include "operations/bfloat16.h"
#include "operations/evaluator.h"
#include "operations/geometry.h"
#include "operations/product.h"
#include "operations/tensors.h"
#include "potentials/equivariant_transformer.h"

namespace equibit {
namespace {

std::mt19937 generator(1);

std::vector<float> random(int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(generator);
  return values;
}

/// Owns arrays and describes them as a model file would.
struct Model {
  Tensors tensors;
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<double>> doubles;
  std::vector<std::vector<int8_t>> bytes;
  std::vector<std::vector<int32_t>> integers;

  void add(const std::string& name, std::vector<float> values, std::vector<int64_t> shape) {
    floats.push_back(std::move(values));
    tensors.add(name, {Tensor::Type::kFloat32, floats.back().data(), std::move(shape)});
  }
  void add_random(const std::string& name, std::vector<int64_t> shape) {
    int64_t n = 1;
    for (int64_t size : shape) n *= size;
    add(name, random(n), std::move(shape));
  }
  void add_double(const std::string& name, std::vector<double> values) {
    const auto n = static_cast<int64_t>(values.size());
    doubles.push_back(std::move(values));
    tensors.add(name, {Tensor::Type::kFloat64, doubles.back().data(), {n}});
  }
};

void test_product(const Kernels& kernels, int rows, int in, int out, int bits, int group) {
  const std::string what = std::string(kernels.name) + " product " + std::to_string(rows) + "×" +
                           std::to_string(in) + "×" + std::to_string(out) + " bits " +
                           std::to_string(bits) + " group " + std::to_string(group);
  Model model;
  const int groups = group >= in ? 1 : (in + group - 1) / group;
  std::vector<int8_t> codes(static_cast<size_t>(in) * out);
  std::uniform_int_distribution<int> code(-127, 127);
  for (int8_t& value : codes) value = static_cast<int8_t>(code(generator));
  std::vector<float> steps = random(static_cast<int64_t>(out) * groups), weight;
  for (float& step : steps) step = std::abs(step) + 0.01f;
  for (int o = 0; o < out; ++o) {
    for (int k = 0; k < in; ++k) {
      weight.push_back(steps[static_cast<size_t>(o * groups + (groups == 1 ? 0 : k / group))] *
                       codes[static_cast<size_t>(o * in + k)]);
    }
  }
  model.add("p.weight", weight, {out, in});
  model.add_random("p.bias", {out});
  if (bits > 0) {
    model.bytes.push_back(codes);
    model.tensors.add("p.codes", {Tensor::Type::kInt8, model.bytes.back().data(), {out, in}});
    model.add("p.steps", steps, {out, groups});
    model.integers.push_back({group});
    model.tensors.add("p.group", {Tensor::Type::kInt32, model.integers.back().data(), {1}});
    model.integers.push_back({bits, 8});
    model.tensors.add("p.bits", {Tensor::Type::kInt32, model.integers.back().data(), {2}});
  }
  const Product product(kernels, model.tensors, "p", in, out, true, 1);
  const std::vector<float> x = random(static_cast<int64_t>(rows) * in);
  std::vector<float> y(static_cast<size_t>(rows) * out, 1.0f);
  Workspace workspace;
  product.forward(rows, nullptr, x.data(), in, y.data(), out, true, workspace);
  kernels.release();
  const std::vector<float>& bias = model.floats[1];
  double worst = 0.0, scale = 0.0;
  const float heaviest = std::abs(*std::max_element(
      weight.begin(), weight.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }));
  for (int r = 0; r < rows; ++r) {
    const float* row = x.data() + static_cast<size_t>(r) * in;
    float largest = 0.0f;
    for (int k = 0; k < in; ++k) largest = std::max(largest, std::abs(row[k]));
    const auto highest = static_cast<float>((1 << (std::max(bits, 1) - 1)) - 1);
    const float step = largest / highest, inverse = highest / largest;
    for (int o = 0; o < out; ++o) {
      double sum = 1.0 + bias[static_cast<size_t>(o)];
      for (int k = 0; k < in; ++k) {
        const double value = bits > 0 ? step * std::nearbyint(row[k] * inverse) : row[k];
        sum += value * weight[static_cast<size_t>(o * in + k)];
      }
      // A 16-bit code at a tie may go either way.
      const double tie = bits >= 16 ? 1.01 * step * heaviest : 0.0;
      worst = std::max(worst, std::abs(sum - y[static_cast<size_t>(r * out + o)]) - tie);
      scale = std::max(scale, std::abs(sum));
    }
  }
  check(worst <= 2e-6 * scale, what + ": error " + std::to_string(worst / scale));
}

void test_nearest_bfloat16() {
  constexpr float kUnit = 1.0f / 128;
  const struct {
    float x, nearest;
  } by_hand[] = {{0.0f, 0.0f},
                 {1.0f + 0.4f * kUnit, 1.0f},
                 {1.0f + 0.5f * kUnit, 1.0f},
                 {1.0f + 0.6f * kUnit, 1.0f + kUnit},
                 {1.0f + 1.5f * kUnit, 1.0f + 2 * kUnit},
                 {2.0f - 0.5f * kUnit, 2.0f},
                 {301.0f, 300.0f},
                 {3.4e38f, HUGE_VALF},
                 {HUGE_VALF, HUGE_VALF}};
  for (const auto& [x, nearest] : by_hand) {
    check(nearest_bfloat16(x) == nearest, "nearest bfloat16 of " + std::to_string(x));
    check(nearest_bfloat16(-x) == -nearest, "nearest bfloat16 of " + std::to_string(-x));
  }
  check(std::isnan(nearest_bfloat16(std::nanf(""))), "bfloat16 of no number is no number");
}

/// Planes of rows against plain rounding, and their sum against x.
void test_bfloat16_rows(const Kernels& kernels, int n) {
  if (kernels.bfloat16 == nullptr) return;
  const std::string what = std::string(kernels.name) + " rows of " + std::to_string(n);
  const int rows = 5, unit = kernels.bfloat16->words_per_row, ldx = n + 3;
  const int words = ((n + 1) / 2 + unit - 1) / unit * unit;
  const std::vector<float> x = random(rows * ldx), centers = random(2 * n);
  const std::vector<int32_t> species = {1, 0, 1, 1, 0};
  for (int planes : {1, 2, 3}) {
    std::vector<int32_t> codes(static_cast<size_t>(rows) * planes * words, -1);
    CodeRows wanted{};
    wanted.rows = rows;
    wanted.n = n;
    wanted.x = x.data();
    wanted.ldx = ldx;
    wanted.centers = planes == 1 ? centers.data() : nullptr;
    wanted.species = species.data();
    wanted.codes = codes.data();
    wanted.words = words;
    kernels.bfloat16->split(wanted, planes);
    for (int r = 0; r < rows; ++r) {
      for (int k = 0; k < 2 * words; ++k) {
        float rest = k < n ? x[static_cast<size_t>(r * ldx + k)] : 0.0f;
        if (planes == 1 && k < n) {
          rest -= centers[static_cast<size_t>(species[static_cast<size_t>(r)] * n + k)];
        }
        for (int plane = 0; plane < planes; ++plane) {
          const auto word = static_cast<uint32_t>(
              codes[static_cast<size_t>((r * planes + plane) * words + k / 2)]);
          const auto got = std::bit_cast<float>((k % 2 == 0 ? word << 16 : word) & 0xffff0000u);
          check(got == nearest_bfloat16(rest), what + ", plane " + std::to_string(plane));
          rest -= got;
        }
        if (planes == 3) check(rest == 0.0f, what + ": three planes are float32");
      }
    }
  }
}

/// Products of bfloat16 weights, forward and reverse, against sums in float64.
void test_bfloat16_product(const Kernels& kernels, int rows, int in, int out, int planes) {
  const std::string what = std::string(kernels.name) + " bfloat16 product " + std::to_string(rows) +
                           "×" + std::to_string(in) + "×" + std::to_string(out) + " planes " +
                           std::to_string(planes);
  constexpr int kSpecies = 3;
  Model model;
  std::vector<float> weight = random(static_cast<int64_t>(out) * in);
  for (float& w : weight) w = nearest_bfloat16(w);
  model.add("p.weight", weight, {out, in});
  model.integers.push_back({planes});
  model.tensors.add("p.bfloat16", {Tensor::Type::kInt32, model.integers.back().data(), {1}});
  const bool centered = planes == 1;
  if (centered) model.add_random("p.centers", {kSpecies, in});
  if (centered) {
    model.add_random("p.bias", {kSpecies, out});
  } else {
    model.add_random("p.bias", {out});
  }
  const Product product(kernels, model.tensors, "p", in, out, true, kSpecies);
  std::vector<int32_t> species;
  for (int r = 0; r < rows; ++r) species.push_back(r % kSpecies);
  const int ldx = in + 5, ldy = out + 2;
  const std::vector<float> x = random(static_cast<int64_t>(rows) * ldx);
  const std::vector<float> dy = random(static_cast<int64_t>(rows) * ldy);
  Workspace workspace;
  std::vector<float> y(dy.size(), 1.0f), dx(x.size(), 1.0f);
  product.forward(rows, species.data(), x.data(), ldx, y.data(), ldy, true, workspace);
  product.backward(rows, dy.data(), ldy, dx.data(), ldx, true, workspace);
  kernels.release();
  const auto value = [&](int r, int k) {
    const float own = x[static_cast<size_t>(r * ldx + k)];
    if (!centered) return own;
    const float center =
        model.floats[1][static_cast<size_t>(species[static_cast<size_t>(r)] * in + k)];
    return nearest_bfloat16(own - center);
  };
  double worst = 0.0, scale = 1.0, worst_reverse = 0.0, scale_reverse = 1.0;
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < ldy; ++o) {
      double sum = 1.0;
      if (o < out) {
        const size_t row = centered ? static_cast<size_t>(species[static_cast<size_t>(r)]) : 0;
        sum += model.floats.back()[row * static_cast<size_t>(out) + static_cast<size_t>(o)];
      }
      for (int k = 0; k < in && o < out; ++k) {
        sum += static_cast<double>(value(r, k)) * weight[static_cast<size_t>(o * in + k)];
      }
      worst = std::max(worst, std::abs(sum - y[static_cast<size_t>(r * ldy + o)]));
      scale = std::max(scale, std::abs(sum));
    }
    for (int k = 0; k < ldx; ++k) {
      double sum = 1.0;
      for (int o = 0; o < out && k < in; ++o) {
        sum += static_cast<double>(dy[static_cast<size_t>(r * ldy + o)]) *
               weight[static_cast<size_t>(o * in + k)];
      }
      worst_reverse = std::max(worst_reverse, std::abs(sum - dx[static_cast<size_t>(r * ldx + k)]));
      scale_reverse = std::max(scale_reverse, std::abs(sum));
    }
  }
  check(worst <= 2e-6 * scale, what + ": error " + std::to_string(worst / scale));
  check(worst_reverse <= 2e-5 * scale_reverse,
        what + ": error of the reverse " + std::to_string(worst_reverse / scale_reverse));

  // Each row by itself, to the last bit.
  for (int r = 0; r < rows; ++r) {
    std::vector<float> alone(static_cast<size_t>(out), 1.0f), back(static_cast<size_t>(in), 1.0f);
    product.forward(1, &species[static_cast<size_t>(r)], x.data() + r * ldx, ldx, alone.data(), out,
                    true, workspace);
    product.backward(1, dy.data() + r * ldy, ldy, back.data(), in, true, workspace);
    check(std::equal(alone.begin(), alone.end(), y.begin() + r * ldy) &&
              std::equal(back.begin(), back.end(), dx.begin() + r * ldx),
          what + ": a row depends on others");
  }
  kernels.release();
}

void test_norms(const Kernels& kernels) {
  // Derivatives along a random direction against differences.
  const int rows = 19, n = 24;  // more rows than one stage takes at once
  const auto x = random(rows * n), gain = random(n), bias = random(n), dy = random(rows * n),
             direction = random(rows * n);
  std::vector<float> normal(x.size()), inverse(rows), y(x.size()), dx(x.size(), 0.0f);
  const auto value = [&](float t) {
    std::vector<float> moved = x;
    for (size_t k = 0; k < x.size(); ++k) moved[k] += t * direction[k];
    kernels.layer_norm(rows, n, moved.data(), gain.data(), bias.data(), normal.data(),
                       inverse.data(), y.data(), n);
    double sum = 0.0;
    for (size_t k = 0; k < y.size(); ++k) sum += static_cast<double>(y[k]) * dy[k];
    return sum;
  };
  const double numerical = (value(0.01f) - value(-0.01f)) / 0.02;
  value(0.0f);
  kernels.layer_norm_backward(rows, n, dy.data(), n, gain.data(), normal.data(), inverse.data(),
                              dx.data());
  double analytic = 0.0;
  for (size_t k = 0; k < dx.size(); ++k) analytic += static_cast<double>(dx[k]) * direction[k];
  check(std::abs(numerical - analytic) < 2e-3 * std::abs(analytic) + 1e-2,
        std::string(kernels.name) + " layer_norm derivative");
}

/// Whether value is wanted to float32's accuracy, `scale` being what was summed.
bool near(double value, double wanted, double scale = 1.0) {
  return std::abs(value - wanted) <= 3e-6 * std::max(scale, std::abs(wanted));
}

void test_heads(const Kernels& kernels, int heads, int width) {
  const int rows = 19, n = heads * width, ld = n + 3, highest = 127;
  const auto x = random(rows * ld), dy = random(rows * ld), factor = random(heads);
  std::vector<float> normal(rows * n), inverse(rows * heads), scaled(rows * n), dx = dy;
  kernels.heads(rows, heads, width, x.data(), ld, true, highest, factor.data(), normal.data(),
                inverse.data(), scaled.data());
  kernels.heads_backward(rows, heads, width, true, factor.data(), normal.data(), inverse.data(),
                         dx.data(), ld);
  bool holds = true;
  for (int r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      const float* in = x.data() + r * ld + h * width;
      const float* gradient = dy.data() + r * ld + h * width;
      double square = 1e-6, largest = 0.0, along = 0.0;
      for (int c = 0; c < width; ++c) square += static_cast<double>(in[c]) * in[c];
      const double norm = 1.0 / std::sqrt(square);
      for (int c = 0; c < width; ++c) {
        largest = std::max(largest, std::abs(in[c] * norm));
        along += in[c] * norm * gradient[c];
      }
      const double step = largest / highest;
      holds &= near(inverse[r * heads + h], norm, norm);
      for (int c = 0; c < width; ++c) {
        const int at = r * n + h * width + c;
        const double z = in[c] * norm, code = scaled[at] / (factor[h] * step);
        holds &= near(normal[at], z);
        // A code at a tie may go either way.
        holds &= std::abs(code - z / step) <= 0.5001 && near(code, std::nearbyint(code), highest);
        holds &= near(dx[r * ld + h * width + c], factor[h] * norm * (gradient[c] - z * along),
                      norm * 10.0);
      }
    }
  }
  check(holds, std::string(kernels.name) + " " + std::to_string(heads) + " heads of " +
                   std::to_string(width));
}

void test_silu(const Kernels& kernels) {
  std::vector<float> x = random(37);
  for (size_t k = 0; k < x.size(); ++k) x[k] *= k % 3 == 0 ? 100.0f : 1.0f;
  x[5] = std::nanf("");
  std::vector<float> y(x.size()), slope(x.size(), 1e-3f);
  kernels.silu(static_cast<int64_t>(x.size()), x.data(), y.data());
  kernels.silu_backward(static_cast<int64_t>(x.size()), x.data(), slope.data());
  bool holds = std::isnan(y[5]) && std::isnan(slope[5]);
  for (size_t k = 0; k < x.size(); ++k) {
    if (k == 5) continue;
    const double share = 1.0 / (1.0 + std::exp(-static_cast<double>(x[k])));
    holds &= near(y[k], x[k] * share);
    holds &= near(1e3 * slope[k], share * (1.0 + x[k] * (1.0 - share)));
    holds &= std::fpclassify(y[k]) != FP_SUBNORMAL && std::fpclassify(slope[k]) != FP_SUBNORMAL;
  }
  check(holds, std::string(kernels.name) + " SiLU");
}

void test_gates(const Kernels& kernels, int components, int channels) {
  const int atoms = 2, rows = atoms * components, C = channels;
  const auto ut = random(rows * 2 * C), gates = random(atoms * C), product = random(rows * C),
             base = random(rows * C), dy = random(rows * C), ds = random(atoms * C);
  const float factor = 0.7f;
  bool holds = true;
  for (const bool plain : {false, true}) {
    std::vector<float> y(rows * C), s(atoms * C), d_gate(atoms * C), d_product(rows * C),
        dut(rows * 2 * C);
    kernels.gate(atoms, components, C, gates.data(), C, ut.data(), plain ? nullptr : product.data(),
                 plain ? nullptr : base.data(), y.data());
    kernels.gate_backward(atoms, components, C, gates.data(), C, ut.data(),
                          plain ? nullptr : product.data(), dy.data(), d_gate.data(), C,
                          d_product.data());
    kernels.vector_dot(atoms, components, C, ut.data(), factor, s.data(), C);
    kernels.vector_dot_backward(atoms, components, C, ut.data(), factor, ds.data(), C, gates.data(),
                                C, plain ? nullptr : dy.data(), dut.data());
    for (int i = 0; i < atoms; ++i) {
      for (int c = 0; c < C; ++c) {
        const double gate = gates[i * C + c], scaled = factor * ds[i * C + c];
        double dot = 0.0, sum = 0.0;
        for (int m = 0; m < components; ++m) {
          const int row = i * components + m, at = row * C + c;
          const double u = ut[row * 2 * C + c], t = ut[row * 2 * C + C + c];
          const double value = u + (plain ? 0.0 : product[at]);
          dot += u * t;
          sum += value * dy[at];
          holds &= near(y[at], gate * value + (plain ? 0.0 : base[at]), 3.0);
          holds &= plain || near(d_product[at], gate * dy[at], 3.0);
          holds &= near(dut[row * 2 * C + c], scaled * t + (plain ? 0.0 : gate * dy[at]), 3.0);
          holds &= near(dut[row * 2 * C + C + c], scaled * u, 3.0);
        }
        holds &= near(s[i * C + c], factor * dot, 10.0) && near(d_gate[i * C + c], sum, 10.0);
      }
    }
  }
  check(holds, std::string(kernels.name) + " gates of " + std::to_string(components) + " × " +
                   std::to_string(C));
}

void test_loader() {
  TransformerConfig config{.elements = 1,
                           .layers = 1,
                           .heads = 2,
                           .scalars = 8,
                           .channels = 8,
                           .max_degree = 1,
                           .hidden = 8,
                           .splines = 8,
                           .cutoff = 4.0,
                           .softmax = true,
                           .axial = false,
                           .robust = true,
                           .attention_highest = 0,
                           .local_frames = false,
                           .orient = true};
  const auto fill = [](Model& model) {
    model.add_double("energy_scale", {1.0});
    model.add_double("energy_shift", {0.0});
    model.add_random("embedding", {1, 8});
    for (const char* name : {"attention.0.norm", "update.0.norm", "head.norm"}) {
      model.add_random(std::string(name) + ".weight", {8});
      model.add_random(std::string(name) + ".bias", {8});
    }
    const struct {
      const char* name;
      int64_t out, in;
    } products[] = {{"attention.0.qkv", 32, 8}, {"attention.0.output", 8, 8},
                    {"update.0.mix.1", 16, 8},  {"update.0.hidden", 8, 16},
                    {"update.0.output", 8, 8},  {"head.hidden", 8, 8},
                    {"head.output", 1, 8}};
    for (const auto& product : products) {
      model.add_random(std::string(product.name) + ".weight", {product.out, product.in});
      model.add_random(std::string(product.name) + ".bias", {product.out});
    }
    model.add_random("attention.0.temperature", {2});
    model.add_random("attention.0.table", {8, 18});
  };
  const auto refuses = [&](const TransformerConfig& c, const Tensors& tensors) {
    try {
      const EquivariantTransformer network(c, tensors, best_kernels());
      return false;
    } catch (const ModelFault&) {
      return true;
    }
  };
  Model good;
  fill(good);
  check(!refuses(config, good.tensors), "a complete model is accepted");
  Model odd;
  fill(odd);
  odd.add_random("attention.0.table", {8, 17});
  check(refuses(config, odd.tensors), "a table of the wrong width is refused");
  for (int TransformerConfig::* field :
       {&TransformerConfig::heads, &TransformerConfig::layers, &TransformerConfig::scalars,
        &TransformerConfig::channels, &TransformerConfig::max_degree, &TransformerConfig::hidden,
        &TransformerConfig::splines, &TransformerConfig::elements}) {
    for (int value : {-1, 0, 3, 1 << 30}) {
      TransformerConfig wrong = config;
      wrong.*field = value;
      check(refuses(wrong, good.tensors), "a wrong size is refused");
    }
  }

  // One result for any number of threads, through every table.
  std::vector<double> many;
  std::uniform_real_distribution<double> place(-7.0, 7.0);
  for (int k = 0; k < 300; ++k) many.push_back(place(generator));
  for (const char* const* name = kernel_names(); *name != nullptr; ++name) {
    const EquivariantTransformer network(config, good.tensors, *find_kernels(*name));
    std::vector<std::vector<double>> results;
    for (int threads : {1, 2, 3}) {
      Evaluator evaluator(network, std::vector<int32_t>(100, 0), {}, 0.5, threads);
      std::vector<double> result(409);
      for (int repeat = 0; repeat < 3; ++repeat) {
        evaluator.compute(many.data(), {result.data(), result.data() + 100, result.data() + 400});
      }
      results.push_back(result);
    }
    check(results[0] == results[1] && results[0] == results[2],
          std::string(*name) + ": threads change the result");
  }

  // Forces against differences of energies, through every table.
  const std::vector<double> at = {0.0, 0.0, 0.0, 1.1, 0.2, 0.0, -0.3, 0.9, 0.4, 0.5, -0.8, 0.9};
  const std::vector<int32_t> species = {0, 0, 0, 0};
  for (const char* const* name = kernel_names(); *name != nullptr; ++name) {
    const EquivariantTransformer network(config, good.tensors, *find_kernels(*name));
    const auto energy = [&](const std::vector<double>& positions, double* forces) {
      Workspace workspace;
      PairList pairs = open_pairs(4, positions.data(), 4.0, workspace);
      double energies[4], virial[9];
      Crew crew;
      network.compute(pairs, species.data(), workspace, crew,
                      {energies, forces, forces != nullptr ? virial : nullptr});
      return energies[0] + energies[1] + energies[2] + energies[3];
    };
    double forces[12];
    energy(at, forces);
    double largest = 0.0;
    for (double force : forces) largest = std::max(largest, std::abs(force));
    for (size_t k = 0; k < at.size(); ++k) {
      std::vector<double> up = at, down = at;
      up[k] += 2e-3;
      down[k] -= 2e-3;
      const double numerical = -(energy(up, nullptr) - energy(down, nullptr)) / 4e-3;
      check(std::abs(numerical - forces[k]) < 3e-3 * largest,
            std::string(*name) + " force " + std::to_string(k));
    }
  }
}

}  // namespace
}  // namespace equibit

int main() {
  using namespace equibit;
  for (const char* const* name = kernel_names(); *name != nullptr; ++name) {
    const Kernels& kernels = *find_kernels(*name);
    for (int rows : {1, 2, 9, 27}) {
      for (int bits : {0, 4, 8, 16, 24}) {
        test_product(kernels, rows, 64, 96, bits, 1 << 16);
        test_product(kernels, rows, 64, 33, bits, 32);
        test_product(kernels, rows, 23, 7, bits, 8);
      }
    }
    test_product(kernels, 3, 1300, 5, 16, 1 << 16);
    test_product(kernels, 41, 256, 70, 16, 64);
    test_product(kernels, 41, 256, 70, 8, 64);
    test_product(kernels, 17, 512, 40, 8, 32);  // more groups than tiles take at a time
    for (int n : {1, 8, 23, 32, 64, 200}) test_bfloat16_rows(kernels, n);
    for (int rows : {1, 2, 9, 16, 27}) {
      for (int planes : {1, 3}) {
        for (int in : {8, 23, 32, 64, 128, 150})
          test_bfloat16_product(kernels, rows, in, 96, planes);
        for (int out : {1, 7, 33, 50}) test_bfloat16_product(kernels, rows, 64, out, planes);
      }
    }
    test_norms(kernels);
    for (const int width : {5, 16, 24}) {
      for (const int heads : {1, 4, 6}) test_heads(kernels, heads, width);
    }
    test_silu(kernels);
    for (const int channels : {5, 24, 32}) {
      test_gates(kernels, 3, channels);
      test_gates(kernels, 5, channels);
    }
  }
  test_nearest_bfloat16();
  test_loader();
  return verdict();
}
