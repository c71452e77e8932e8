#include "operations/network.h"

#include <algorithm>

namespace equibit {
namespace {

/// Forces and virial of the laboratory from gradients with respect to the turned pairs r Q.
void sum_forces(const PairList& list, const double* gradients, const double rotation[9],
                const Outputs& outputs) {
  double virial[9] = {};
  if (outputs.forces != nullptr) {
    std::fill(outputs.forces, outputs.forces + 3 * list.n_atoms, 0.0);
  }
  for (int64_t i = 0; i < list.n_atoms; ++i) {
    for (int64_t p = list.first[i]; p < list.first[i + 1]; ++p) {
      const int64_t j = list.second[p];
      const double* r = list.vectors + 3 * p;
      const double* g = gradients + 3 * p;
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

}  // namespace

void finish(const PairList& pairs, const EdgeGeometry& geometry, int max_degree,
            const double rotation[9], const EnergyReference& reference, const int32_t* species,
            const float* energies, const float* edge_gradients, Workspace& workspace, Crew& crew,
            const Outputs& outputs) {
  for (int64_t i = 0; i < pairs.n_atoms; ++i) {
    const auto z = static_cast<size_t>(species[i]);
    outputs.atomic_energies[i] =
        static_cast<double>(energies[i]) * reference.scale[z] + reference.shift[z];
  }
  if (edge_gradients == nullptr) return;
  double* gradients = workspace.take<double>(3 * pairs.n_pairs);
  vector_gradients(geometry, max_degree, edge_gradients, gradients, crew);
  sum_forces(pairs, gradients, rotation, outputs);
}

}  // namespace equibit
