// The edge pass and the rounding of every table of kernels against plain loops in float64.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/kernels.h"

namespace equibit {
namespace {

std::mt19937 generator(3);

/// The edge pass in float32, or with its reverse in 16-bit floats.
enum class Reverse { kFloats, kHalves };

std::vector<float> random(int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(generator);
  return values;
}

struct Shape {
  int heads, scalars, channels, degree;
  bool first, softmax, axial, stored;
};

/// Random inputs of one attention layer of atoms that all see each other, and its sums in float64.
///
/// Each directed edge has a distance, harmonics and an envelope of its own, so that what an edge
/// contributes to a gradient can be told from its reverse.
class EdgeCase {
 public:
  static constexpr int kAtoms = 6;
  static constexpr int kPairs = kAtoms * (kAtoms - 1) / 2, kEdges = 2 * kPairs;
  static constexpr int kSplines = 7;

  explicit EdgeCase(const Shape& shape) : s(shape) {
    const int per_degree = s.first ? 1 : 3 + (s.axial ? s.degree : 0);
    columns = s.scalars + per_degree * s.degree * s.channels + s.heads;
    stride = (columns + 15) / 16 * 16;
    table.assign(static_cast<size_t>(kSplines) * stride, 0.0f);
    for (int row = 0; row < kSplines; ++row) {
      const auto values = random(columns);
      std::copy(values.begin(), values.end(), table.begin() + row * stride);
    }
    taps = random(4 * kPairs);
    slopes = random(4 * kPairs);
    envelope = random(2 * kPairs);
    for (size_t k = 0; k < envelope.size(); k += 2) {
      envelope[k] = 0.3f + 0.1f * std::abs(envelope[k]);
    }
    for (int p = 0; p < kPairs; ++p) {
      tap.push_back(p % (kSplines - 3));
      // As of splines, whose values sum to 1 and whose slopes to 0.
      taps[4 * p] = 1.0f - taps[4 * p + 1] - taps[4 * p + 2] - taps[4 * p + 3];
      slopes[4 * p] = -slopes[4 * p + 1] - slopes[4 * p + 2] - slopes[4 * p + 3];
    }
    std::vector<int> next(kAtoms, 0);
    for (int i = 0; i <= kAtoms; ++i) first.push_back(i * (kAtoms - 1));
    sender.resize(kEdges);
    pair.resize(kEdges);
    reverse.resize(kEdges);
    for (int i = 0, p = 0; i < kAtoms; ++i) {
      for (int j = i + 1; j < kAtoms; ++j, ++p) {
        const int there = i * (kAtoms - 1) + next[i]++, back = j * (kAtoms - 1) + next[j]++;
        sender[there] = j;
        sender[back] = i;
        pair[there] = pair[back] = p;
        reverse[there] = back;
        reverse[back] = there;
      }
    }
    inputs.push_back(random(kAtoms * s.scalars));                            // query
    inputs.push_back(random(kAtoms * s.scalars));                            // key
    inputs.push_back(random(kAtoms * (s.scalars + s.degree * s.channels)));  // value
    for (float& x : inputs[0]) x *= 0.3f;
    for (int l = 1; l <= s.degree; ++l) {
      inputs.push_back(random(kAtoms * (2 * l + 1) * s.channels));
    }
    for (int l = 1; l <= s.degree; ++l) inputs.push_back(random(kEdges * (2 * l + 1)));
    weight_invariants = random(kAtoms * (s.scalars + s.degree * s.channels));
    for (int l = 1; l <= s.degree; ++l) {
      weight_vectors.push_back(random(kAtoms * (2 * l + 1) * s.channels));
    }
    // Of sizes that differ from atom to atom, as those of gradients do.
    const auto shrink = [&](std::vector<float>& rows) {
      const size_t width = rows.size() / kAtoms;
      for (size_t k = 0; k < rows.size(); ++k) rows[k] *= k / width % 2 == 0 ? 1.0f : 0.2f;
    };
    shrink(weight_invariants);
    for (auto& rows : weight_vectors) shrink(rows);
  }

  int vectors_input(int l) const { return 2 + l; }
  int harmonics_input(int l) const { return 2 + s.degree + l; }

  /// What an input is moved by; the last is the distance of every edge.
  using Values = std::vector<std::vector<double>>;
  Values values() const {
    Values result;
    for (const auto& input : inputs) result.emplace_back(input.begin(), input.end());
    result.emplace_back(kEdges, 0.0);
    return result;
  }

  /// Invariants [atoms][F + L·C] and vectors [atoms][2ℓ+1][C] of each degree.
  Values sums(const Values& x) const {
    const int F = s.scalars, C = s.channels, L = s.degree, H = s.heads, VW = F + L * C;
    const int per_degree = 2 + (s.axial ? L : 0);
    const auto along_column = [&](int l) { return F + (L + per_degree * (l - 1)) * C; };
    const int bias = s.first ? F + L * C : along_column(L + 1);
    Values result{std::vector<double>(kAtoms * VW, 0.0)};
    for (int l = 1; l <= L; ++l) {
      const std::vector<double>& before = x[vectors_input(l)];
      result.push_back(s.first ? std::vector<double>(before.size(), 0.0) : before);
    }
    for (int i = 0; i < kAtoms; ++i) {
      std::vector<std::vector<double>> filters, weights;
      std::vector<double> total(H, 1.0);
      for (int e = i * (kAtoms - 1); e < (i + 1) * (kAtoms - 1); ++e) {
        const int p = pair[e], j = sender[e];
        const double moved = x.back()[e];
        std::vector<double> filter(columns, 0.0), weight(H);
        for (int c = 0; c < columns; ++c) {
          for (int t = 0; t < 4; ++t) {
            filter[c] += (taps[4 * p + t] + moved * slopes[4 * p + t]) *
                         table[static_cast<size_t>((tap[p] + t) * stride + c)];
          }
        }
        const double cut = envelope[2 * p] + moved * envelope[2 * p + 1];
        for (int h = 0; h < H; ++h) {
          double z = filter[bias + h];
          for (int c = h * F / H; c < (h + 1) * F / H; ++c) z += x[0][i * F + c] * x[1][j * F + c];
          weight[h] = cut * (s.softmax ? std::exp(z) : z);
          total[h] += weight[h];
        }
        filters.push_back(filter);
        weights.push_back(weight);
      }
      for (int k = 0; k < kAtoms - 1; ++k) {
        const int e = i * (kAtoms - 1) + k, j = sender[e];
        const std::vector<double>& filter = filters[k];
        const auto weight = [&](int c, int width) {
          const int h = c / (width / H);
          return weights[k][h] / (s.softmax ? total[h] : 1.0);
        };
        for (int c = 0; c < F; ++c) {
          result[0][i * VW + c] += weight(c, F) * filter[c] * x[2][j * VW + c];
        }
        for (int c = 0; c < C && L > 0; ++c) {
          const double w = weight(c, C);
          std::vector<double> along(L + 1, 0.0);
          for (int l = 1; l <= L && !s.first; ++l) {
            const int n = 2 * l + 1;
            for (int m = 0; m < n; ++m) {
              const double vector = x[vectors_input(l)][(j * n + m) * C + c];
              along[l] += x[harmonics_input(l)][e * n + m] * vector;
              result[l][(i * n + m) * C + c] += w * filter[along_column(l) + C + c] * vector;
            }
            result[0][i * VW + F + (l - 1) * C + c] += w * filter[along_column(l) + c] * along[l];
          }
          for (int l = 1; l <= L; ++l) {
            const int n = 2 * l + 1;
            double out = filter[F + (l - 1) * C + c] * x[2][j * VW + F + (l - 1) * C + c];
            for (int from = 1; from <= L && s.axial && !s.first; ++from) {
              out += filter[along_column(from) + (1 + l) * C + c] * along[from];
            }
            for (int m = 0; m < n; ++m) {
              result[l][(i * n + m) * C + c] += w * out * x[harmonics_input(l)][e * n + m];
            }
          }
        }
      }
    }
    return result;
  }

  double objective(const Values& x) const {
    const Values result = sums(x);
    const int VW = s.scalars + s.degree * s.channels, used = s.first ? s.scalars : VW;
    double sum = 0.0;
    for (int i = 0; i < kAtoms; ++i) {
      for (int c = 0; c < used; ++c) sum += weight_invariants[i * VW + c] * result[0][i * VW + c];
    }
    for (int l = 1; l <= s.degree; ++l) {
      for (size_t k = 0; k < result[l].size(); ++k) sum += weight_vectors[l - 1][k] * result[l][k];
    }
    return sum;
  }

  Shape s;
  int columns, stride;
  std::vector<float> table, taps, slopes, envelope;
  std::vector<int32_t> tap, sender, pair, reverse;
  std::vector<int64_t> first;
  std::vector<std::vector<float>> inputs;
  std::vector<float> weight_invariants;
  std::vector<std::vector<float>> weight_vectors;
};

void test_edges(const Kernels& kernels, const Shape& shape, Reverse reverse) {
  const EdgeCase given(shape);
  const int F = shape.scalars, C = shape.channels, L = shape.degree, H = shape.heads;
  const int VW = F + L * C, n = EdgeCase::kAtoms;
  const std::string what = std::string(kernels.name) + " edges of " + std::to_string(F) + ", " +
                           std::to_string(C) + " channels, degree " + std::to_string(L) +
                           (shape.first ? ", first" : "") + (shape.softmax ? ", softmax" : "") +
                           (shape.axial ? ", axial" : "") +
                           (reverse == Reverse::kHalves ? ", in halves" : "") + ": ";
  Edges edges{.n_atoms = n,
              .n_pairs = EdgeCase::kPairs,
              .most = n - 1,
              .first = given.first.data(),
              .sender = given.sender.data(),
              .pair = given.pair.data(),
              .reverse = given.reverse.data(),
              .tap = given.tap.data(),
              .taps = given.taps.data(),
              .slopes = given.slopes.data(),
              .envelope = given.envelope.data(),
              .harmonics = {}};
  std::vector<float> raw(EdgeCase::kEdges * H), invariants(n * VW, 7.0f);
  std::vector<std::vector<float>> messages(L + 1), out(L + 1);
  Attention a{};
  a.heads = H;
  a.scalars = F;
  a.channels = C;
  a.max_degree = L;
  a.first = shape.first;
  a.softmax = shape.softmax;
  a.axial = shape.axial;
  a.table = given.table.data();
  a.stride = given.stride;
  a.query = given.inputs[0].data();
  a.key = given.inputs[1].data();
  a.value = given.inputs[2].data();
  a.value_ld = VW;
  a.raw = raw.data();
  a.invariants = invariants.data();
  a.invariant_ld = VW;
  for (int l = 1; l <= L; ++l) {
    edges.harmonics[l] = given.inputs[given.harmonics_input(l)].data();
    a.vectors[l] = shape.first ? nullptr : given.inputs[given.vectors_input(l)].data();
    messages[l].resize(n * (2 * l + 1) * C);
    out[l].resize(n * (2 * l + 1) * C);
    a.messages[l] = messages[l].data();
    a.vectors_out[l] = out[l].data();
  }
  std::vector<float> filters(EdgeCase::kPairs * given.stride), slopes(filters.size());
  if (shape.stored) {
    kernels.filters(edges, a, 0, EdgeCase::kPairs, filters.data(), slopes.data());
    a.filters = filters.data();
    a.slopes = slopes.data();
  }
  std::vector<uint16_t> half_table, half_differences, half_filters, half_slopes, halves;
  std::vector<float> half_scales(n);
  if (reverse == Reverse::kHalves) {
    const HalfKernels& half = *kernels.halves;
    a.half_stride = (given.columns + 31) / 32 * 32;
    const auto size = static_cast<size_t>(EdgeCase::kSplines * a.half_stride);
    std::vector<float> values(size, 0.0f), differences(size, 0.0f);
    for (int64_t k = 0; k < EdgeCase::kSplines; ++k) {
      for (int64_t c = 0; c < given.columns; ++c) {
        const float* column = given.table.data() + c;
        values[k * a.half_stride + c] = column[k * a.stride];
        if (k + 1 < EdgeCase::kSplines) {
          differences[k * a.half_stride + c] = column[(k + 1) * a.stride] - column[k * a.stride];
        }
      }
    }
    half_table.resize(size);
    half_differences.resize(size);
    half.narrow(static_cast<int64_t>(size), values.data(), half_table.data());
    half.narrow(static_cast<int64_t>(size), differences.data(), half_differences.data());
    a.half_table = half_table.data();
    a.half_differences = half_differences.data();
    if (shape.stored) {
      half_filters.resize(EdgeCase::kPairs * a.half_stride);
      half_slopes.resize(half_filters.size());
      half.filters(edges, a, 0, EdgeCase::kPairs, half_filters.data(), half_slopes.data());
      a.half_filters = half_filters.data();
      a.half_slopes = half_slopes.data();
    }
    halves.resize(n * half_row(a));
  }
  std::vector<float> scratch(edge_scratch(edges, a));
  kernels.attention(edges, a, 0, 2, scratch.data());
  kernels.attention(edges, a, 2, n, scratch.data());

  const EdgeCase::Values x = given.values(), expected = given.sums(x);
  const auto near = [&](double value, double wanted, double scale) {
    return std::abs(value - wanted) <= scale;
  };
  double largest = 1.0;
  for (const auto& values : expected) {
    for (double value : values) largest = std::max(largest, std::abs(value));
  }
  bool holds = true;
  for (int i = 0; i < n; ++i) {
    for (int c = 0; c < (shape.first ? F : VW); ++c) {
      holds &= near(invariants[i * VW + c], expected[0][i * VW + c], 3e-6 * largest);
    }
  }
  for (int l = 1; l <= L; ++l) {
    for (size_t k = 0; k < out[l].size(); ++k) {
      holds &= near(out[l][k], expected[l][k], 3e-6 * largest);
    }
  }
  check(holds, what + "sums");

  std::vector<float> d_sums(n * H), d_qkv(n * (2 * F + VW), 9.0f), d_z(raw.size());
  std::vector<float> geometry(EdgeCase::kEdges * edge_gradients(L), 0.5f);
  std::vector<std::vector<float>> d_vectors(L + 1);
  AttentionGradient g{};
  g.invariants = given.weight_invariants.data();
  g.sums = d_sums.data();
  g.query = d_qkv.data();
  g.key = d_qkv.data() + F;
  g.value = d_qkv.data() + 2 * F;
  g.qkv_ld = 2 * F + VW;
  g.d_z = d_z.data();
  g.geometry = geometry.data();
  for (int l = 1; l <= L; ++l) {
    d_vectors[l].resize(out[l].size());
    g.messages[l] = given.weight_vectors[l - 1].data();
    g.vectors[l] = d_vectors[l].data();
  }
  if (shape.softmax) kernels.attention_sums_backward(a, g, 0, n);
  auto* backward = kernels.attention_backward;
  if (reverse == Reverse::kHalves) {
    g.halves = halves.data();
    g.half_scales = half_scales.data();
    kernels.halves->gradients(a, g, 0, 2);
    kernels.halves->gradients(a, g, 2, n);
    backward = kernels.halves->backward;
  }
  backward(edges, a, g, 0, 3, scratch.data());
  backward(edges, a, g, 3, n, scratch.data());
  if (!shape.first) kernels.attention_query_backward(edges, a, g, 0, n);

  const auto derivative = [&](int input, size_t at) {
    EdgeCase::Values up = x, down = x;
    up[input][at] += 1e-4;
    down[input][at] -= 1e-4;
    return (given.objective(up) - given.objective(down)) / 2e-4;
  };
  double error = 0.0, scale = 0.0, error_square = 0.0, square = 0.0;
  const auto compare = [&](double value, int input, size_t at) {
    const double wanted = derivative(input, at);
    error = std::max(error, std::abs(value - wanted));
    scale = std::max(scale, std::abs(wanted));
    error_square += (value - wanted) * (value - wanted);
    square += wanted * wanted;
  };
  const auto verdict_on = [&](const char* part) {
    // Of 16-bit floats the mean counts: softmax takes differences of what they rounded.
    const bool halves_used = reverse == Reverse::kHalves;
    const double relative = halves_used ? std::sqrt(error_square / std::max(square, 1.0))
                                        : error / std::max(scale, 1.0);
    check(relative <= (halves_used ? 8e-3 : 1e-5),
          what + part + ", error " + std::to_string(relative));
    error_square = square = 0.0;
    error = scale = 0.0;
  };
  // Every third element, of which each block of channels has some.
  const int ld = 2 * F + VW;
  for (int i = 0; i < n && !shape.first; i += 2) {
    for (int c = 0; c < F; c += 3) {
      compare(d_qkv[i * ld + c], 0, i * F + c);
      compare(d_qkv[i * ld + F + c], 1, i * F + c);
    }
  }
  verdict_on("queries and keys");
  for (int i = 1; i < n && !shape.first; i += 2) {
    for (int c = 0; c < VW; c += 3) compare(d_qkv[i * ld + 2 * F + c], 2, i * VW + c);
  }
  verdict_on("values");
  for (int l = 1; l <= L && !shape.first; ++l) {
    for (size_t k = 0; k < d_vectors[l].size(); k += 7) {
      compare(d_vectors[l][k], given.vectors_input(l), k);
    }
  }
  verdict_on("vectors");
  for (int e = 0; e < EdgeCase::kEdges; e += 3) {
    const float* row = geometry.data() + e * edge_gradients(L);
    compare(row[0] - 0.5f, static_cast<int>(x.size()) - 1, e);
    for (int l = 1; l <= L; ++l) {
      for (int m = 0; m < 2 * l + 1; ++m) {
        compare(row[l * l + m] - 0.5f, given.harmonics_input(l), e * (2 * l + 1) + m);
      }
    }
  }
  verdict_on("distances and directions");
}

enum class Layout { kBytes, kPairs, kSplit };

/// Code k of a row in each of the layouts.
int code_at(const int32_t* row, Layout layout, int words, int planes, int k) {
  if (layout == Layout::kPairs) return reinterpret_cast<const int16_t*>(row)[k];
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  if (layout == Layout::kBytes) return bytes[k] - 128;
  int code = static_cast<int8_t>(bytes[k]);
  for (int plane = 1; plane < planes; ++plane) code = 256 * code + bytes[4 * words * plane + k];
  return code;
}

/// Codes that are split are padded to 64 where all share a step.
void test_rounding(const Kernels& kernels, void (*round)(const CodeRows&), Layout layout, int n,
                   bool padded, int highest, bool centered, bool scaled) {
  constexpr int kRows = 5;
  const int planes = layout != Layout::kSplit ? 1 : highest > 32767 ? 3 : highest > 127 ? 2 : 1;
  const int per_word = layout == Layout::kPairs ? 2 : 4;
  const int words = padded ? (n + 63) / 64 * 16 : (n + per_word - 1) / per_word;
  const auto x = random(kRows * (n + 3)), centers = random(2 * n), factors = random(n);
  const std::vector<int32_t> species = {1, 0, 0, 1, 1};
  std::vector<int32_t> codes(16 * words * planes, 0x55555555);
  std::vector<float> scales(kRows);
  round({.rows = kRows,
         .n = n,
         .x = x.data(),
         .ldx = n + 3,
         .centers = centered ? centers.data() : nullptr,
         .species = species.data(),
         .factors = scaled ? factors.data() : nullptr,
         .highest = highest,
         .codes = codes.data(),
         .words = words,
         .scales = scales.data()});
  bool holds = true;
  for (int r = 0; r < kRows; ++r) {
    std::vector<double> values;
    double largest = 0.0;
    for (int k = 0; k < n; ++k) {
      double value = x[r * (n + 3) + k];
      if (centered) value -= centers[species[r] * n + k];
      if (scaled) value *= factors[k];
      values.push_back(value);
      largest = std::max(largest, std::abs(value));
    }
    holds &= std::abs(scales[r] - largest / highest) <= 1e-6 * largest / highest;
    const int32_t* row = codes.data() + r * words * planes;
    for (int k = 0; k < words * per_word; ++k) {
      const double wanted = k < n ? values[k] * highest / largest : 0.0;
      // float32 holds 24 bits of the value that is rounded.
      holds &= std::abs(code_at(row, layout, words, planes, k) - wanted) <= 0.5 + 2e-7 * highest;
    }
  }
  check(holds, std::string(kernels.name) + " rounding " + std::to_string(n) + " to " +
                   std::to_string(highest) + (centered ? ", centred" : "") +
                   (scaled ? ", scaled" : ""));
}

void test_all_rounding(const Kernels& kernels) {
  const struct {
    void (*round)(const CodeRows&);
    Layout layout;
    std::vector<int> highest;
  } ways[] = {{kernels.round_rows8, Layout::kBytes, {7, 127}},
              {kernels.round_rows16, Layout::kPairs, {127, 32767}},
              {kernels.round_split, Layout::kSplit, {127, 32767, 8388352}}};
  for (const auto& way : ways) {
    if (way.round == nullptr) continue;
    for (int n : {9, 32, 64, 72, 96, 128, 160, 224, 256}) {
      for (int highest : way.highest) {
        for (const bool padded : {true, false}) {
          const bool split = way.layout == Layout::kSplit;
          if (padded ? !split : split && n % 32 != 0) continue;
          test_rounding(kernels, way.round, way.layout, n, padded, highest, false, false);
          test_rounding(kernels, way.round, way.layout, n, padded, highest, true, false);
          test_rounding(kernels, way.round, way.layout, n, padded, highest, false, true);
        }
      }
    }
  }
}

/// v̂ = step·code n, n = w/‖w‖, w = round(d·u) or on the cube round(d·u/max|u|), u = v/r,
/// r = √(v² + (step/4)²), and its derivative where rounding is straight through.
void test_vectors(const Kernels& kernels, int degree, int channels, bool cube) {
  const int n = 2 * degree + 1, atoms = 3, magnitude = 255, direction = 127;
  const auto v = random(atoms * n * channels), d = random(atoms * n * channels);
  std::vector<float> rounded(v.size()), gradient = d;
  kernels.round_vectors(atoms, n, channels, v.data(), magnitude, direction, cube, rounded.data());
  kernels.round_vectors_backward(atoms, n, channels, v.data(), magnitude, direction, cube,
                                 gradient.data());
  int wrong = 0;
  double error = 0.0;
  for (int i = 0; i < atoms; ++i) {
    const auto at = [&](int m, int c) { return static_cast<size_t>((i * n + m) * channels + c); };
    double most = 0.0;
    for (int c = 0; c < channels; ++c) {
      double square = 0.0;
      for (int m = 0; m < n; ++m) square += static_cast<double>(v[at(m, c)]) * v[at(m, c)];
      most = std::max(most, square);
    }
    const double step = std::max(std::sqrt(most), 1e-6) / magnitude;
    for (int c = 0; c < channels; ++c) {
      double square = step * step / 16, length = 0.0, along = 0.0, turned = 0.0;
      for (int m = 0; m < n; ++m) square += static_cast<double>(v[at(m, c)]) * v[at(m, c)];
      const double size = std::sqrt(square), code = std::nearbyint(size / step);
      std::vector<double> u(n), w(n), g(n);
      double side = cube ? 1e-3 : 1.0;
      for (int m = 0; m < n; ++m) {
        u[m] = v[at(m, c)] / size;
        if (cube) side = std::max(side, std::abs(u[m]));
      }
      for (int m = 0; m < n; ++m) {
        w[m] = std::nearbyint(direction / side * u[m]);
        length += w[m] * w[m];
      }
      length = std::max(std::sqrt(length), 1.0);
      for (int m = 0; m < n; ++m) {
        // A code at a tie may go either way.
        wrong += std::abs(step * code * w[m] / length - rounded[at(m, c)]) > 1e-5 * most;
        along += w[m] / length * d[at(m, c)];
      }
      for (int m = 0; m < n; ++m) {
        g[m] = step * code * direction / side / length * (d[at(m, c)] - w[m] / length * along);
        turned += u[m] * g[m];
      }
      for (int m = 0; m < n; ++m) {
        const double wanted = (g[m] - u[m] * turned) / size + along * u[m];
        error = std::max(error, std::abs(wanted - gradient[at(m, c)]) / (1.0 + std::abs(wanted)));
      }
    }
  }
  const std::string what = std::string(kernels.name) + " vectors of degree " +
                           std::to_string(degree) + ", " + std::to_string(channels) + " channels";
  check(wrong <= n, what + " rounded");
  check(error < 2e-5 || wrong > 0, what + " gradient, error " + std::to_string(error));
}

}  // namespace
}  // namespace equibit

int main() {
  using namespace equibit;
  const Shape shapes[] = {
      {2, 8, 0, 0, false, true, false, true},    {4, 64, 64, 1, true, false, false, true},
      {4, 64, 64, 1, false, false, false, true}, {4, 64, 64, 1, false, true, false, false},
      {3, 24, 24, 1, false, false, true, false}, {5, 15, 10, 1, false, true, false, true},
      {1, 16, 16, 2, true, true, true, false},   {2, 32, 32, 2, false, false, true, true},
      {1, 16, 16, 2, false, true, false, false}, {1, 8, 8, 3, false, true, true, true},
      {2, 8, 4, 3, false, false, false, false},
  };
  const Shape half_shapes[] = {
      {4, 64, 64, 1, false, false, false, true}, {4, 64, 64, 1, true, false, false, true},
      {4, 64, 64, 1, false, true, true, false},  {2, 64, 64, 2, false, false, true, true},
      {1, 32, 32, 1, false, true, false, false}, {2, 32, 0, 0, false, true, false, true},
      {4, 96, 32, 2, false, false, true, true},  {4, 96, 32, 2, true, true, false, false},
      {1, 128, 64, 1, false, true, true, false}, {32, 64, 32, 1, false, false, true, true},
  };
  for (const char* const* name = kernel_names(); *name != nullptr; ++name) {
    const Kernels& kernels = *find_kernels(*name);
    for (const Shape& shape : shapes) test_edges(kernels, shape, Reverse::kFloats);
    for (const Shape& shape : half_shapes) {
      if (kernels.halves != nullptr) test_edges(kernels, shape, Reverse::kHalves);
    }
    test_all_rounding(kernels);
    for (int degree : {1, 2, 3}) {
      for (int channels : {5, 16, 24}) {
        test_vectors(kernels, degree, channels, false);
        test_vectors(kernels, degree, channels, true);
      }
    }
    kernels.release();
  }
  return verdict();
}
