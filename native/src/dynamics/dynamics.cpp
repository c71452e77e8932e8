#include "dynamics/dynamics.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <utility>

#include "dynamics/random.h"
#include "operations/faults.h"

namespace equibit {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

double bond_length(const Watch& watch, size_t bond, const std::vector<double>& positions) {
  const double* first = positions.data() + 3 * watch.bonds[2 * bond];
  const double* second = positions.data() + 3 * watch.bonds[2 * bond + 1];
  double square = 0.0;
  for (size_t k = 0; k < 3; ++k) {
    const double x = second[k] + watch.shifts[3 * bond + k] - first[k];
    square += x * x;
  }
  return std::sqrt(square);
}

}  // namespace

Dynamics::Dynamics(std::unique_ptr<Evaluator> forces, std::unique_ptr<Evaluator> outer,
                   std::vector<double> masses, const DynamicsSettings& settings, Watch watch,
                   DynamicsState state)
    : inner_(std::move(forces)),
      outer_(std::move(outer)),
      masses_(std::move(masses)),
      settings_(settings),
      watch_(std::move(watch)),
      state_(std::move(state)) {
  const size_t n = static_cast<size_t>(inner_->n_atoms());
  require(!outer_ || outer_->n_atoms() == inner_->n_atoms(), "the two forces differ in atoms");
  require(masses_.size() == n, "one mass per atom is needed");
  require(std::all_of(masses_.begin(), masses_.end(),
                      [](double m) { return std::isfinite(m) && m > 0.0; }),
          "masses must be positive");
  require(state_.positions.size() == 3 * n && state_.velocities.size() == 3 * n,
          "three positions and velocities per atom are needed");
  require(std::all_of(state_.velocities.begin(), state_.velocities.end(),
                      [](double v) { return std::isfinite(v); }),
          "velocities must be finite");
  require(settings_.timestep > 0.0 && std::isfinite(settings_.timestep),
          "the time step must be positive");
  require(settings_.inner_steps >= 1, "inner steps must be 1 or more");
  require(settings_.friction >= 0.0 && std::isfinite(settings_.friction),
          "the friction must be 0 or more");
  require(settings_.temperature >= 0.0 && std::isfinite(settings_.temperature),
          "the temperature must be 0 or more");
  const size_t bonds = watch_.kinds.size();
  require(watch_.bonds.size() == 2 * bonds && watch_.shifts.size() == 3 * bonds &&
              watch_.longest.size() == bonds,
          "bonds, shifts, kinds and longest lengths differ in number");
  for (size_t b = 0; b < bonds; ++b) {
    require(watch_.kinds[b] >= 0 && watch_.kinds[b] < watch_.n_kinds, "a bond has no kind");
    for (size_t end = 0; end < 2; ++end) {
      const int32_t atom = watch_.bonds[2 * b + end];
      require(atom >= 0 && atom < inner_->n_atoms(), "a bond names no atom");
    }
  }
  forces_.resize(3 * n);
  outer_forces_.resize(outer_ ? 3 * n : 0);
  atomic_energies_.resize(n);
  evaluate_inner();
  if (outer_) evaluate_outer();
}

bool Dynamics::run(int64_t steps, int64_t every, std::vector<double>& rows) {
  require(every >= 1 && every % settings_.inner_steps == 0,
          "the sampling interval must be a multiple of the inner steps");
  require(steps >= 0 && steps % settings_.inner_steps == 0,
          "steps must be a multiple of the inner steps");
  const double dt = settings_.timestep, half = 0.5 * dt;
  const double outer_half = half * static_cast<double>(settings_.inner_steps);
  try {
    for (int64_t done = 0; done < steps;) {
      if (outer_) kick_difference(outer_half);
      for (int64_t inner = 0; inner < settings_.inner_steps; ++inner) {
        kick(forces_, half);
        if (settings_.friction > 0.0) {
          drift(half);
          exchange_with_bath();
          drift(half);
        } else {
          drift(dt);
        }
        ++state_.step;
        ++done;
        evaluate_inner();
        kick(forces_, half);
      }
      if (outer_) {
        evaluate_outer();
        kick_difference(outer_half);
      }
      if (state_.step % every != 0) continue;
      sample(rows);
      if (!holds()) return false;
    }
  } catch (const Coincidence& fault) {
    reason_ = std::string("two atoms fell onto each other: ") + fault.what();
    return false;
  } catch (const NotFinite& fault) {
    reason_ = "the energy or a force became infinite or not a number";
    return false;
  } catch (const StructureFault& fault) {
    reason_ = std::string("an atom was lost: ") + fault.what();
    return false;
  }
  return true;
}

void Dynamics::sample(std::vector<double>& rows) const {
  const size_t begin = rows.size();
  rows.resize(begin + static_cast<size_t>(row()), 0.0);
  double* values = rows.data() + begin;
  values[0] = potential();
  values[1] = kinetic();
  values[2] = state_.heat;
  std::vector<int64_t> counts(static_cast<size_t>(watch_.n_kinds), 0);
  for (int32_t kind = 0; kind < watch_.n_kinds; ++kind) {
    values[3 + 3 * kind + 1] = std::numeric_limits<double>::infinity();
  }
  for (size_t b = 0; b < watch_.kinds.size(); ++b) {
    double* of_kind = values + 3 + 3 * watch_.kinds[b];
    const double d = bond_length(watch_, b, state_.positions);
    of_kind[0] += d;
    of_kind[1] = std::min(of_kind[1], d);
    of_kind[2] = std::max(of_kind[2], d);
    ++counts[static_cast<size_t>(watch_.kinds[b])];
  }
  for (int32_t kind = 0; kind < watch_.n_kinds; ++kind) {
    values[3 + 3 * kind] /= static_cast<double>(counts[static_cast<size_t>(kind)]);
  }
}

void Dynamics::evaluate_inner() {
  energy_ =
      inner_->compute(state_.positions.data(), {atomic_energies_.data(), forces_.data(), nullptr});
}

void Dynamics::evaluate_outer() {
  outer_energy_ = outer_->compute(state_.positions.data(),
                                  {atomic_energies_.data(), outer_forces_.data(), nullptr});
}

void Dynamics::kick(const std::vector<double>& forces, double time) {
  for (size_t i = 0; i < masses_.size(); ++i) {
    const double factor = time * kAcceleration / masses_[i];
    for (size_t k = 3 * i; k < 3 * i + 3; ++k) state_.velocities[k] += factor * forces[k];
  }
}

void Dynamics::kick_difference(double time) {
  for (size_t i = 0; i < masses_.size(); ++i) {
    const double factor = time * kAcceleration / masses_[i];
    for (size_t k = 3 * i; k < 3 * i + 3; ++k) {
      state_.velocities[k] += factor * (outer_forces_[k] - forces_[k]);
    }
  }
}

void Dynamics::drift(double time) {
  for (size_t k = 0; k < state_.positions.size(); ++k) {
    state_.positions[k] += time * state_.velocities[k];
  }
}

/// v ← e^{−γΔt} v + √(1 − e^{−2γΔt}) √(kT/m) ξ.
void Dynamics::exchange_with_bath() {
  const double keep = std::exp(-settings_.friction * settings_.timestep);
  const double give = std::sqrt(1.0 - keep * keep);
  const double before = kinetic();
  for (size_t i = 0; i < masses_.size(); ++i) {
    const double thermal =
        std::sqrt(kBoltzmann * settings_.temperature * kAcceleration / masses_[i]);
    double noise[3];
    normals(settings_.seed, static_cast<uint64_t>(state_.step), i, noise);
    for (size_t k = 0; k < 3; ++k) {
      double& velocity = state_.velocities[3 * i + k];
      velocity = keep * velocity + give * thermal * noise[k];
    }
  }
  state_.heat += kinetic() - before;
}

double Dynamics::kinetic() const {
  double sum = 0.0;
  for (size_t i = 0; i < masses_.size(); ++i) {
    const double* v = state_.velocities.data() + 3 * i;
    sum += masses_[i] * (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
  }
  return 0.5 * sum / kAcceleration;
}

bool Dynamics::holds() {
  const double kinetic_energy = kinetic();
  if (!(kinetic_energy <= watch_.most_kinetic)) {
    reason_ = "the kinetic energy reached " + std::to_string(kinetic_energy) + " eV";
    return false;
  }
  for (size_t b = 0; b < watch_.kinds.size(); ++b) {
    const double d = bond_length(watch_, b, state_.positions);
    if (d <= watch_.longest[b]) continue;
    const int32_t i = watch_.bonds[2 * b], j = watch_.bonds[2 * b + 1];
    char text[96];
    std::snprintf(text, sizeof text, "the bond of atoms %d and %d broke: %.2f Å", i, j, d);
    reason_ = text;
    return false;
  }
  return true;
}

}  // namespace equibit
