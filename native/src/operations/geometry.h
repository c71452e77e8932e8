// Pairs of atoms, orientations and frames in float64, and what the kernels need of them in float32.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "operations/crew.h"
#include "operations/workspace.h"

namespace equibit {

/// Å. Closer nuclei are a broken file, not chemistry.
inline constexpr double kMinDistance = 0.05;

/// Pairs i ≤ j within the cutoff, each once, sorted by i.
struct PairList {
  int64_t n_atoms = 0;
  int64_t n_pairs = 0;
  int64_t most = 0;           // pairs of one atom
  int64_t* first = nullptr;   // [n_atoms + 1]
  int32_t* second = nullptr;  // [n_pairs]
  double* vectors = nullptr;  // [n_pairs][3] r_j − r_i in Å
  double closest = 1e30;      // smallest distance
};

/// All pairs of an open system.
PairList open_pairs(int64_t n_atoms, const double* positions, double cutoff, Workspace& workspace);

/// Proper rotation into the structure's own orientation (columns are its axes); see
/// `equibit.networks.frames.canonical_orientation`.
void canonical_orientation(const PairList& pairs, const int32_t* species, double cutoff,
                           Workspace& workspace, double rotation[9]);

/// r ← r Q for every pair.
void turn_pairs(const PairList& pairs, const double rotation[9]);

/// Local axes of every atom, columns, [n_atoms][3][3]; see `equibit.networks.frames.local_frames`.
double* local_frames(const PairList& pairs, const int32_t* species, double cutoff,
                     Workspace& workspace);

/// D_1 … D_L of the frames in float32, D_ℓ from D_1 and D_{ℓ−1} with coupling tensors
/// [3][2ℓ−1][2ℓ+1].
void wigner_matrices(int64_t n_atoms, const double* frames, int max_degree,
                     const double* const* couplings, Workspace& workspace, float** matrices);

/// What the kernels read of the pairs.
struct EdgeGeometry {
  Edges edges;
  const int64_t* edge_of_pair;  // [n_pairs] that of its first atom
  double* distances;            // [n_pairs]
  double* units;                // [n_pairs][3]
};

/// Where the splines of the filters lie, and the cutoff function.
struct RadialGrid {
  enum class Kind {
    kPolynomial,  // splines even in d; f_c = 1 − 28x⁶ + 48x⁷ − 21x⁸
    kCosine       // splines even in 1 − e^{−d}; f_c = (1 + cos πx)/2
  };
  double cutoff;
  int splines;
  Kind kind;

  /// Distance of splines in d or in 1 − e^{−d}.
  double spacing() const;
};

EdgeGeometry edge_geometry(const PairList& list, const RadialGrid& grid, int max_degree,
                           Workspace& workspace, Crew& crew);

/// ∂E/∂r_ij in eV/Å of every pair from the gradients of its edges, [n_edges][edge_gradients(L)].
/// Shape: [n_pairs][3].
void vector_gradients(const EdgeGeometry& geometry, int max_degree, const float* edge_gradient,
                      double* gradients, Crew& crew);

}  // namespace equibit
