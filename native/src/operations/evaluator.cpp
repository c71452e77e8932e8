#include "operations/evaluator.h"

#include <cmath>
#include <string>
#include <utility>

#include "operations/faults.h"

namespace equibit {

Evaluator::Evaluator(const Network& network, std::vector<int32_t> species, const Cell& cell,
                     double skin, int threads)
    : network_(network),
      species_(std::move(species)),
      cell_(cell),
      neighbors_(network.cutoff(), skin),
      crew_(threads) {
  if (species_.empty()) throw StructureFault("a system needs at least one atom");
  if (!(skin >= 0.0) || !std::isfinite(skin)) {
    throw StructureFault("the skin must be a number of Å, 0 or more");
  }
  for (size_t i = 0; i < species_.size(); ++i) {
    if (species_[i] < 0 || species_[i] >= network.elements()) {
      throw StructureFault("the species of atom " + std::to_string(i) + " is out of range");
    }
  }
}

double Evaluator::compute(const double* positions, const Outputs& outputs) {
  workspace_.reset();
  PairList pairs = neighbors_.find(n_atoms(), positions, cell_, workspace_);
  network_.compute(pairs, species_.data(), workspace_, crew_, outputs);
  check_finite(n_atoms(), outputs);
  double energy = 0.0;
  for (int64_t i = 0; i < n_atoms(); ++i) energy += outputs.atomic_energies[i];
  return energy;
}

void check_finite(int64_t n_atoms, const Outputs& outputs) {
  const auto finite = [](int64_t n, const double* values) {
    double sum = 0.0;  // 0·x is NaN for what is not finite
    for (int64_t k = 0; values != nullptr && k < n; ++k) sum += 0.0 * values[k];
    return sum == 0.0;
  };
  if (!finite(n_atoms, outputs.atomic_energies) || !finite(3 * n_atoms, outputs.forces) ||
      !finite(9, outputs.virial)) {
    throw NotFinite("the result is not finite");
  }
}

}  // namespace equibit
