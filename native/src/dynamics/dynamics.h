// Newton's and Langevin's equations of motion, step by step in compiled code.
//
// Units: Å, fs, eV, amu, K.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "operations/evaluator.h"

namespace equibit {

/// eV/(Å·amu) in Å/fs².
inline constexpr double kAcceleration = 9.648533212331002e-3;
/// Boltzmann's constant in eV/K.
inline constexpr double kBoltzmann = 8.617333262145179e-5;

struct DynamicsSettings {
  double timestep;      // fs
  int64_t inner_steps;  // time steps per evaluation of the outer force, 1 without one
  double friction;      // 1/fs; 0 conserves the energy
  double temperature;   // K, of the bath where there is friction
  uint64_t seed;        // of the bath
};

/// Distances that are recorded, and what ends a run.
struct Watch {
  std::vector<int32_t> bonds;   // [n_bonds][2]
  std::vector<double> shifts;   // [n_bonds][3] Å, to the image of the second atom
  std::vector<int32_t> kinds;   // [n_bonds] in 0 … n_kinds − 1
  std::vector<double> longest;  // [n_bonds] Å; a longer bond is broken
  int32_t n_kinds = 0;
  double most_kinetic = 0.0;  // eV
};

/// Where a run stands. From it the run goes on to the last bit as if it had never stopped.
struct DynamicsState {
  std::vector<double> positions;   // [n_atoms][3] Å
  std::vector<double> velocities;  // [n_atoms][3] Å/fs
  int64_t step = 0;
  double heat = 0.0;  // eV that the bath has given so far
};

/// Velocity Verlet for Newton's equations, BAOAB (Leimkuhler & Matthews 2013) for Langevin's. With
/// an outer force, r-RESPA (Tuckerman, Berne & Martyna 1992): the cheap force F moves the atoms at
/// every step, and the difference of the outer force to it kicks them every `inner_steps` steps.
/// The energy that is then conserved is the outer one.
class Dynamics {
 public:
  /// `outer` may be null. Throws std::invalid_argument where sizes or numbers make no sense, and
  /// what Evaluator::compute throws.
  Dynamics(std::unique_ptr<Evaluator> forces, std::unique_ptr<Evaluator> outer,
           std::vector<double> masses, const DynamicsSettings& settings, Watch watch,
           DynamicsState state);

  /// Numbers of one sample: potential energy, kinetic energy, heat, then the mean, smallest and
  /// largest length of each kind of bond.
  int64_t row() const { return 3 + 3 * watch_.n_kinds; }

  /// Makes `steps` steps and appends a row to `rows` whenever the number of steps since the very
  /// beginning is a multiple of `every`; both are multiples of `inner_steps`. Returns whether the
  /// system held; if not, `reason()` says what happened and the state is that of the failure.
  bool run(int64_t steps, int64_t every, std::vector<double>& rows);

  /// The row of the present state.
  void sample(std::vector<double>& rows) const;

  const DynamicsState& state() const { return state_; }
  /// [n_atoms][3] eV/Å, of the outer force where there is one.
  const std::vector<double>& forces() const { return outer_ ? outer_forces_ : forces_; }
  double potential() const { return outer_ ? outer_energy_ : energy_; }
  const std::string& reason() const { return reason_; }
  int64_t neighbor_builds() const { return inner_->neighbor_builds(); }

 private:
  void evaluate_inner();
  void evaluate_outer();
  void kick(const std::vector<double>& forces, double time);
  void kick_difference(double time);
  void drift(double time);
  void exchange_with_bath();
  double kinetic() const;
  bool holds();

  std::unique_ptr<Evaluator> inner_, outer_;
  std::vector<double> masses_;
  DynamicsSettings settings_;
  Watch watch_;
  DynamicsState state_;
  std::vector<double> forces_, outer_forces_, atomic_energies_;
  double energy_ = 0.0, outer_energy_ = 0.0;
  std::string reason_;
};

}  // namespace equibit
