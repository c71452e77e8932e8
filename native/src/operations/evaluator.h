// Energy and forces of one system again and again, as dynamics and relaxation need them.
//
//   Evaluator evaluator(network, species, cell, 0.5);
//   std::vector<double> energies(n), forces(3 * n);
//   const double energy = evaluator.compute(positions, {energies.data(), forces.data(), nullptr});
//
// Once it is warm a call allocates nothing. The result depends on positions, cell and species
// alone, to the last bit, not on earlier calls nor on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "operations/crew.h"
#include "operations/neighbors.h"
#include "operations/network.h"
#include "operations/workspace.h"

namespace equibit {

/// For one thread at a time; the network may be shared and must outlive it.
class Evaluator {
 public:
  /// Species [n_atoms] index the network's elements; skin in Å. More threads than one pay from a
  /// few hundred atoms on. Throws StructureFault where there is no atom or a species is out of
  /// range.
  Evaluator(const Network& network, std::vector<int32_t> species, const Cell& cell, double skin,
            int threads = 1);

  int64_t n_atoms() const { return static_cast<int64_t>(species_.size()); }
  const Cell& cell() const { return cell_; }
  void set_cell(const Cell& cell) { cell_ = cell; }

  /// Sum of the atomic energies in eV; fills `outputs`. Positions [n_atoms][3] in Å, wrapped into
  /// the cell or not. The list of neighbours is made anew only once an atom has moved by more than
  /// half the skin. Throws StructureFault, Coincidence, and NotFinite where a result is not a
  /// number, which then must not be used.
  double compute(const double* positions, const Outputs& outputs);

  /// How often the list of neighbours was made.
  int64_t neighbor_builds() const { return neighbors_.builds(); }

 private:
  const Network& network_;
  std::vector<int32_t> species_;
  Cell cell_;
  Neighbors neighbors_;
  Workspace workspace_;
  Crew crew_;
};

/// Throws NotFinite unless the energies, and what else is there, are finite.
void check_finite(int64_t n_atoms, const Outputs& outputs);

}  // namespace equibit
