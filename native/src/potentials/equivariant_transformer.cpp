#include "potentials/equivariant_transformer.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace equibit {

namespace {

constexpr int64_t kBlock = 32;           // atoms that one thread takes at a time
constexpr int64_t kSharedFilters = 256;  // pairs up to which both of their edges read one filter

}  // namespace

/// What the reverse pass needs of one layer, [n_atoms] rows each. The last of a run is the head's.
struct EquivariantTransformer::State {
  float *normal, *inverse;  // of the first LayerNorm
  float* qkv;
  float *query, *query_inverse, *key, *key_inverse;  // normalised, before rounding
  float *scaled_query, *rounded_key;
  Attention attention;
  float *update_normal, *update_inverse;
  float* vectors[kMaxDegree + 1];  // after attention
  float* local[kMaxDegree + 1];    // the same in the frames where they are mixed
  float* mixed[kMaxDegree + 1];    // [U, T]
  float* product[kMaxDegree + 1];  // P, or null
  float* updated[kMaxDegree + 1];  // vectors after the layer
  float *before, *gates;           // of SiLU; output of the update network
  // What learned steps clipped of the inputs of products.
  uint8_t *qkv_clips, *output_clips, *hidden_clips, *update_clips;
};

/// One evaluation. Stages take ranges of atoms, and only `attend` and its reverse look at others.
class EquivariantTransformer::Evaluation {
 public:
  Evaluation(const EquivariantTransformer& network, const EdgeGeometry& geometry,
             const int32_t* species, const float* const* frames, bool gradients,
             Workspace& workspace, Crew& crew);

  void forward(float* energies);
  /// ∂E/∂d and ∂E/∂Ŷ of every edge.
  const float* backward();

 private:
  template <typename Stage>
  void each_block(const Stage& stage) {
    crew_.each((n_ + kBlock - 1) / kBlock, [&](int64_t block, Workspace& local) {
      stage(block * kBlock, std::min(n_, (block + 1) * kBlock), local);
      k_.release();
    });
  }
  State allocate(size_t index);
  static uint8_t* clips_from(int64_t row, const Product& product, uint8_t* clips) {
    return clips != nullptr ? clips + row * product.clips() : nullptr;
  }
  /// Filters of all pairs of one layer, where those are few, in the memory of the layer before.
  void share_filters(size_t index, bool reverse);
  void prepare(size_t index, int64_t begin, int64_t end, Workspace& local);
  void attend(size_t index, int64_t begin, int64_t end, Workspace& local);
  void update(size_t index, int64_t begin, int64_t end, Workspace& local);
  void head(int64_t begin, int64_t end, Workspace& local, float* energies);
  void head_backward(int64_t begin, int64_t end, Workspace& local);
  void update_backward(size_t index, int64_t begin, int64_t end, Workspace& local);
  void prepare_backward(size_t index, int64_t begin, int64_t end, Workspace& local);
  AttentionGradient attention_gradient() const;

  const EquivariantTransformer& network_;
  const Kernels& k_;
  const TransformerConfig& c_;
  const EdgeGeometry& geometry_;
  const int32_t* species_;
  const float* const* frames_;
  bool gradients_;
  Workspace& workspace_;
  Crew& crew_;
  const int64_t n_;
  const int F, C, L, H, VW;
  const int64_t qkv_width_;
  std::vector<State>& states_;
  float* x_;
  float* filters_ = nullptr;
  uint16_t* half_filters_ = nullptr;
  // Of the reverse pass.
  float *dx_ = nullptr, *d_qkv_ = nullptr, *d_invariants_ = nullptr, *d_sums_ = nullptr;
  float *d_z_ = nullptr, *edge_gradient_ = nullptr, *half_scales_ = nullptr;
  uint16_t* half_gradients_ = nullptr;
  float *d_vectors_[kMaxDegree + 1] = {}, *d_messages_[kMaxDegree + 1] = {};
};

EquivariantTransformer::EquivariantTransformer(const TransformerConfig& config,
                                               const Tensors& tensors, const Kernels& kernels)
    : config_(config), kernels_(&kernels) {
  const auto& c = config_;
  const bool sane = c.elements >= 1 && c.layers >= 1 && c.heads >= 1 && c.heads <= kMaxHeads &&
                    c.scalars >= 1 && c.scalars % c.heads == 0 && c.max_degree >= 0 &&
                    c.max_degree <= kMaxDegree && c.splines >= 4 && c.hidden >= 1 && c.cutoff > 0 &&
                    (c.max_degree > 0) == (c.channels > 0) && c.channels % c.heads == 0 &&
                    c.scalars <= 4096 && c.channels <= 4096 && c.hidden <= 32768 &&
                    c.attention_highest >= 0 && c.attention_highest <= 32767 && c.layers <= 64 &&
                    c.elements <= 118 && c.splines <= 4096;
  if (!sane) throw ModelFault("the network's sizes are not supported");

  const int F = c.scalars, C = c.channels, L = c.max_degree, VW = F + L * C;
  reference_ = {tensors.doubles("energy_scale", {c.elements}),
                tensors.doubles("energy_shift", {c.elements})};
  embedding_ = tensors.floats("embedding", {c.elements, F});
  ones_.assign(static_cast<size_t>(c.heads), 1.0f);

  if (L > 1) {
    for (int l1 = 1; l1 <= L; ++l1) {
      for (int l2 = 1; l2 <= L; ++l2) {
        for (int l3 = 1; l3 <= L; ++l3) {
          if (l3 < std::abs(l1 - l2) || l3 > l1 + l2 || (l1 + l2 + l3) % 2 != 0) continue;
          SparseCoupling sparse{l1, l2, l3, {}, {}};
          const int n1 = 2 * l1 + 1, n2 = 2 * l2 + 1, n3 = 2 * l3 + 1;
          const auto dense = tensors.doubles("coupling." + std::to_string(l1) + "." +
                                                 std::to_string(l2) + "." + std::to_string(l3),
                                             {n1, n2, n3});
          for (int k = 0; k < n3; ++k) {
            for (int m = 0; m < n1; ++m) {
              for (int n = 0; n < n2; ++n) {
                const double value = dense[static_cast<size_t>((m * n2 + n) * n3 + k)];
                if (std::abs(value) < 1e-12) continue;
                sparse.terms.insert(sparse.terms.end(), {m, n, k});
                sparse.values.push_back(static_cast<float>(value));
              }
            }
          }
          couplings_.push_back(std::move(sparse));
        }
      }
    }
  }

  if (c.local_frames) {
    for (int l = 2; l <= L; ++l) {
      wigner_[l] = tensors.doubles("coupling.1." + std::to_string(l - 1) + "." + std::to_string(l),
                                   {3, 2 * l - 1, 2 * l + 1});
    }
  }

  for (int index = 0; index < c.layers; ++index) {
    const std::string attend = "attention." + std::to_string(index) + ".";
    const std::string update = "update." + std::to_string(index) + ".";
    const bool first = index == 0, last = index == c.layers - 1;
    Layer layer;
    layer.norm_gain = tensors.floats(attend + "norm.weight", {F});
    layer.norm_bias = tensors.floats(attend + "norm.bias", {F});
    layer.qkv = Product(kernels, tensors, attend + "qkv", F, 2 * F + VW, true, c.elements);
    if (c.robust) {
      layer.query_factor = tensors.floats(attend + "temperature", {c.heads});
    } else {
      const float factor = 1.0f / std::sqrt(static_cast<float>(F / c.heads));
      layer.query_factor.assign(static_cast<size_t>(c.heads), factor);
    }
    layer.query_step = learned_step(tensors, attend + "query_step");
    layer.key_step = learned_step(tensors, attend + "key_step");
    const int columns = table_columns(first);
    const auto table = tensors.floats(attend + "table", {c.splines, columns});
    const int64_t stride = table_stride(first);
    layer.table.assign(static_cast<size_t>(c.splines * stride), 0.0f);
    for (int k = 0; k < c.splines; ++k) {
      for (int column = 0; column < columns; ++column) {
        layer.table[static_cast<size_t>(k * stride + column)] =
            table[static_cast<size_t>(k * columns + column)];
      }
    }
    layer.output =
        Product(kernels, tensors, attend + "output", first ? F : VW, F, true, c.elements);

    layer.update_gain = tensors.floats(update + "norm.weight", {F});
    layer.update_bias = tensors.floats(update + "norm.bias", {F});
    layer.mix.resize(static_cast<size_t>(L) + 1);
    for (int l = 1; l <= L; ++l) {
      layer.mix[static_cast<size_t>(l)] = Product(
          kernels, tensors, update + "mix." + std::to_string(l), C, 2 * C, false, c.elements);
    }
    if (!last && !couplings_.empty()) {
      const int64_t paths = static_cast<int64_t>(couplings_.size());
      const auto weights = tensors.floats(update + "products", {paths, C});
      for (int64_t path = 0; path < paths; ++path) {
        layer.product_weights.emplace_back(weights.begin() + path * C,
                                           weights.begin() + (path + 1) * C);
      }
    }
    layer.hidden = Product(kernels, tensors, update + "hidden", VW, c.hidden, true, c.elements);
    layer.update =
        Product(kernels, tensors, update + "output", c.hidden, last ? F : VW, true, c.elements);
    layers_.push_back(std::move(layer));
  }
  head_gain_ = tensors.floats("head.norm.weight", {F});
  head_bias_ = tensors.floats("head.norm.bias", {F});
  head_hidden_ = Product(kernels, tensors, "head.hidden", F, F, true, c.elements);
  head_output_ = Product(kernels, tensors, "head.output", F, 1, true, c.elements);
  if (kernels.halves != nullptr && layers_[0].qkv.reverse_in_codes() && halves_fit(F, C, L)) {
    narrow_tables();
  }
}

void EquivariantTransformer::narrow_tables() {
  constexpr float kMost = 32.0f;  // of a filter: sums of products stay far from 65,504
  for (const Layer& layer : layers_) {
    for (const float value : layer.table) {
      if (!(std::abs(value) < kMost)) return;
    }
  }
  halves_ = kernels_->halves;
  for (size_t index = 0; index < layers_.size(); ++index) {
    Layer& layer = layers_[index];
    const int64_t wide = table_stride(index == 0), stride = half_stride(index == 0);
    const int64_t splines = config_.splines;
    std::vector<float> values(static_cast<size_t>(splines * stride), 0.0f);
    std::vector<float> differences(values.size(), 0.0f);
    for (int64_t k = 0; k < splines; ++k) {
      const float* row = layer.table.data() + k * wide;
      for (int64_t c = 0; c < std::min(wide, stride); ++c) {
        const auto at = static_cast<size_t>(k * stride + c);
        values[at] = row[c];
        if (k + 1 < splines) differences[at] = row[wide + c] - row[c];
      }
    }
    layer.half_table.resize(values.size());
    layer.half_differences.resize(values.size());
    const auto size = static_cast<int64_t>(values.size());
    halves_->narrow(size, values.data(), layer.half_table.data());
    halves_->narrow(size, differences.data(), layer.half_differences.data());
  }
}

int EquivariantTransformer::table_columns(bool first) const {
  const auto& c = config_;
  const int per_degree = first ? 1 : 3 + (c.axial ? c.max_degree : 0);
  return c.scalars + per_degree * c.max_degree * c.channels + c.heads;
}

int64_t EquivariantTransformer::table_stride(bool first) const {
  return (table_columns(first) + 15) / 16 * 16;
}

int64_t EquivariantTransformer::half_stride(bool first) const {
  return (table_columns(first) + 31) / 32 * 32;
}

Coupling EquivariantTransformer::coupling(const Layer& layer, size_t path) const {
  const SparseCoupling& sparse = couplings_[path];
  return {.l1 = sparse.l1,
          .l2 = sparse.l2,
          .l3 = sparse.l3,
          .n_terms = static_cast<int>(sparse.values.size()),
          .terms = sparse.terms.data(),
          .values = sparse.values.data(),
          .weight = layer.product_weights[path].data()};
}

std::vector<Arithmetic> EquivariantTransformer::arithmetic() const {
  std::vector<Arithmetic> rows;
  const auto add = [&](const std::string& name, const Product& product) {
    rows.push_back({name, product.forward_arithmetic(), product.reverse_arithmetic()});
  };
  for (size_t index = 0; index < layers_.size(); ++index) {
    const Layer& layer = layers_[index];
    const std::string at = std::to_string(index);
    add("attention." + at + ".query, key, value", layer.qkv);
    if (halves_ != nullptr) {
      rows.push_back({"attention." + at + ".filters and messages", "float32", "16-bit floats"});
    }
    add("attention." + at + ".output", layer.output);
    for (size_t l = 1; l < layer.mix.size(); ++l) {
      add("update." + at + ".mix." + std::to_string(l), layer.mix[l]);
    }
    add("update." + at + ".hidden", layer.hidden);
    add("update." + at + ".output", layer.update);
  }
  add("head.hidden", head_hidden_);
  add("head.output", head_output_);
  return rows;
}

void EquivariantTransformer::compute(PairList& list, const int32_t* species, Workspace& workspace,
                                     Crew& crew, const Outputs& outputs) const {
  const int64_t n = list.n_atoms;
  const bool gradients = outputs.forces != nullptr || outputs.virial != nullptr;
  double rotation[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  if (config_.orient) {
    canonical_orientation(list, species, config_.cutoff, workspace, rotation);
    turn_pairs(list, rotation);
  }
  float* frames[kMaxDegree + 1] = {};
  if (config_.local_frames && config_.max_degree > 0) {
    const double* couplings[kMaxDegree + 1] = {};
    for (int l = 2; l <= config_.max_degree; ++l) couplings[l] = wigner_[l].data();
    const double* axes = local_frames(list, species, config_.cutoff, workspace);
    wigner_matrices(n, axes, config_.max_degree, couplings, workspace, frames);
  }
  const EdgeGeometry geometry =
      edge_geometry(list, {config_.cutoff, config_.splines, RadialGrid::Kind::kPolynomial},
                    config_.max_degree, workspace, crew);

  Evaluation evaluation(*this, geometry, species, frames, gradients, workspace, crew);
  float* energies = workspace.take<float>(n);
  evaluation.forward(energies);
  const float* edge_gradients = gradients ? evaluation.backward() : nullptr;
  finish(list, geometry, config_.max_degree, rotation, reference_, species, energies,
         edge_gradients, workspace, crew, outputs);
}

EquivariantTransformer::Evaluation::Evaluation(const EquivariantTransformer& network,
                                               const EdgeGeometry& geometry, const int32_t* species,
                                               const float* const* frames, bool gradients,
                                               Workspace& workspace, Crew& crew)
    : network_(network),
      k_(*network.kernels_),
      c_(network.config_),
      geometry_(geometry),
      species_(species),
      frames_(frames),
      gradients_(gradients),
      workspace_(workspace),
      crew_(crew),
      n_(geometry.edges.n_atoms),
      F(c_.scalars),
      C(c_.channels),
      L(c_.max_degree),
      H(c_.heads),
      VW(F + L * C),
      qkv_width_(2 * F + VW),
      states_([&]() -> std::vector<State>& {
        // One vector per thread outlives the calls, so that none of them allocates.
        thread_local std::vector<State> states;
        states.resize(network.layers_.size() + 1);
        return states;
      }()) {
  for (size_t index = 0; index < network_.layers_.size(); ++index) {
    // Without a reverse pass two layers' memory serves them all in turn.
    states_[index] = gradients_ || index < 2 ? allocate(index) : states_[index - 2];
  }
  State& head = states_.back();
  head.normal = workspace_.take<float>(n_ * F);
  head.inverse = workspace_.take<float>(n_);
  head.before = workspace_.take<float>(n_ * F);
  x_ = workspace_.take<float>(n_ * F);
  for (int64_t i = 0; i < n_; ++i) {
    const float* row = network_.embedding_.data() + static_cast<int64_t>(species[i]) * F;
    std::copy(row, row + F, x_ + i * F);
  }
}

EquivariantTransformer::State EquivariantTransformer::Evaluation::allocate(size_t index) {
  const bool last = index + 1 == network_.layers_.size();
  const auto take = [&](int64_t width) { return workspace_.take<float>(n_ * width); };
  State s{};
  s.normal = take(F);
  s.inverse = take(1);
  s.qkv = take(qkv_width_);
  s.query = take(F);
  s.key = take(F);
  s.query_inverse = take(H);
  s.key_inverse = take(H);
  s.scaled_query = take(F);
  s.rounded_key = take(F);
  s.update_normal = take(F);
  s.update_inverse = take(1);
  s.before = take(c_.hidden);
  s.gates = take(VW);
  const Layer& layer = network_.layers_[index];
  const auto clips_of = [&](const Product& product) {
    return product.clips() > 0 ? workspace_.take<uint8_t>(n_ * product.clips()) : nullptr;
  };
  s.qkv_clips = clips_of(layer.qkv);
  s.output_clips = clips_of(layer.output);
  s.hidden_clips = clips_of(layer.hidden);
  s.update_clips = clips_of(layer.update);
  Attention& a = s.attention;
  a.heads = H;
  a.scalars = F;
  a.channels = C;
  a.max_degree = L;
  a.softmax = c_.softmax;
  a.axial = c_.axial;
  a.query = s.scaled_query;
  a.key = s.rounded_key;
  a.value = s.qkv + 2 * F;
  a.value_ld = qkv_width_;
  a.raw = workspace_.take<float>(2 * geometry_.edges.n_pairs * H);
  a.invariants = take(VW);
  for (int l = 1; l <= L; ++l) {
    const int64_t width = static_cast<int64_t>(2 * l + 1) * C;
    a.messages[l] = c_.softmax && gradients_ ? take(width) : nullptr;
    a.vectors_out[l] = s.vectors[l] = take(width);
    s.local[l] = frames_[l] != nullptr ? take(width) : s.vectors[l];
    s.mixed[l] = take(2 * width);
    s.product[l] = network_.couplings_.empty() ? nullptr : take(width);
    s.updated[l] = last && gradients_ ? nullptr : take(width);
  }
  return s;
}

void EquivariantTransformer::Evaluation::share_filters(size_t index, bool reverse) {
  const int64_t n = geometry_.edges.n_pairs;
  if (n > kSharedFilters) return;
  Attention& a = states_[index].attention;
  if (reverse && network_.halves_ != nullptr) {
    if (half_filters_ == nullptr) {
      half_filters_ = workspace_.take<uint16_t>(2 * n * network_.half_stride(false));
    }
    uint16_t* slopes = half_filters_ + n * a.half_stride;
    a.half_filters = half_filters_;
    a.half_slopes = slopes;
    network_.halves_->filters(geometry_.edges, a, 0, n, half_filters_, slopes);
    return;
  }
  if (filters_ == nullptr) filters_ = workspace_.take<float>(2 * n * network_.table_stride(false));
  a.filters = filters_;
  a.slopes = filters_ + n * a.stride;
  k_.filters(geometry_.edges, a, 0, n, filters_, reverse ? filters_ + n * a.stride : nullptr);
}

void EquivariantTransformer::Evaluation::forward(float* energies) {
  const size_t layers = network_.layers_.size();
  each_block([&](int64_t begin, int64_t end, Workspace& local) { prepare(0, begin, end, local); });
  for (size_t index = 0; index < layers; ++index) {
    share_filters(index, false);
    each_block([&](int64_t begin, int64_t end, Workspace& local) {
      attend(index, begin, end, local);
      update(index, begin, end, local);
      if (index + 1 < layers) {
        prepare(index + 1, begin, end, local);
      } else {
        head(begin, end, local, energies);
      }
    });
  }
}

void EquivariantTransformer::Evaluation::prepare(size_t index, int64_t begin, int64_t end,
                                                 Workspace& local) {
  const Layer& layer = network_.layers_[index];
  State& s = states_[index];
  const int64_t n = end - begin;
  const bool first = index == 0;
  if (begin == 0) {
    Attention& a = s.attention;
    a.first = first;
    a.table = layer.table.data();
    a.stride = network_.table_stride(first);
    a.half_table = layer.half_table.data();
    a.half_differences = layer.half_differences.data();
    a.half_stride = network_.half_stride(first);
    a.invariant_ld = first ? F : VW;
    for (int l = 1; l <= L; ++l) a.vectors[l] = first ? nullptr : states_[index - 1].updated[l];
  }
  float* h = local.take<float>(n * F);
  k_.layer_norm(n, F, x_ + begin * F, layer.norm_gain.data(), layer.norm_bias.data(),
                s.normal + begin * F, s.inverse + begin, h, F);
  float* qkv = s.qkv + begin * qkv_width_;
  layer.qkv.forward(n, species_ + begin, h, F, qkv, qkv_width_, false, local,
                    clips_from(begin, layer.qkv, s.qkv_clips));
  const auto round = [&](const float* x, float step, const float* factor, float* normal,
                         float* inverse, float* scaled) {
    k_.heads(n, H, F / H, x, qkv_width_, c_.robust, step > 0.0f ? 0 : c_.attention_highest, factor,
             normal + begin * F, inverse + begin * H, scaled + begin * F);
    if (step > 0.0f) {
      round_heads(n, H, F / H, normal + begin * F, step, c_.attention_highest, factor,
                  scaled + begin * F);
    }
  };
  round(qkv, layer.query_step, layer.query_factor.data(), s.query, s.query_inverse, s.scaled_query);
  round(qkv + F, layer.key_step, network_.ones_.data(), s.key, s.key_inverse, s.rounded_key);
}

void EquivariantTransformer::Evaluation::attend(size_t index, int64_t begin, int64_t end,
                                                Workspace& local) {
  const State& s = states_[index];
  const Attention& a = s.attention;
  const Edges& edges = geometry_.edges;
  k_.attention(edges, a, begin, end, local.take<float>(edge_scratch(edges, a)));
  const Product& output = network_.layers_[index].output;
  output.forward(end - begin, species_ + begin, a.invariants + begin * a.invariant_ld,
                 a.invariant_ld, x_ + begin * F, F, true, local,
                 clips_from(begin, output, s.output_clips));
}

void EquivariantTransformer::Evaluation::update(size_t index, int64_t begin, int64_t end,
                                                Workspace& local) {
  const Layer& layer = network_.layers_[index];
  State& s = states_[index];
  const int64_t n = end - begin;
  float* inputs = local.take<float>(n * VW);
  float* hidden = local.take<float>(n * c_.hidden);
  float* x = x_ + begin * F;
  k_.layer_norm(n, F, x, layer.update_gain.data(), layer.update_bias.data(),
                s.update_normal + begin * F, s.update_inverse + begin, inputs, VW);
  for (int l = 1; l <= L; ++l) {
    const int m = 2 * l + 1;
    const int64_t at = begin * m * C;
    if (frames_[l] != nullptr) {
      k_.rotate(n, m, C, frames_[l] + begin * m * m, true, s.vectors[l] + at, nullptr,
                s.local[l] + at);
    }
    layer.mix[static_cast<size_t>(l)].forward_vectors(n, m, s.local[l] + at, s.mixed[l] + 2 * at,
                                                      local);
    const float factor = 1.0f / std::sqrt(static_cast<float>(m));
    k_.vector_dot(n, m, C, s.mixed[l] + 2 * at, factor, inputs + F + (l - 1) * C, VW);
  }
  float* before = s.before + begin * c_.hidden;
  layer.hidden.forward(n, species_ + begin, inputs, VW, before, c_.hidden, false, local,
                       clips_from(begin, layer.hidden, s.hidden_clips));
  k_.silu(n * c_.hidden, before, hidden);
  uint8_t* update_clips = clips_from(begin, layer.update, s.update_clips);
  if (index + 1 == network_.layers_.size()) {
    layer.update.forward(n, species_ + begin, hidden, c_.hidden, x, F, true, local, update_clips);
    return;
  }
  float* gates = s.gates + begin * VW;
  layer.update.forward(n, species_ + begin, hidden, c_.hidden, gates, VW, false, local,
                       update_clips);
  for (int64_t i = 0; i < n; ++i) k_.add(F, gates + i * VW, x + i * F, x + i * F);
  const auto row = [&](int l) { return begin * (2 * l + 1) * C; };
  if (!network_.couplings_.empty()) {
    for (int l = 1; l <= L; ++l) {
      std::fill(s.product[l] + row(l), s.product[l] + end * (2 * l + 1) * C, 0.0f);
    }
  }
  for (size_t path = 0; path < network_.couplings_.size(); ++path) {
    const Coupling coupling = network_.coupling(layer, path);
    k_.couple(n, C, coupling, s.mixed[coupling.l1] + 2 * row(coupling.l1),
              s.mixed[coupling.l2] + 2 * row(coupling.l2),
              s.product[coupling.l3] + row(coupling.l3));
  }
  for (int l = 1; l <= L; ++l) {
    const int m = 2 * l + 1;
    const int64_t at = row(l);
    const float* product = s.product[l] != nullptr ? s.product[l] + at : nullptr;
    const float* gate = gates + F + (l - 1) * C;
    const float *mixed = s.mixed[l] + 2 * at, *before = s.vectors[l] + at;
    float* updated = s.updated[l] + at;
    if (frames_[l] != nullptr) {
      float* gated = local.take<float>(n * m * C);
      k_.gate(n, m, C, gate, VW, mixed, product, nullptr, gated);
      k_.rotate(n, m, C, frames_[l] + begin * m * m, false, gated, before, updated);
    } else {
      k_.gate(n, m, C, gate, VW, mixed, product, before, updated);
    }
  }
}

void EquivariantTransformer::Evaluation::head(int64_t begin, int64_t end, Workspace& local,
                                              float* energies) {
  State& s = states_.back();
  const int64_t n = end - begin;
  float* h = local.take<float>(n * F);
  k_.layer_norm(n, F, x_ + begin * F, network_.head_gain_.data(), network_.head_bias_.data(),
                s.normal + begin * F, s.inverse + begin, h, F);
  float* before = s.before + begin * F;
  network_.head_hidden_.forward(n, species_ + begin, h, F, before, F, false, local);
  k_.silu(n * F, before, h);
  network_.head_output_.forward(n, species_ + begin, h, F, energies + begin, 1, false, local);
}

const float* EquivariantTransformer::Evaluation::backward() {
  const int64_t n_edges = 2 * geometry_.edges.n_pairs;
  dx_ = workspace_.zeros<float>(n_ * F);
  d_qkv_ = workspace_.take<float>(n_ * qkv_width_);
  d_invariants_ = workspace_.take<float>(n_ * VW);
  d_sums_ = workspace_.take<float>(n_ * H);
  d_z_ = workspace_.take<float>(n_edges * H);
  edge_gradient_ = workspace_.zeros<float>(n_edges * edge_gradients(L));
  for (int l = 1; l <= L; ++l) {
    const int64_t size = n_ * (2 * l + 1) * C;
    d_vectors_[l] = workspace_.zeros<float>(size);  // nothing reads the last layer's vectors
    d_messages_[l] = workspace_.take<float>(size);
  }
  if (network_.halves_ != nullptr) {
    half_gradients_ = workspace_.take<uint16_t>(n_ * half_row(states_[0].attention));
    half_scales_ = workspace_.take<float>(n_);
  }
  const size_t layers = network_.layers_.size();
  each_block([&](int64_t begin, int64_t end, Workspace& local) {
    head_backward(begin, end, local);
    update_backward(layers - 1, begin, end, local);
  });
  for (size_t index = layers; index-- > 0;) {
    share_filters(index, true);
    const Attention& a = states_[index].attention;
    const AttentionGradient g = attention_gradient();
    each_block([&](int64_t begin, int64_t end, Workspace& local) {
      const Edges& edges = geometry_.edges;
      const auto reverse =
          network_.halves_ != nullptr ? network_.halves_->backward : k_.attention_backward;
      reverse(edges, a, g, begin, end, local.take<float>(edge_scratch(edges, a)));
    });
    if (index == 0) break;  // the embedding does not depend on positions
    each_block([&](int64_t begin, int64_t end, Workspace& local) {
      k_.attention_query_backward(geometry_.edges, a, g, begin, end);
      prepare_backward(index, begin, end, local);
      update_backward(index - 1, begin, end, local);
    });
  }
  return edge_gradient_;
}

AttentionGradient EquivariantTransformer::Evaluation::attention_gradient() const {
  AttentionGradient g{};
  g.invariants = d_invariants_;
  g.sums = d_sums_;
  g.query = d_qkv_;
  g.key = d_qkv_ + F;
  g.value = d_qkv_ + 2 * F;
  g.qkv_ld = qkv_width_;
  g.d_z = d_z_;
  g.geometry = edge_gradient_;
  g.halves = half_gradients_;
  g.half_scales = half_scales_;
  for (int l = 1; l <= L; ++l) {
    g.messages[l] = d_messages_[l];
    g.vectors[l] = d_vectors_[l];
  }
  return g;
}

void EquivariantTransformer::Evaluation::head_backward(int64_t begin, int64_t end,
                                                       Workspace& local) {
  const State& s = states_.back();
  const int64_t n = end - begin;
  float* seed = local.take<float>(n);
  for (int64_t i = 0; i < n; ++i) {
    seed[i] =
        static_cast<float>(network_.reference_.scale[static_cast<size_t>(species_[begin + i])]);
  }
  float* dh = local.take<float>(n * F);
  float* d_normed = local.take<float>(n * F);
  network_.head_output_.backward(n, seed, 1, dh, F, false, local);
  k_.silu_backward(n * F, s.before + begin * F, dh);
  network_.head_hidden_.backward(n, dh, F, d_normed, F, false, local);
  k_.layer_norm_backward(n, F, d_normed, F, network_.head_gain_.data(), s.normal + begin * F,
                         s.inverse + begin, dx_ + begin * F);
}

void EquivariantTransformer::Evaluation::update_backward(size_t index, int64_t begin, int64_t end,
                                                         Workspace& local) {
  const Layer& layer = network_.layers_[index];
  const State& s = states_[index];
  const int64_t n = end - begin;
  const bool last = index + 1 == network_.layers_.size();
  const auto row = [&](int l) { return begin * (2 * l + 1) * C; };
  const auto size = [&](int l) { return n * (2 * l + 1) * C; };
  float* dx = dx_ + begin * F;
  float* d_inputs = local.take<float>(n * VW);
  float* d_hidden = local.take<float>(n * c_.hidden);
  float *d_mixed[kMaxDegree + 1] = {}, *d_product[kMaxDegree + 1] = {};
  float* d_local[kMaxDegree + 1] = {};
  const float* d_gated[kMaxDegree + 1] = {};  // null in the last layer, which gates nothing
  for (int l = 1; l <= L; ++l) {
    d_mixed[l] = local.take<float>(2 * size(l));
    d_local[l] = local.take<float>(size(l));
    if (!network_.couplings_.empty()) d_product[l] = local.take<float>(size(l));
  }
  const uint8_t* update_clips = clips_from(begin, layer.update, s.update_clips);
  const auto gates = [&](int l) { return s.gates + begin * VW + F + (l - 1) * C; };
  if (last) {
    layer.update.backward(n, dx, F, d_hidden, c_.hidden, false, local, update_clips);
  } else {
    float* d_gates = local.take<float>(n * VW);
    for (int64_t i = 0; i < n; ++i) std::copy(dx + i * F, dx + (i + 1) * F, d_gates + i * VW);
    for (int l = 1; l <= L; ++l) {
      const int m = 2 * l + 1;
      d_gated[l] = d_vectors_[l] + row(l);
      if (frames_[l] != nullptr) {
        k_.rotate(n, m, C, frames_[l] + begin * m * m, true, d_gated[l], nullptr, d_local[l]);
        d_gated[l] = d_local[l];
      }
      const float* product = s.product[l] != nullptr ? s.product[l] + row(l) : nullptr;
      k_.gate_backward(n, m, C, gates(l), VW, s.mixed[l] + 2 * row(l), product, d_gated[l],
                       d_gates + F + (l - 1) * C, VW, d_product[l]);
    }
    layer.update.backward(n, d_gates, VW, d_hidden, c_.hidden, false, local, update_clips);
  }
  k_.silu_backward(n * c_.hidden, s.before + begin * c_.hidden, d_hidden);
  layer.hidden.backward(n, d_hidden, c_.hidden, d_inputs, VW, false, local,
                        clips_from(begin, layer.hidden, s.hidden_clips));
  for (int l = 1; l <= L; ++l) {
    const int m = 2 * l + 1;
    const float factor = 1.0f / std::sqrt(static_cast<float>(m));
    k_.vector_dot_backward(n, m, C, s.mixed[l] + 2 * row(l), factor, d_inputs + F + (l - 1) * C, VW,
                           gates(l), VW, d_gated[l], d_mixed[l]);
  }
  for (size_t path = 0; !last && path < network_.couplings_.size(); ++path) {
    const Coupling coupling = network_.coupling(layer, path);
    k_.couple_backward(n, C, coupling, s.mixed[coupling.l1] + 2 * row(coupling.l1),
                       s.mixed[coupling.l2] + 2 * row(coupling.l2), d_product[coupling.l3],
                       d_mixed[coupling.l1], d_mixed[coupling.l2]);
  }
  for (int l = 1; l <= L; ++l) {
    const int m = 2 * l + 1;
    layer.mix[static_cast<size_t>(l)].backward_vectors(n, m, s.local[l] + row(l), d_mixed[l],
                                                       d_local[l], local);
    const float* passed_on = d_vectors_[l] + row(l);
    float* d_message = d_messages_[l] + row(l);
    if (frames_[l] != nullptr) {
      k_.rotate(n, m, C, frames_[l] + begin * m * m, false, d_local[l], passed_on, d_message);
    } else {
      k_.add(size(l), passed_on, d_local[l], d_message);
    }
  }
  k_.layer_norm_backward(n, F, d_inputs, VW, layer.update_gain.data(), s.update_normal + begin * F,
                         s.update_inverse + begin, dx);
  const Attention& a = s.attention;
  layer.output.backward(n, dx, F, d_invariants_ + begin * a.invariant_ld, a.invariant_ld, false,
                        local, clips_from(begin, layer.output, s.output_clips));
  const AttentionGradient g = attention_gradient();
  if (c_.softmax) k_.attention_sums_backward(a, g, begin, end);
  if (network_.halves_ != nullptr) network_.halves_->gradients(a, g, begin, end);
}

void EquivariantTransformer::Evaluation::prepare_backward(size_t index, int64_t begin, int64_t end,
                                                          Workspace& local) {
  const Layer& layer = network_.layers_[index];
  const State& s = states_[index];
  const int64_t n = end - begin;
  float* d_qkv = d_qkv_ + begin * qkv_width_;
  const auto unround = [&](float* d, float step, const float* factor, const float* normal,
                           const float* inverse) {
    if (step > 0.0f) {
      drop_beyond(n, F, normal + begin * F, step, c_.attention_highest, d, qkv_width_);
    }
    k_.heads_backward(n, H, F / H, c_.robust, factor, normal + begin * F, inverse + begin * H, d,
                      qkv_width_);
  };
  unround(d_qkv, layer.query_step, layer.query_factor.data(), s.query, s.query_inverse);
  unround(d_qkv + F, layer.key_step, network_.ones_.data(), s.key, s.key_inverse);
  float* dh = local.take<float>(n * F);
  layer.qkv.backward(n, d_qkv, qkv_width_, dh, F, false, local,
                     clips_from(begin, layer.qkv, s.qkv_clips));
  k_.layer_norm_backward(n, F, dh, F, layer.norm_gain.data(), s.normal + begin * F,
                         s.inverse + begin, dx_ + begin * F);
}

}  // namespace equibit
