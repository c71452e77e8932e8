#include "potentials/so3krates.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace equibit {
namespace {

constexpr int64_t kBlock = 32;   // atoms that one thread takes at a time
constexpr int64_t kPairs = 128;  // pairs likewise
constexpr int kSplines = 515;    // of the tabulated radial networks
constexpr int kMostBasis = 256;

/// Coefficients of the cubic B-spline with the given values at its knots and slopes at its ends,
/// for one column. Shape: values [kSplines − 2] → coefficients [kSplines].
void spline_coefficients(const std::vector<double>& values, double first_slope, double last_slope,
                         double spacing, double* coefficients) {
  constexpr int m = kSplines - 2;
  // (c_{k−1} + 4 c_k + c_{k+1})/6 = f_k for k = 1 … m, with c_0 = c_2 − 2hf′ and the like put in.
  std::vector<double> right(values), upper(m, 1.0), lower(m, 1.0), diagonal(m, 4.0);
  right.resize(m);
  for (double& value : right) value *= 6.0;
  right[0] += 2.0 * spacing * first_slope;
  right[m - 1] -= 2.0 * spacing * last_slope;
  upper[0] = lower[m - 1] = 2.0;
  for (int k = 1; k < m; ++k) {
    const double factor = lower[k] / diagonal[k - 1];
    diagonal[k] -= factor * upper[k - 1];
    right[k] -= factor * right[k - 1];
  }
  for (int k = m - 1; k >= 0; --k) {
    const double above = k + 1 < m ? upper[k] * coefficients[k + 2] : 0.0;
    coefficients[k + 1] = (right[k] - above) / diagonal[k];
  }
  coefficients[0] = coefficients[2] - 2.0 * spacing * first_slope;
  coefficients[m + 1] = coefficients[m - 1] + 2.0 * spacing * last_slope;
}

}  // namespace

struct So3krates::Layer {
  // Both radial filters and their slopes in 1 − e^{−d}, each [splines][stride]; slopes have a table
  // of their own, since differences of float32 coefficients would leave them but five digits.
  std::vector<float> table, slope_table;
  Product radial_first, radial[2];        // where there are no tables; hidden layers side by side
  Product spherical_first, spherical[2];  // of both filters: hidden layers side by side
  Product atoms;                          // q, k of both branches and v, side by side
  std::vector<float> query_factor[2];     // per head
  float query_step[2], key_step[2];       // that were learned, or 0
  Product interaction;
};

struct So3krates::State {
  float *x, *chi;  // before the interaction
  float* atoms;    // [n][5F] products of the layer's input
  float *query[2], *query_inverse[2], *key[2], *key_inverse[2], *scaled[2], *rounded[2];
  float* difference;        // [n_pairs][components] χ_j − χ_i
  float* before;            // [n_pairs][2·F/4] of SiLU
  float *filters, *slopes;  // [n_pairs][stride]
  float *z[2], *alpha[2];   // [n_edges][heads]
  float* mixed;             // [n][F + |D|] a, b
  float* radial_before;     // [n_pairs][2F] of SiLU, where there are no tables
  // What learned steps clipped of the inputs of products.
  uint8_t *atoms_clips, *mixed_clips, *first_clips, *radial_clips[2], *spherical_clips[2];
};

So3krates::~So3krates() = default;

RadialGrid So3krates::grid() const { return {config_.cutoff, kSplines, RadialGrid::Kind::kCosine}; }

So3krates::So3krates(const So3kratesConfig& config, const Tensors& tensors, const Kernels& kernels)
    : config_(config), kernels_(&kernels) {
  const auto& c = config_;
  const auto n_degrees = static_cast<int>(c.degrees.size());
  bool sane = c.elements >= 1 && c.elements <= 118 && c.layers >= 1 && c.layers <= 64 &&
              c.heads >= 1 && c.heads <= kMaxHeads && c.features >= 4 && c.features <= 4096 &&
              c.features % c.heads == 0 && n_degrees >= 1 && n_degrees <= kMaxDegree &&
              c.features % n_degrees == 0 && c.radial_basis >= 2 && c.radial_basis <= kMostBasis &&
              c.cutoff > 0 && c.cutoff < 1000 && c.attention_highest >= 0 &&
              c.attention_highest <= 32767;
  components_ = 0;
  for (int k = 0; k < n_degrees && sane; ++k) {
    const int degree = c.degrees[static_cast<size_t>(k)];
    sane = degree >= 1 && degree <= kMaxDegree &&
           (k == 0 || degree > c.degrees[static_cast<size_t>(k) - 1]);
    components_ += 2 * degree + 1;
  }
  if (!sane) throw ModelFault("the network's sizes are not supported");
  degrees_ = n_degrees;
  const int F = c.features, hidden = F / 4, joint = F + degrees_;
  stride_ = (2 * F + 15) / 16 * 16;
  reference_ = {tensors.doubles("energy_scale", {c.elements}),
                tensors.doubles("energy_shift", {c.elements})};
  embedding_ = tensors.floats("embedding", {c.elements, F});
  ones_.assign(static_cast<size_t>(kMaxHeads), 1.0f);
  for (int index = 0; index < c.layers; ++index) {
    const std::string name = "layers." + std::to_string(index) + ".";
    Layer layer;
    if (c.tabulated) {
      tabulate(tensors, name, layer);
    } else {
      layer.radial_first =
          Product(kernels, tensors, name + "radial.first", c.radial_basis, 2 * F, true, c.elements);
      for (int branch = 0; branch < 2; ++branch) {
        const std::string second = name + "radial." + std::to_string(branch) + ".second";
        layer.radial[branch] = Product(kernels, tensors, second, F, F, true, c.elements);
      }
    }
    layer.spherical_first =
        Product(kernels, tensors, name + "spherical.first", degrees_, 2 * hidden, true, c.elements);
    layer.spherical[0] =
        Product(kernels, tensors, name + "spherical.0", hidden, F, true, c.elements);
    layer.spherical[1] =
        Product(kernels, tensors, name + "spherical.1", hidden, F, true, c.elements);
    layer.atoms = Product(kernels, tensors, name + "atoms", F, 5 * F, false, c.elements);
    for (int branch = 0; branch < 2; ++branch) {
      const int heads = branch == 0 ? c.heads : degrees_;
      const std::string at = "." + std::to_string(branch);
      layer.query_step[branch] = learned_step(tensors, name + "query_step" + at);
      layer.key_step[branch] = learned_step(tensors, name + "key_step" + at);
      if (c.robust) {
        layer.query_factor[branch] = tensors.floats(name + "temperature" + at, {heads});
      } else {
        const float factor = 1.0f / std::sqrt(static_cast<float>(F / heads));
        layer.query_factor[branch].assign(static_cast<size_t>(heads), factor);
      }
    }
    layer.interaction =
        Product(kernels, tensors, name + "interaction", joint, joint, true, c.elements);
    layers_.push_back(std::move(layer));
  }
  head_first_ = Product(kernels, tensors, "head.first", F, F, true, c.elements);
  head_second_ = Product(kernels, tensors, "head.second", F, 1, true, c.elements);
}

void So3krates::radial_basis(double decay, double* values, double* slopes) const {
  const int K = config_.radial_basis;
  const double lowest = std::exp(-config_.cutoff), spread = 1.0 - lowest;
  const double width = std::pow(2.0 / K * spread, -2.0);
  for (int k = 0; k < K; ++k) {
    const double offset = decay - (lowest + spread * k / (K - 1));
    values[k] = std::exp(-width * offset * offset);
    slopes[k] = -2.0 * width * offset * values[k];
  }
}

void So3krates::tabulate(const Tensors& tensors, const std::string& name, Layer& layer) const {
  const int K = config_.radial_basis, F = config_.features;
  const double spacing = grid().spacing();
  layer.table.assign(static_cast<size_t>(kSplines * stride_), 0.0f);
  layer.slope_table = layer.table;
  for (int branch = 0; branch < 2; ++branch) {
    const std::string own = name + "radial." + std::to_string(branch) + ".";
    const auto w1 = tensors.floats(own + "first.weight", {F, K});
    const auto b1 = tensors.floats(own + "first.bias", {F});
    const auto w2 = tensors.floats(own + "second.weight", {F, F});
    const auto b2 = tensors.floats(own + "second.bias", {F});
    /// Filters at v = 1 − e^{−d}, then their slopes in v.
    const auto filters_at = [&](double v) {
      double basis[kMostBasis], slopes[kMostBasis];
      radial_basis(1.0 - v, basis, slopes);
      std::vector<double> rows(static_cast<size_t>(2 * F)), hidden(rows.size());
      for (int f = 0; f < F; ++f) {
        double sum = b1[static_cast<size_t>(f)], slope = 0.0;
        for (int k = 0; k < K; ++k) {
          const double weight = w1[static_cast<size_t>(f * K + k)];
          sum += weight * basis[k];
          slope -= weight * slopes[k];
        }
        const double gate = 1.0 / (1.0 + std::exp(-sum));
        hidden[static_cast<size_t>(f)] = sum * gate;
        hidden[static_cast<size_t>(F + f)] = gate * (1.0 + sum * (1.0 - gate)) * slope;
      }
      for (int o = 0; o < F; ++o) {
        double sum = b2[static_cast<size_t>(o)], slope = 0.0;
        for (int f = 0; f < F; ++f) {
          const double weight = w2[static_cast<size_t>(o * F + f)];
          sum += weight * hidden[static_cast<size_t>(f)];
          slope += weight * hidden[static_cast<size_t>(F + f)];
        }
        rows[static_cast<size_t>(o)] = sum;
        rows[static_cast<size_t>(F + o)] = slope;
      }
      return rows;
    };
    std::vector<std::vector<double>> rows;
    for (int k = 0; k < kSplines - 2; ++k) rows.push_back(filters_at(k * spacing));
    // Slopes at both ends, of the slopes too, from rows right beside them.
    const double step = 1e-5;
    const auto change_at = [&](double v) {
      std::vector<double> change = filters_at(v + step);
      const std::vector<double> down = filters_at(v - step);
      for (size_t f = 0; f < change.size(); ++f) change[f] = (change[f] - down[f]) / (2.0 * step);
      return change;
    };
    const std::vector<double> first = change_at(0.0), last = change_at((kSplines - 3) * spacing);
    std::vector<double> values(rows.size()), coefficients(static_cast<size_t>(kSplines));
    for (int column = 0; column < 2 * F; ++column) {
      const auto at = static_cast<size_t>(column);
      for (size_t k = 0; k < rows.size(); ++k) values[k] = rows[k][at];
      spline_coefficients(values, first[at], last[at], spacing, coefficients.data());
      std::vector<float>& table = column < F ? layer.table : layer.slope_table;
      for (int k = 0; k < kSplines; ++k) {
        table[static_cast<size_t>(k * stride_ + branch * F + column % F)] =
            static_cast<float>(coefficients[static_cast<size_t>(k)]);
      }
    }
  }
}

/// One evaluation. Stages take ranges of atoms or of pairs; what they read of other atoms is
/// complete before they begin.
class So3krates::Evaluation {
 public:
  Evaluation(const So3krates& network, const EdgeGeometry& geometry, const int32_t* species,
             bool gradients, Workspace& workspace, Crew& crew);

  void forward(float* energies);
  const float* backward();

 private:
  template <typename Stage>
  void each(int64_t n, int64_t size, const Stage& stage) {
    crew_.each((n + size - 1) / size, [&](int64_t block, Workspace& local) {
      stage(block * size, std::min(n, (block + 1) * size), local);
      k_.release();
    });
  }
  template <typename Stage>
  void each_atoms(const Stage& stage) {
    each(n_, kBlock, stage);
  }
  template <typename Stage>
  void each_pairs(const Stage& stage) {
    each(edges_.n_pairs, kPairs, stage);
  }
  template <typename Visit>
  void each_degree(const Visit& visit) const {
    int column = 0;
    for (int k = 0; k < D; ++k) {
      const int degree = c_.degrees[static_cast<size_t>(k)];
      visit(k, degree, column);
      column += 2 * degree + 1;
    }
  }
  /// c_ℓ = Σ_m v_m²/√(2ℓ+1)
  void norms(const float* v, float* out) const;
  int heads(int branch) const { return branch == 0 ? c_.heads : D; }
  PairProducts products(const State& s, int branch) const {
    return {heads(branch), F, s.filters + branch * F, network_.stride_};
  }
  /// √((2ℓ+1)/4π) Ŷ is orthonormal.
  static float orthonormal(int degree) {
    return static_cast<float>(std::sqrt((2 * degree + 1) / (4.0 * std::numbers::pi)));
  }

  static uint8_t* clips_from(int64_t row, const Product& product, uint8_t* clips) {
    return clips != nullptr ? clips + row * product.clips() : nullptr;
  }
  State allocate(const Layer& layer);
  void radial_filters(size_t index, int64_t begin, int64_t end, Workspace& local);
  void radial_gradients(size_t index, int64_t begin, int64_t end, const float* d_filters,
                        Workspace& local);
  void prepare(size_t index, int64_t begin, int64_t end, Workspace& local);
  void filter(size_t index, int64_t begin, int64_t end, Workspace& local);
  void attend(size_t index, int64_t begin, int64_t end, Workspace& local);
  void head(int64_t begin, int64_t end, Workspace& local, float* energies);
  void head_backward(int64_t begin, int64_t end, Workspace& local);
  void interact_backward(size_t index, int64_t begin, int64_t end, Workspace& local);
  void attend_backward(size_t index, int64_t begin, int64_t end);
  void filter_backward(size_t index, int64_t begin, int64_t end, Workspace& local);
  void prepare_backward(size_t index, int64_t begin, int64_t end, Workspace& local);

  const So3krates& network_;
  const Kernels& k_;
  const So3kratesConfig& c_;
  const EdgeGeometry& geometry_;
  const Edges& edges_;
  const int32_t* species_;
  bool gradients_;
  Workspace& workspace_;
  Crew& crew_;
  const int64_t n_;
  const int F, D, M, hidden_, joint_;
  std::vector<State>& states_;
  float *x_, *chi_, *before_;
  // Of the reverse pass.
  float *dx_ = nullptr, *d_chi_ = nullptr, *d_atoms_ = nullptr, *edge_gradient_ = nullptr;
  float *d_z_[2] = {}, *d_difference_ = nullptr;
};

So3krates::Evaluation::Evaluation(const So3krates& network, const EdgeGeometry& geometry,
                                  const int32_t* species, bool gradients, Workspace& workspace,
                                  Crew& crew)
    : network_(network),
      k_(*network.kernels_),
      c_(network.config_),
      geometry_(geometry),
      edges_(geometry.edges),
      species_(species),
      gradients_(gradients),
      workspace_(workspace),
      crew_(crew),
      n_(geometry.edges.n_atoms),
      F(c_.features),
      D(network.degrees_),
      M(network.components_),
      hidden_(2 * (F / 4)),
      joint_(F + D),
      states_([&]() -> std::vector<State>& {
        thread_local std::vector<State> states;
        states.resize(network.layers_.size());
        return states;
      }()) {
  for (size_t index = 0; index < states_.size(); ++index) {
    states_[index] = gradients_ || index == 0 ? allocate(network_.layers_[index]) : states_[0];
  }
  x_ = workspace_.take<float>(n_ * F);
  chi_ = workspace_.zeros<float>(n_ * M);
  before_ = workspace_.take<float>(n_ * F);
  for (int64_t i = 0; i < n_; ++i) {
    const float* row = network_.embedding_.data() + static_cast<int64_t>(species[i]) * F;
    std::copy(row, row + F, x_ + i * F);
  }
}

So3krates::State So3krates::Evaluation::allocate(const Layer& layer) {
  State s{};
  const int64_t pairs = edges_.n_pairs;
  s.x = workspace_.take<float>(n_ * F);
  s.chi = workspace_.take<float>(n_ * M);
  s.atoms = workspace_.take<float>(n_ * 5 * F);
  for (int branch = 0; branch < 2; ++branch) {
    for (float** part : {&s.query[branch], &s.key[branch], &s.scaled[branch], &s.rounded[branch]}) {
      *part = workspace_.take<float>(n_ * F);
    }
    s.query_inverse[branch] = workspace_.take<float>(n_ * heads(branch));
    s.key_inverse[branch] = workspace_.take<float>(n_ * heads(branch));
    s.z[branch] = workspace_.take<float>(2 * pairs * heads(branch));
    s.alpha[branch] = workspace_.take<float>(2 * pairs * heads(branch));
  }
  s.difference = workspace_.take<float>(pairs * M);
  s.before = workspace_.take<float>(pairs * hidden_);
  s.filters = workspace_.take<float>(pairs * network_.stride_);
  const bool slopes = gradients_ && c_.tabulated;
  s.slopes = slopes ? workspace_.take<float>(pairs * network_.stride_) : nullptr;
  s.radial_before = c_.tabulated ? nullptr : workspace_.take<float>(pairs * 2 * F);
  s.mixed = workspace_.take<float>(n_ * joint_);
  const auto clips_of = [&](const Product& product, int64_t rows) {
    return product.clips() > 0 ? workspace_.take<uint8_t>(rows * product.clips()) : nullptr;
  };
  s.atoms_clips = clips_of(layer.atoms, n_);
  s.mixed_clips = clips_of(layer.interaction, n_);
  s.first_clips = clips_of(layer.spherical_first, pairs);
  for (int branch = 0; branch < 2; ++branch) {
    s.radial_clips[branch] = clips_of(layer.radial[branch], pairs);
    s.spherical_clips[branch] = clips_of(layer.spherical[branch], pairs);
  }
  return s;
}

void So3krates::Evaluation::norms(const float* v, float* out) const {
  each_degree([&](int k, int degree, int column) {
    float sum = 0.0f;
    for (int m = 0; m < 2 * degree + 1; ++m) sum += v[column + m] * v[column + m];
    out[k] = sum / std::sqrt(static_cast<float>(2 * degree + 1));
  });
}

void So3krates::Evaluation::forward(float* energies) {
  const size_t layers = network_.layers_.size();
  for (size_t index = 0; index < layers; ++index) {
    each_atoms([&](int64_t b, int64_t e, Workspace& local) { prepare(index, b, e, local); });
    each_pairs([&](int64_t b, int64_t e, Workspace& local) { filter(index, b, e, local); });
    each_atoms([&](int64_t b, int64_t e, Workspace& local) { attend(index, b, e, local); });
  }
  each_atoms([&](int64_t b, int64_t e, Workspace& local) { head(b, e, local, energies); });
}

void So3krates::Evaluation::prepare(size_t index, int64_t begin, int64_t end, Workspace& local) {
  const Layer& layer = network_.layers_[index];
  State& s = states_[index];
  const int64_t n = end - begin, ld = 5 * F;
  float* atoms = s.atoms + begin * ld;
  layer.atoms.forward(n, species_ + begin, x_ + begin * F, F, atoms, ld, false, local,
                      clips_from(begin, layer.atoms, s.atoms_clips));
  for (int branch = 0; branch < 2; ++branch) {
    const int h = heads(branch);
    const auto round = [&](const float* x, float step, const float* factor, float* normal,
                           float* inverse, float* scaled) {
      k_.heads(n, h, F / h, x, ld, c_.robust, step > 0.0f ? 0 : c_.attention_highest, factor,
               normal + begin * F, inverse + begin * h, scaled + begin * F);
      if (step > 0.0f) {
        round_heads(n, h, F / h, normal + begin * F, step, c_.attention_highest, factor,
                    scaled + begin * F);
      }
    };
    const float* query = atoms + 2 * branch * F;
    round(query, layer.query_step[branch], layer.query_factor[branch].data(), s.query[branch],
          s.query_inverse[branch], s.scaled[branch]);
    round(query + F, layer.key_step[branch], network_.ones_.data(), s.key[branch],
          s.key_inverse[branch], s.rounded[branch]);
  }
}

void So3krates::Evaluation::radial_filters(size_t index, int64_t begin, int64_t end,
                                           Workspace& local) {
  const Layer& layer = network_.layers_[index];
  State& s = states_[index];
  const int64_t n = end - begin, stride = network_.stride_;
  float* filters = s.filters + begin * stride;
  if (c_.tabulated) {
    Attention table{};
    table.table = layer.table.data();
    table.stride = stride;
    k_.filters(edges_, table, begin, end, filters, nullptr);
    if (!gradients_) return;
    table.table = layer.slope_table.data();
    k_.filters(edges_, table, begin, end, s.slopes + begin * stride, nullptr);
    return;
  }
  const int K = c_.radial_basis;
  float* basis = local.take<float>(n * K);
  double values[kMostBasis], slopes[kMostBasis];
  for (int64_t p = begin; p < end; ++p) {
    network_.radial_basis(std::exp(-geometry_.distances[p]), values, slopes);
    std::copy(values, values + K, basis + (p - begin) * K);
  }
  float* before = s.radial_before + begin * 2 * F;
  float* after = local.take<float>(n * 2 * F);
  layer.radial_first.forward(n, nullptr, basis, K, before, 2 * F, false, local);
  k_.silu(n * 2 * F, before, after);
  for (int branch = 0; branch < 2; ++branch) {
    const Product& second = layer.radial[branch];
    second.forward(n, nullptr, after + branch * F, 2 * F, filters + branch * F, stride, false,
                   local, clips_from(begin, second, s.radial_clips[branch]));
  }
}

void So3krates::Evaluation::filter(size_t index, int64_t begin, int64_t end, Workspace& local) {
  const Layer& layer = network_.layers_[index];
  State& s = states_[index];
  const int64_t n = end - begin, stride = network_.stride_;
  radial_filters(index, begin, end, local);
  float* inputs = local.take<float>(n * D);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t there = geometry_.edge_of_pair[p];
    const int64_t j = edges_.sender[there], i = edges_.sender[edges_.reverse[there]];
    float* difference = s.difference + p * M;
    for (int m = 0; m < M; ++m) difference[m] = chi_[j * M + m] - chi_[i * M + m];
    norms(difference, inputs + (p - begin) * D);
  }
  float* before = s.before + begin * hidden_;
  float* after = local.take<float>(n * hidden_);
  layer.spherical_first.forward(n, nullptr, inputs, D, before, hidden_, false, local,
                                clips_from(begin, layer.spherical_first, s.first_clips));
  k_.silu(n * hidden_, before, after);
  for (int branch = 0; branch < 2; ++branch) {
    const Product& second = layer.spherical[branch];
    second.forward(n, nullptr, after + branch * (hidden_ / 2), hidden_,
                   s.filters + begin * stride + branch * F, stride, true, local,
                   clips_from(begin, second, s.spherical_clips[branch]));
  }
}

void So3krates::Evaluation::attend(size_t index, int64_t begin, int64_t end, Workspace& local) {
  const Layer& layer = network_.layers_[index];
  State& s = states_[index];
  const int64_t n = end - begin, first = edges_.first[begin], last = edges_.first[end];
  for (int branch = 0; branch < 2; ++branch) {
    const int h = heads(branch);
    k_.edge_dots(edges_, products(s, branch), s.scaled[branch], F, s.rounded[branch], F, begin, end,
                 s.z[branch]);
    for (int64_t e = first; e < last; ++e) {
      const float envelope = edges_.envelope[2 * edges_.pair[e]];
      for (int k = 0; k < h; ++k) s.alpha[branch][e * h + k] = envelope * s.z[branch][e * h + k];
    }
  }
  // Others still read x and χ of these atoms' inputs only through `atoms` and `difference`.
  float* x = x_ + begin * F;
  k_.edge_sums(edges_, {c_.heads, F, nullptr, 0}, s.alpha[0], false, s.atoms + 4 * F, 5 * F, begin,
               end, x_, F);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = edges_.first[i]; e < edges_.first[i + 1]; ++e) {
      each_degree([&](int k, int degree, int column) {
        const float factor = orthonormal(degree) * s.alpha[1][e * D + k];
        const float* y = edges_.harmonics[degree] + e * (2 * degree + 1);
        for (int m = 0; m < 2 * degree + 1; ++m) chi_[i * M + column + m] += factor * y[m];
      });
    }
  }
  float* inputs = local.take<float>(n * joint_);
  for (int64_t i = begin; i < end; ++i) {
    float* row = inputs + (i - begin) * joint_;
    std::copy(x_ + i * F, x_ + (i + 1) * F, row);
    norms(chi_ + i * M, row + F);
  }
  std::copy(x, x + n * F, s.x + begin * F);
  std::copy(chi_ + begin * M, chi_ + end * M, s.chi + begin * M);
  float* mixed = s.mixed + begin * joint_;
  layer.interaction.forward(n, species_ + begin, inputs, joint_, mixed, joint_, false, local,
                            clips_from(begin, layer.interaction, s.mixed_clips));
  for (int64_t i = begin; i < end; ++i) {
    const float* row = s.mixed + i * joint_;
    for (int f = 0; f < F; ++f) x_[i * F + f] += row[f];
    each_degree([&](int k, int degree, int column) {
      for (int m = 0; m < 2 * degree + 1; ++m) chi_[i * M + column + m] *= 1.0f + row[F + k];
    });
  }
}

void So3krates::Evaluation::head(int64_t begin, int64_t end, Workspace& local, float* energies) {
  const int64_t n = end - begin;
  float* hidden = local.take<float>(n * F);
  network_.head_first_.forward(n, species_ + begin, x_ + begin * F, F, before_ + begin * F, F,
                               false, local);
  k_.silu(n * F, before_ + begin * F, hidden);
  network_.head_second_.forward(n, species_ + begin, hidden, F, energies + begin, 1, false, local);
}

const float* So3krates::Evaluation::backward() {
  const int64_t n_edges = 2 * edges_.n_pairs;
  dx_ = workspace_.take<float>(n_ * F);
  d_chi_ = workspace_.zeros<float>(n_ * M);
  d_atoms_ = workspace_.take<float>(n_ * 5 * F);
  for (int branch = 0; branch < 2; ++branch) {
    d_z_[branch] = workspace_.take<float>(n_edges * heads(branch));
  }
  d_difference_ = workspace_.take<float>(edges_.n_pairs * M);
  edge_gradient_ = workspace_.zeros<float>(n_edges * edge_gradients(c_.degrees.back()));
  each_atoms([&](int64_t b, int64_t e, Workspace& local) { head_backward(b, e, local); });
  for (size_t index = network_.layers_.size(); index-- > 0;) {
    each_atoms(
        [&](int64_t b, int64_t e, Workspace& local) { interact_backward(index, b, e, local); });
    each_atoms([&](int64_t b, int64_t e, Workspace&) { attend_backward(index, b, e); });
    each_pairs(
        [&](int64_t b, int64_t e, Workspace& local) { filter_backward(index, b, e, local); });
    if (index == 0) break;  // the embedding and χ = 0 do not depend on positions
    each_atoms(
        [&](int64_t b, int64_t e, Workspace& local) { prepare_backward(index, b, e, local); });
  }
  return edge_gradient_;
}

void So3krates::Evaluation::head_backward(int64_t begin, int64_t end, Workspace& local) {
  const int64_t n = end - begin;
  float* seed = local.take<float>(n);
  float* hidden = local.take<float>(n * F);
  for (int64_t i = 0; i < n; ++i) {
    seed[i] =
        static_cast<float>(network_.reference_.scale[static_cast<size_t>(species_[begin + i])]);
  }
  network_.head_second_.backward(n, seed, 1, hidden, F, false, local);
  k_.silu_backward(n * F, before_ + begin * F, hidden);
  network_.head_first_.backward(n, hidden, F, dx_ + begin * F, F, false, local);
}

void So3krates::Evaluation::interact_backward(size_t index, int64_t begin, int64_t end,
                                              Workspace& local) {
  const Layer& layer = network_.layers_[index];
  const State& s = states_[index];
  const int64_t n = end - begin;
  float* d_mixed = local.take<float>(n * joint_);
  float* d_inputs = local.take<float>(n * joint_);
  for (int64_t i = begin; i < end; ++i) {
    float* row = d_mixed + (i - begin) * joint_;
    std::copy(dx_ + i * F, dx_ + (i + 1) * F, row);
    each_degree([&](int k, int degree, int column) {
      float sum = 0.0f;
      for (int m = 0; m < 2 * degree + 1; ++m) {
        sum += d_chi_[i * M + column + m] * s.chi[i * M + column + m];
      }
      row[F + k] = sum;
    });
  }
  layer.interaction.backward(n, d_mixed, joint_, d_inputs, joint_, false, local,
                             clips_from(begin, layer.interaction, s.mixed_clips));
  for (int64_t i = begin; i < end; ++i) {
    const float* row = d_inputs + (i - begin) * joint_;
    k_.add(F, row, dx_ + i * F, dx_ + i * F);
    each_degree([&](int k, int degree, int column) {
      const float grow = 1.0f + s.mixed[i * joint_ + F + k];
      const float twice = 2.0f * row[F + k] / std::sqrt(static_cast<float>(2 * degree + 1));
      for (int m = 0; m < 2 * degree + 1; ++m) {
        float& d = d_chi_[i * M + column + m];
        d = d * grow + twice * s.chi[i * M + column + m];
      }
    });
  }
  // ∂E/∂α of the edges that these atoms receive, then of z, of the cutoff function and of Ŷ.
  const int64_t width = edge_gradients(c_.degrees.back());
  k_.edge_dots(edges_, {c_.heads, F, nullptr, 0}, dx_, F, s.atoms + 4 * F, 5 * F, begin, end,
               d_z_[0]);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = edges_.first[i]; e < edges_.first[i + 1]; ++e) {
      float* gradient = edge_gradient_ + e * width;
      each_degree([&](int k, int degree, int column) {
        const float* y = edges_.harmonics[degree] + e * (2 * degree + 1);
        const float alpha = s.alpha[1][e * D + k];
        float sum = 0.0f;
        for (int m = 0; m < 2 * degree + 1; ++m) {
          const float d = orthonormal(degree) * d_chi_[i * M + column + m];
          sum += d * y[m];
          gradient[edge_gradients(degree - 1) + m] += alpha * d;
        }
        d_z_[1][e * D + k] = sum;
      });
      const float* envelope = edges_.envelope + 2 * edges_.pair[e];
      for (int branch = 0; branch < 2; ++branch) {
        const int h = heads(branch);
        for (int k = 0; k < h; ++k) {
          float& d = d_z_[branch][e * h + k];
          gradient[0] += envelope[1] * d * s.z[branch][e * h + k];
          d *= envelope[0];
        }
      }
    }
  }
}

void So3krates::Evaluation::attend_backward(size_t index, int64_t begin, int64_t end) {
  const State& s = states_[index];
  const int64_t ld = 5 * F;
  std::fill(d_atoms_ + begin * ld, d_atoms_ + end * ld, 0.0f);
  for (int branch = 0; branch < 2; ++branch) {
    float* d_query = d_atoms_ + 2 * branch * F;
    k_.edge_sums(edges_, products(s, branch), d_z_[branch], false, s.rounded[branch], F, begin, end,
                 d_query, ld);
    k_.edge_sums(edges_, products(s, branch), d_z_[branch], true, s.scaled[branch], F, begin, end,
                 d_query + F, ld);
  }
  k_.edge_sums(edges_, {c_.heads, F, nullptr, 0}, s.alpha[0], true, dx_, F, begin, end,
               d_atoms_ + 4 * F, ld);
}

void So3krates::Evaluation::filter_backward(size_t index, int64_t begin, int64_t end,
                                            Workspace& local) {
  const Layer& layer = network_.layers_[index];
  const State& s = states_[index];
  const int64_t n = end - begin, stride = network_.stride_;
  float* d_filters = local.take<float>(n * stride);
  float* d_hidden = local.take<float>(n * hidden_);
  float* d_norms = local.take<float>(n * D);
  for (int branch = 0; branch < 2; ++branch) {
    float* d_filter = d_filters + branch * F;
    k_.filter_gradients(edges_, products(s, branch), geometry_.edge_of_pair, d_z_[branch],
                        s.scaled[branch], s.rounded[branch], F, begin, end, d_filter, stride);
    const Product& second = layer.spherical[branch];
    second.backward(n, d_filter, stride, d_hidden + branch * (hidden_ / 2), hidden_, false, local,
                    clips_from(begin, second, s.spherical_clips[branch]));
  }
  k_.silu_backward(n * hidden_, s.before + begin * hidden_, d_hidden);
  layer.spherical_first.backward(n, d_hidden, hidden_, d_norms, D, false, local,
                                 clips_from(begin, layer.spherical_first, s.first_clips));
  radial_gradients(index, begin, end, d_filters, local);
  for (int64_t p = begin; p < end; ++p) {
    each_degree([&](int k, int degree, int column) {
      const float twice =
          2.0f * d_norms[(p - begin) * D + k] / std::sqrt(static_cast<float>(2 * degree + 1));
      for (int m = 0; m < 2 * degree + 1; ++m) {
        const int64_t at = p * M + column + m;
        d_difference_[at] = twice * s.difference[at];
      }
    });
  }
}

/// Adds ∂E/∂d of pairs that their filters account for.
void So3krates::Evaluation::radial_gradients(size_t index, int64_t begin, int64_t end,
                                             const float* d_filters, Workspace& local) {
  const Layer& layer = network_.layers_[index];
  const State& s = states_[index];
  const int64_t n = end - begin, stride = network_.stride_;
  const int K = c_.radial_basis;
  float *d_basis = nullptr, *d_hidden = nullptr;
  if (!c_.tabulated) {
    d_basis = local.take<float>(n * K);
    d_hidden = local.take<float>(n * 2 * F);
    for (int branch = 0; branch < 2; ++branch) {
      const Product& second = layer.radial[branch];
      second.backward(n, d_filters + branch * F, stride, d_hidden + branch * F, 2 * F, false, local,
                      clips_from(begin, second, s.radial_clips[branch]));
    }
    k_.silu_backward(n * 2 * F, s.radial_before + begin * 2 * F, d_hidden);
    layer.radial_first.backward(n, d_hidden, 2 * F, d_basis, K, false, local);
  }
  const int64_t width = edge_gradients(c_.degrees.back());
  double values[kMostBasis], slopes[kMostBasis];
  for (int64_t p = begin; p < end; ++p) {
    const double decay = std::exp(-geometry_.distances[p]);
    double sum = 0.0;  // ∂E/∂(1 − e^{−d})
    if (c_.tabulated) {
      const float* d_filter = d_filters + (p - begin) * stride;
      const float* slope = s.slopes + p * stride;
      for (int f = 0; f < 2 * F; ++f) sum += d_filter[f] * slope[f];
    } else {
      network_.radial_basis(decay, values, slopes);
      for (int k = 0; k < K; ++k) sum -= d_basis[(p - begin) * K + k] * slopes[k];
    }
    edge_gradient_[geometry_.edge_of_pair[p] * width] += static_cast<float>(sum * decay);
  }
}

void So3krates::Evaluation::prepare_backward(size_t index, int64_t begin, int64_t end,
                                             Workspace& local) {
  const Layer& layer = network_.layers_[index];
  const State& s = states_[index];
  const int64_t n = end - begin, ld = 5 * F;
  for (int branch = 0; branch < 2; ++branch) {
    const int h = heads(branch);
    const auto unround = [&](float* d, float step, const float* factor, const float* normal,
                             const float* inverse) {
      if (step > 0.0f) {
        drop_beyond(n, F, normal + begin * F, step, c_.attention_highest, d, ld);
      }
      k_.heads_backward(n, h, F / h, c_.robust, factor, normal + begin * F, inverse + begin * h, d,
                        ld);
    };
    float* d_query = d_atoms_ + begin * ld + 2 * branch * F;
    unround(d_query, layer.query_step[branch], layer.query_factor[branch].data(), s.query[branch],
            s.query_inverse[branch]);
    unround(d_query + F, layer.key_step[branch], network_.ones_.data(), s.key[branch],
            s.key_inverse[branch]);
  }
  layer.atoms.backward(n, d_atoms_ + begin * ld, ld, dx_ + begin * F, F, true, local,
                       clips_from(begin, layer.atoms, s.atoms_clips));
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = edges_.first[i]; e < edges_.first[i + 1]; ++e) {
      const int64_t p = edges_.pair[e];
      const float sign = geometry_.edge_of_pair[p] == e ? -1.0f : 1.0f;
      for (int m = 0; m < M; ++m) d_chi_[i * M + m] += sign * d_difference_[p * M + m];
    }
  }
}

std::vector<Arithmetic> So3krates::arithmetic() const {
  std::vector<Arithmetic> rows;
  const auto add = [&](const std::string& name, const Product& product) {
    rows.push_back({name, product.forward_arithmetic(), product.reverse_arithmetic()});
  };
  for (size_t index = 0; index < layers_.size(); ++index) {
    const Layer& layer = layers_[index];
    const std::string at = "layers." + std::to_string(index) + ".";
    add(at + "query, key, value", layer.atoms);
    add(at + "interaction", layer.interaction);
    if (config_.tabulated) {
      rows.push_back({at + "radial", "float32 table", "float32 table"});
    } else {
      add(at + "radial.first", layer.radial_first);
      add(at + "radial.second", layer.radial[0]);
    }
    add(at + "spherical.first", layer.spherical_first);
    add(at + "spherical.second", layer.spherical[0]);
  }
  add("head.first", head_first_);
  add("head.second", head_second_);
  return rows;
}

void So3krates::compute(PairList& list, const int32_t* species, Workspace& workspace, Crew& crew,
                        const Outputs& outputs) const {
  const int64_t n = list.n_atoms;
  const bool gradients = outputs.forces != nullptr || outputs.virial != nullptr;
  double rotation[9];
  canonical_orientation(list, species, config_.cutoff, workspace, rotation);
  turn_pairs(list, rotation);
  const int max_degree = config_.degrees.back();
  const EdgeGeometry geometry = edge_geometry(list, grid(), max_degree, workspace, crew);
  Evaluation evaluation(*this, geometry, species, gradients, workspace, crew);
  float* energies = workspace.take<float>(n);
  evaluation.forward(energies);
  const float* edge_gradients = gradients ? evaluation.backward() : nullptr;
  finish(list, geometry, max_degree, rotation, reference_, species, energies, edge_gradients,
         workspace, crew, outputs);
}

}  // namespace equibit
