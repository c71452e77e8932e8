#include "potentials/equivariant_transformer.h"

#include <cmath>
#include <string>

namespace equibit {

/// What the reverse pass needs of one layer. The last entry of a run is the energy head's.
struct EquivariantTransformer::State {
  float *normal, *inverse;               // of the first LayerNorm
  float *query, *query_inverse, *key, *key_inverse;  // normalised, before rounding
  Attention attention;
  float *update_normal, *update_inverse;
  float* vectors[kMaxDegree + 1];  // after attention
  float* local[kMaxDegree + 1];    // the same in the frames where they are mixed
  float* mixed[kMaxDegree + 1];    // [U, T]
  float* product[kMaxDegree + 1];  // P, or null
  float *before, *gates;           // of SiLU; output of the update network
};

EquivariantTransformer::EquivariantTransformer(const TransformerConfig& config,
                                               const Tensors& tensors, const Kernels& kernels)
    : config_(config), kernels_(&kernels) {
  const auto& c = config_;
  const bool sane = c.elements >= 1 && c.layers >= 1 && c.heads >= 1 && c.heads <= kMaxHeads &&
                    c.scalars >= 1 && c.scalars % c.heads == 0 && c.max_degree >= 0 &&
                    c.max_degree <= kMaxDegree && c.splines >= 4 && c.hidden >= 1 &&
                    c.cutoff > 0 && (c.max_degree > 0) == (c.channels > 0) &&
                    c.channels % c.heads == 0 && c.scalars <= 4096 && c.channels <= 4096 &&
                    c.hidden <= 32768 && c.attention_highest >= 0 &&
                    c.attention_highest <= 32767 && c.layers <= 64 && c.elements <= 118 && c.splines <= 4096;
  if (!sane) throw ModelFault("the network's sizes are not supported");

  const int F = c.scalars, C = c.channels, L = c.max_degree, VW = F + L * C;
  scale_ = tensors.doubles("energy_scale", {c.elements});
  shift_ = tensors.doubles("energy_shift", {c.elements});
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
          for (int m = 0; m < n1; ++m) {
            for (int n = 0; n < n2; ++n) {
              for (int k = 0; k < n3; ++k) {
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
      wigner_[l] = tensors.doubles(
          "coupling.1." + std::to_string(l - 1) + "." + std::to_string(l),
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
    const int columns = VW + (first ? 0 : 2 * L * C) + c.heads;
    const auto table = tensors.floats(attend + "table", {c.splines, columns});
    const int64_t stride = table_stride(first);
    layer.table.assign(static_cast<size_t>(c.splines * stride), 0.0f);
    for (int k = 0; k < c.splines; ++k) {
      for (int column = 0; column < columns; ++column) {
        layer.table[static_cast<size_t>(k * stride + column)] =
            table[static_cast<size_t>(k * columns + column)];
      }
    }
    layer.output = Product(kernels, tensors, attend + "output", first ? F : VW, F, true, c.elements);

    layer.update_gain = tensors.floats(update + "norm.weight", {F});
    layer.update_bias = tensors.floats(update + "norm.bias", {F});
    layer.mix.resize(static_cast<size_t>(L) + 1);
    for (int l = 1; l <= L; ++l) {
      layer.mix[static_cast<size_t>(l)] =
          Product(kernels, tensors, update + "mix." + std::to_string(l), C, 2 * C, false, c.elements);
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
    layer.update = Product(kernels, tensors, update + "output", c.hidden, last ? F : VW, true, c.elements);
    layers_.push_back(std::move(layer));
  }
  head_gain_ = tensors.floats("head.norm.weight", {F});
  head_bias_ = tensors.floats("head.norm.bias", {F});
  head_hidden_ = Product(kernels, tensors, "head.hidden", F, F, true, c.elements);
  head_output_ = Product(kernels, tensors, "head.output", F, 1, true, c.elements);
}

int64_t EquivariantTransformer::table_stride(bool first) const {
  const auto& c = config_;
  const int64_t columns = c.scalars + (first ? 1 : 3) * c.max_degree * c.channels + c.heads;
  return (columns + 15) / 16 * 16;
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

void EquivariantTransformer::compute(PairList& list, const int32_t* species, Workspace& workspace,
                                     const Outputs& outputs) const {
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
  const PairGeometry geometry =
      pair_geometry(list, config_.cutoff, config_.splines, config_.max_degree, workspace);

  // One vector per thread outlives the calls, so that none of them allocates.
  thread_local std::vector<State> states;
  states.resize(layers_.size() + 1);
  float* energies = workspace.take<float>(n);
  forward(geometry, species, frames, workspace, states, energies);
  for (int64_t i = 0; i < n; ++i) {
    const auto z = static_cast<size_t>(species[i]);
    outputs.atomic_energies[i] = static_cast<double>(energies[i]) * scale_[z] + shift_[z];
  }
  if (!gradients) return;

  float* d_distance = workspace.zeros<float>(list.n_pairs);
  float* d_harmonics[kMaxDegree + 1] = {};
  for (int l = 1; l <= config_.max_degree; ++l) {
    d_harmonics[l] = workspace.zeros<float>(list.n_pairs * (2 * l + 1));
  }
  backward(geometry, species, frames, list.most, workspace, states, d_distance, d_harmonics);
  double* d_vectors = workspace.take<double>(3 * list.n_pairs);
  vector_gradients(geometry, config_.max_degree, d_distance, d_harmonics, d_vectors);

  double virial[9] = {};
  if (outputs.forces != nullptr) std::fill(outputs.forces, outputs.forces + 3 * n, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t p = list.first[i]; p < list.first[i + 1]; ++p) {
      const int64_t j = list.second[p];
      const double* r = list.vectors + 3 * p;
      const double* g = d_vectors + 3 * p;
      for (int a = 0; a < 3; ++a) {
        for (int b = 0; b < 3; ++b) virial[3 * a + b] += r[a] * g[b];
        if (outputs.forces == nullptr) continue;
        // Back from the structure's own orientation: g Qᵀ.
        const double lab =
            g[0] * rotation[3 * a] + g[1] * rotation[3 * a + 1] + g[2] * rotation[3 * a + 2];
        outputs.forces[3 * i + a] += lab;
        outputs.forces[3 * j + a] -= lab;
      }
    }
  }
  if (outputs.virial == nullptr) return;
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 3; ++b) {
      double lab = 0.0;
      for (int x = 0; x < 3; ++x) {
        for (int y = 0; y < 3; ++y) {
          const double symmetric = 0.5 * (virial[3 * x + y] + virial[3 * y + x]);
          lab += rotation[3 * a + x] * symmetric * rotation[3 * b + y];
        }
      }
      outputs.virial[3 * a + b] = lab;
    }
  }
}

void EquivariantTransformer::forward(const PairGeometry& geometry, const int32_t* species,
                                     const float* const* frames, Workspace& workspace,
                                     std::vector<State>& states, float* energies) const {
  const Kernels& k = *kernels_;
  const auto& c = config_;
  const int64_t n = geometry.pairs.n_atoms;
  const int F = c.scalars, C = c.channels, L = c.max_degree, H = c.heads, VW = F + L * C;
  const int64_t qkv_width = 2 * F + VW;

  float* x = workspace.take<float>(n * F);
  for (int64_t i = 0; i < n; ++i) {
    const float* row = embedding_.data() + static_cast<int64_t>(species[i]) * F;
    std::copy(row, row + F, x + i * F);
  }
  float* h = workspace.take<float>(n * F);
  float* inputs = workspace.take<float>(n * VW);
  float* hidden = workspace.take<float>(n * c.hidden);
  const float* vectors[kMaxDegree + 1] = {};

  for (size_t index = 0; index < layers_.size(); ++index) {
    const Layer& layer = layers_[index];
    State& s = states[index];
    const bool first = index == 0, last = index + 1 == layers_.size();

    s.normal = workspace.take<float>(n * F);
    s.inverse = workspace.take<float>(n);
    k.layer_norm(n, F, x, layer.norm_gain.data(), layer.norm_bias.data(), s.normal, s.inverse, h,
                 F);
    float* qkv = workspace.take<float>(n * qkv_width);
    layer.qkv.forward(n, species, h, F, qkv, qkv_width, false, workspace);
    s.query = workspace.take<float>(n * F);
    s.key = workspace.take<float>(n * F);
    s.query_inverse = workspace.take<float>(n * H);
    s.key_inverse = workspace.take<float>(n * H);
    float* scaled_query = workspace.take<float>(n * F);
    float* rounded_key = workspace.take<float>(n * F);
    k.heads(n, H, F / H, qkv, qkv_width, c.robust, c.attention_highest, layer.query_factor.data(), s.query,
            s.query_inverse, scaled_query);
    k.heads(n, H, F / H, qkv + F, qkv_width, c.robust, c.attention_highest, ones_.data(), s.key, s.key_inverse,
            rounded_key);

    Attention& a = s.attention;
    a = {};
    a.heads = H;
    a.scalars = F;
    a.channels = C;
    a.max_degree = L;
    a.first = first;
    a.softmax = c.softmax;
    a.table = layer.table.data();
    a.stride = table_stride(first);
    a.query = scaled_query;
    a.key = rounded_key;
    a.value = qkv + 2 * F;
    a.value_ld = qkv_width;
    a.raw = workspace.take<float>(geometry.pairs.n_pairs * 2 * H);
    a.sums = workspace.take<float>(n * H);
    std::fill(a.sums, a.sums + n * H, 1.0f);
    a.invariant_ld = first ? F : VW;
    a.invariants = workspace.zeros<float>(n * a.invariant_ld);
    for (int l = 1; l <= L; ++l) {
      const int64_t size = n * (2 * l + 1) * C;
      a.vectors[l] = vectors[l];
      a.messages[l] = workspace.zeros<float>(size);
      s.vectors[l] = workspace.take<float>(size);
    }
    k.attention(geometry.pairs, a);
    k.attention_finish(geometry.pairs, a, s.vectors);
    layer.output.forward(n, species, a.invariants, a.invariant_ld, x, F, true, workspace);

    s.update_normal = workspace.take<float>(n * F);
    s.update_inverse = workspace.take<float>(n);
    k.layer_norm(n, F, x, layer.update_gain.data(), layer.update_bias.data(), s.update_normal,
                 s.update_inverse, inputs, VW);
    for (int l = 1; l <= L; ++l) {
      const int64_t size = n * (2 * l + 1) * C;
      s.local[l] = s.vectors[l];
      if (frames[l] != nullptr) {
        s.local[l] = workspace.take<float>(size);
        k.rotate(n, 2 * l + 1, C, frames[l], true, s.vectors[l], s.local[l], false);
      }
      s.mixed[l] = workspace.take<float>(2 * size);
      layer.mix[static_cast<size_t>(l)].forward_vectors(n, 2 * l + 1, s.local[l], s.mixed[l],
                                                        workspace);
      const float factor = 1.0f / std::sqrt(static_cast<float>(2 * l + 1));
      k.vector_dot(n, 2 * l + 1, C, s.mixed[l], factor, inputs + F + (l - 1) * C, VW);
    }
    s.before = workspace.take<float>(n * c.hidden);
    layer.hidden.forward(n, species, inputs, VW, s.before, c.hidden, false, workspace);
    k.silu(n * c.hidden, s.before, hidden);
    if (last) {
      layer.update.forward(n, species, hidden, c.hidden, x, F, true, workspace);
      continue;
    }
    s.gates = workspace.take<float>(n * VW);
    layer.update.forward(n, species, hidden, c.hidden, s.gates, VW, false, workspace);
    for (int64_t i = 0; i < n; ++i) k.add(F, s.gates + i * VW, x + i * F);
    for (int l = 1; l <= L; ++l) {
      s.product[l] = couplings_.empty() ? nullptr : workspace.zeros<float>(n * (2 * l + 1) * C);
    }
    for (size_t path = 0; path < couplings_.size(); ++path) {
      const Coupling coupling = this->coupling(layer, path);
      k.couple(n, C, coupling, s.mixed[coupling.l1], s.mixed[coupling.l2],
               s.product[coupling.l3]);
    }
    for (int l = 1; l <= L; ++l) {
      const int64_t size = n * (2 * l + 1) * C;
      float* updated = workspace.take<float>(size);
      k.gate(n, 2 * l + 1, C, s.gates + F + (l - 1) * C, VW, s.mixed[l], s.product[l], updated);
      if (frames[l] != nullptr) {
        float* turned = workspace.take<float>(size);
        k.rotate(n, 2 * l + 1, C, frames[l], false, updated, turned, false);
        updated = turned;
      }
      k.add(size, s.vectors[l], updated);
      vectors[l] = updated;
    }
  }

  State& head = states.back();
  head.normal = workspace.take<float>(n * F);
  head.inverse = workspace.take<float>(n);
  k.layer_norm(n, F, x, head_gain_.data(), head_bias_.data(), head.normal, head.inverse, h, F);
  head.before = workspace.take<float>(n * F);
  head_hidden_.forward(n, species, h, F, head.before, F, false, workspace);
  k.silu(n * F, head.before, h);
  head_output_.forward(n, species, h, F, energies, 1, false, workspace);
}

void EquivariantTransformer::backward(const PairGeometry& geometry, const int32_t* species,
                                      const float* const* frames, int64_t most_pairs,
                                      Workspace& workspace,
                                      const std::vector<State>& states, float* d_distance,
                                      float* const* d_harmonics) const {
  const Kernels& k = *kernels_;
  const auto& c = config_;
  const int64_t n = geometry.pairs.n_atoms;
  const int F = c.scalars, C = c.channels, L = c.max_degree, H = c.heads, VW = F + L * C;
  const int64_t qkv_width = 2 * F + VW;

  float* dx = workspace.zeros<float>(n * F);
  float* dh = workspace.take<float>(n * F);
  float* d_qkv = workspace.take<float>(n * qkv_width);
  float* d_inputs = workspace.take<float>(n * VW);
  float* d_gates = workspace.take<float>(n * VW);
  float* d_hidden = workspace.take<float>(n * c.hidden);
  float* d_sums = workspace.take<float>(n * H);
  float* scratch = workspace.take<float>(most_pairs * pair_scratch());
  float *d_vectors[kMaxDegree + 1] = {}, *d_mixed[kMaxDegree + 1] = {};
  float *d_products[kMaxDegree + 1] = {}, *d_messages[kMaxDegree + 1] = {};
  float* d_local[kMaxDegree + 1] = {};
  for (int l = 1; l <= L; ++l) {
    const int64_t size = n * (2 * l + 1) * C;
    d_vectors[l] = workspace.take<float>(size);
    d_messages[l] = workspace.take<float>(size);
    d_local[l] = workspace.take<float>(size);
    d_mixed[l] = workspace.take<float>(2 * size);
    d_products[l] = couplings_.empty() ? nullptr : workspace.take<float>(size);
  }

  float* seed = workspace.take<float>(n);
  for (int64_t i = 0; i < n; ++i) {
    seed[i] = static_cast<float>(scale_[static_cast<size_t>(species[i])]);
  }
  const State& head = states.back();
  head_output_.backward(n, seed, 1, dh, F, false, workspace);
  k.silu_backward(n * F, head.before, dh);
  float* d_normed = workspace.take<float>(n * F);
  head_hidden_.backward(n, dh, F, d_normed, F, false, workspace);
  k.layer_norm_backward(n, F, d_normed, F, head_gain_.data(), head.normal, head.inverse, dx);

  for (size_t index = layers_.size(); index-- > 0;) {
    const Layer& layer = layers_[index];
    const State& s = states[index];
    const bool first = index == 0, last = index + 1 == layers_.size();

    if (last) {
      layer.update.backward(n, dx, F, d_hidden, c.hidden, false, workspace);
      for (int l = 1; l <= L; ++l) {
        const int64_t size = n * (2 * l + 1) * C;
        std::fill(d_mixed[l], d_mixed[l] + 2 * size, 0.0f);
        std::fill(d_vectors[l], d_vectors[l] + size, 0.0f);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) std::copy(dx + i * F, dx + (i + 1) * F, d_gates + i * VW);
      for (int l = 1; l <= L; ++l) {
        const int64_t column = F + (l - 1) * C;
        const float* d_update = d_vectors[l];
        if (frames[l] != nullptr) {
          k.rotate(n, 2 * l + 1, C, frames[l], true, d_vectors[l], d_local[l], false);
          d_update = d_local[l];
        }
        k.gate_backward(n, 2 * l + 1, C, s.gates + column, VW, s.mixed[l], s.product[l], d_update,
                        d_gates + column, VW, d_mixed[l], d_products[l]);
      }
      for (size_t path = 0; path < couplings_.size(); ++path) {
        const Coupling coupling = this->coupling(layer, path);
        k.couple_backward(n, C, coupling, s.mixed[coupling.l1], s.mixed[coupling.l2],
                          d_products[coupling.l3], d_mixed[coupling.l1], d_mixed[coupling.l2]);
      }
      layer.update.backward(n, d_gates, VW, d_hidden, c.hidden, false, workspace);
    }
    k.silu_backward(n * c.hidden, s.before, d_hidden);
    layer.hidden.backward(n, d_hidden, c.hidden, d_inputs, VW, false, workspace);
    for (int l = 1; l <= L; ++l) {
      const float factor = 1.0f / std::sqrt(static_cast<float>(2 * l + 1));
      k.vector_dot_backward(n, 2 * l + 1, C, s.mixed[l], factor, d_inputs + F + (l - 1) * C, VW,
                            d_mixed[l]);
      layer.mix[static_cast<size_t>(l)].backward_vectors(n, 2 * l + 1, s.local[l], d_mixed[l],
                                                         d_local[l], workspace);
      if (frames[l] != nullptr) {
        k.rotate(n, 2 * l + 1, C, frames[l], false, d_local[l], d_vectors[l], true);
      } else {
        k.add(n * (2 * l + 1) * C, d_local[l], d_vectors[l]);
      }
    }
    k.layer_norm_backward(n, F, d_inputs, VW, layer.update_gain.data(), s.update_normal,
                          s.update_inverse, dx);

    const Attention& a = s.attention;
    float* d_invariants = d_inputs;
    layer.output.backward(n, dx, F, d_invariants, a.invariant_ld, false, workspace);
    k.attention_finish_backward(geometry.pairs, a, d_invariants, d_vectors, d_messages, d_sums);
    std::fill(d_qkv, d_qkv + n * qkv_width, 0.0f);
    AttentionGradient g{};
    g.sums = d_sums;
    g.invariants = d_invariants;
    g.query = d_qkv;
    g.key = d_qkv + F;
    g.value = d_qkv + 2 * F;
    g.qkv_ld = qkv_width;
    g.distance = d_distance;
    g.scratch = scratch;
    for (int l = 1; l <= L; ++l) {
      g.messages[l] = d_messages[l];
      g.vectors[l] = d_vectors[l];
      g.harmonics[l] = d_harmonics[l];
    }
    k.attention_backward(geometry.pairs, a, g);
    if (first) break;  // the embedding does not depend on positions
    k.heads_backward(n, H, F / H, c.robust, layer.query_factor.data(), s.query, s.query_inverse,
                     d_qkv, qkv_width);
    k.heads_backward(n, H, F / H, c.robust, ones_.data(), s.key, s.key_inverse, d_qkv + F,
                     qkv_width);
    layer.qkv.backward(n, d_qkv, qkv_width, dh, F, false, workspace);
    k.layer_norm_backward(n, F, dh, F, layer.norm_gain.data(), s.normal, s.inverse, dx);
  }
}

}  // namespace equibit
