// Molecular dynamics for Python: long stretches of steps without the interpreter.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "dynamics/dynamics.h"
#include "faces/python.h"

namespace equibit {
namespace {

using Vectors = Positions;
using Numbers = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bonds = nb::ndarray<const int32_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;

template <typename Array>
auto vector_of(const Array& array) {
  using T = std::remove_const_t<typename Array::Scalar>;
  return std::vector<T>(array.data(), array.data() + array.size());
}

Doubles array_of(const std::vector<double>& values, std::initializer_list<size_t> shape) {
  auto* copy = new double[std::max<size_t>(values.size(), 1)];
  const nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<double*>(p); });
  std::copy(values.begin(), values.end(), copy);
  return Doubles(copy, shape, owner);
}

Doubles rows_of(const std::vector<double>& rows, const Dynamics& dynamics) {
  const auto width = static_cast<size_t>(dynamics.row());
  return array_of(rows, {rows.size() / width, width});
}

Doubles vectors_of(const std::vector<double>& values) {
  return array_of(values, {values.size() / 3, 3});
}

}  // namespace

void bind_dynamics(nb::module_& m) {
  nb::class_<Dynamics>(m, "Dynamics")
      .def(
          "__init__",
          [](Dynamics* self, const Model& model, const Model* outer, const Species& species,
             const std::optional<Lattice>& cell, std::array<bool, 3> periodic, double skin,
             int threads, const Numbers& masses, double timestep, int64_t inner_steps,
             double friction, double temperature, uint64_t seed, const Bonds& bonds,
             const Vectors& shifts, const Species& kinds, const Numbers& longest,
             double most_kinetic, const Vectors& positions, const Vectors& velocities, int64_t step,
             double heat) {
            const Cell lattice = cell_of(cell, periodic);
            Watch watch{
                vector_of(bonds), vector_of(shifts), vector_of(kinds), vector_of(longest), 0,
                most_kinetic};
            for (int32_t kind : watch.kinds) watch.n_kinds = std::max(watch.n_kinds, kind + 1);
            const auto evaluator = [&](const Model& of) {
              return std::make_unique<Evaluator>(of.network(), vector_of(species), lattice, skin,
                                                 threads);
            };
            new (self) Dynamics(
                evaluator(model), outer == nullptr ? nullptr : evaluator(*outer), vector_of(masses),
                {timestep, inner_steps, friction, temperature, seed}, std::move(watch),
                {vector_of(positions), vector_of(velocities), step, heat});
          },
          nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::kw_only(), nb::arg("model"),
          nb::arg("outer").none(), nb::arg("species"), nb::arg("cell").none(), nb::arg("periodic"),
          nb::arg("skin"), nb::arg("threads"), nb::arg("masses"), nb::arg("timestep"),
          nb::arg("inner_steps"), nb::arg("friction"), nb::arg("temperature"), nb::arg("seed"),
          nb::arg("bonds"), nb::arg("shifts"), nb::arg("kinds"), nb::arg("longest"),
          nb::arg("most_kinetic"), nb::arg("positions"), nb::arg("velocities"), nb::arg("step"),
          nb::arg("heat"))
      .def(
          "run",
          [](Dynamics& self, int64_t steps, int64_t every) {
            std::vector<double> rows;
            bool held = false;
            {
              const nb::gil_scoped_release release;
              held = self.run(steps, every, rows);
            }
            return nb::make_tuple(held, rows_of(rows, self));
          },
          nb::arg("steps"), nb::arg("every"))
      .def("sample",
           [](const Dynamics& self) {
             std::vector<double> rows;
             self.sample(rows);
             return rows_of(rows, self);
           })
      // Copies, which own their memory.
      .def_prop_ro(
          "positions", [](const Dynamics& self) { return vectors_of(self.state().positions); },
          nb::rv_policy::automatic)
      .def_prop_ro(
          "velocities", [](const Dynamics& self) { return vectors_of(self.state().velocities); },
          nb::rv_policy::automatic)
      .def_prop_ro(
          "forces", [](const Dynamics& self) { return vectors_of(self.forces()); },
          nb::rv_policy::automatic)
      .def_prop_ro("step", [](const Dynamics& self) { return self.state().step; })
      .def_prop_ro("heat", [](const Dynamics& self) { return self.state().heat; })
      .def_prop_ro("potential", &Dynamics::potential)
      .def_prop_ro("reason", &Dynamics::reason)
      .def_prop_ro("neighbor_builds", &Dynamics::neighbor_builds);
}

}  // namespace equibit
