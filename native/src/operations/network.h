// What every network of the engine answers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operations/crew.h"
#include "operations/geometry.h"
#include "operations/workspace.h"

namespace equibit {

struct Outputs {
  double* atomic_energies;  // [n_atoms] in eV
  double* forces;           // [n_atoms][3] in eV/Å, or null
  double* virial;           // [3][3] Σ r ⊗ ∂E/∂r in eV, symmetrised, or null
};

/// In what numbers a matrix product runs, in words.
struct Arithmetic {
  std::string product, forward, reverse;
};

class Network {
 public:
  virtual ~Network() = default;

  /// Å.
  virtual double cutoff() const = 0;
  /// Number of elements; species are indices below it.
  virtual int elements() const = 0;
  /// Name of the instruction set in use.
  virtual const char* kernels_name() const = 0;

  /// Every matrix product.
  virtual std::vector<Arithmetic> arithmetic() const = 0;

  /// Energies, and forces and virial where asked for, of one structure whose pairs are listed. The
  /// vectors of `pairs` may be turned in place. Concurrent calls need a workspace and a crew each.
  virtual void compute(PairList& pairs, const int32_t* species, Workspace& workspace, Crew& crew,
                       const Outputs& outputs) const = 0;
};

/// Of each element: E_i = s ε_i + μ in eV.
struct EnergyReference {
  std::vector<double> scale, shift;
};

/// The end of every evaluation: atomic energies from ε [n_atoms], and where asked for forces and
/// virial of the laboratory from the gradients of the edges, [n_edges][edge_gradients(L)] (null
/// where not), which are those of the turned pairs r Q.
void finish(const PairList& pairs, const EdgeGeometry& geometry, int max_degree,
            const double rotation[9], const EnergyReference& reference, const int32_t* species,
            const float* energies, const float* edge_gradients, Workspace& workspace, Crew& crew,
            const Outputs& outputs);

}  // namespace equibit
