// Python's face of the engine: arrays in, arrays out, the interpreter lock released in between.

#include "faces/python.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "files/container.h"
#include "files/faults.h"
#include "kernels/kernels.h"
#include "kernels/timed.h"
#include "operations/evaluator.h"
#include "operations/faults.h"
#include "operations/tensors.h"

namespace equibit {
namespace {

const Kernels& kernels_named(const std::optional<std::string>& name) {
  if (!name) return best_kernels();
  const Kernels* table = find_kernels(name->c_str());
  if (table == nullptr) {
    throw nb::value_error(("this processor has no kernels named " + *name).c_str());
  }
  return *table;
}

/// Python takes ownership.
Model* load(const std::string& path, const std::optional<std::string>& kernels, bool timed) {
  const Kernels& chosen = kernels_named(kernels);
  const Kernels& table = timed ? timed_kernels(chosen) : chosen;
  const nb::gil_scoped_release release;
  return new Model(load_model(read_file(path), table));
}

int64_t checked_atoms(const Network& network, const Species& species) {
  const auto n = static_cast<int64_t>(species.shape(0));
  if (n < 1 || n > INT32_MAX) throw nb::value_error("the number of atoms is out of range");
  for (int64_t i = 0; i < n; ++i) {
    if (species.data()[i] < 0 || species.data()[i] >= network.elements()) {
      throw nb::value_error("a species is out of range");
    }
  }
  return n;
}

}  // namespace

Cell cell_of(const std::optional<Lattice>& cell, std::array<bool, 3> periodic) {
  Cell lattice;
  std::copy(periodic.begin(), periodic.end(), lattice.periodic);
  if (cell) {
    std::copy(cell->data(), cell->data() + 9, lattice.vectors);
  } else if (lattice.any()) {
    throw nb::value_error("a periodic direction needs a cell");
  }
  return lattice;
}

nb::tuple Model::compute(const Species& species, const Positions& positions,
                         const std::optional<Lattice>& cell, std::array<bool, 3> periodic,
                         bool gradients, int threads) const {
  const auto n = checked_atoms(network(), species);
  if (static_cast<int64_t>(positions.shape(0)) != n) {
    throw nb::value_error("positions and species differ in length");
  }
  const Cell lattice = cell_of(cell, periodic);
  auto* results = new double[4 * static_cast<size_t>(n) + 9];
  const nb::capsule owner(results, [](void* p) noexcept { delete[] static_cast<double*>(p); });
  double* forces = gradients ? results + n : nullptr;
  double* virial = gradients ? results + 4 * n : nullptr;
  {
    const nb::gil_scoped_release release;
    const Scratch::Lease scratch = scratch_.borrow(network().cutoff(), threads);
    PairList pairs = scratch->neighbors.find(n, positions.data(), lattice, scratch->workspace);
    const Outputs outputs{results, forces, virial};
    network().compute(pairs, species.data(), scratch->workspace, scratch->crew, outputs);
    check_finite(n, outputs);
  }
  const auto size = static_cast<size_t>(n);
  const Doubles energies(results, {size}, owner);
  if (!gradients) return nb::make_tuple(energies, nb::none(), nb::none());
  return nb::make_tuple(energies, Doubles(forces, {size, 3}, owner),
                        Doubles(virial, {3, 3}, owner));
}

NB_MODULE(_native, m) {
  nb::exception<FileFault>(m, "FileFault", PyExc_ValueError);
  nb::exception<UnsupportedModel>(m, "UnsupportedModel", PyExc_ValueError);
  nb::exception<ModelFault>(m, "ModelFault", PyExc_ValueError);
  nb::exception<StructureFault>(m, "StructureFault", PyExc_ValueError);
  nb::exception<Coincidence>(m, "Coincidence", PyExc_ValueError);
  nb::exception<NotFinite>(m, "NotFinite", PyExc_ArithmeticError);

  m.def("kernel_names", [] {
    std::vector<std::string> names;
    for (const char* const* name = kernel_names(); *name != nullptr; ++name) {
      names.emplace_back(*name);
    }
    return names;
  });

  nb::class_<Model>(m, "Model")
      .def_prop_ro("name", [](const Model& model) { return model.about().name; })
      .def_prop_ro("recipe", [](const Model& model) { return model.about().recipe; })
      .def_prop_ro("elements", [](const Model& model) { return model.about().elements; })
      .def_prop_ro("cutoff", [](const Model& model) { return model.network().cutoff(); })
      .def_prop_ro("kernels", [](const Model& model) { return model.network().kernels_name(); })
      .def("compute", &Model::compute, nb::arg("species"), nb::arg("positions"), nb::arg("cell"),
           nb::arg("periodic"), nb::arg("gradients"), nb::arg("threads") = 1)
      .def_prop_ro("arithmetic", [](const Model& model) {
        std::vector<std::tuple<std::string, std::string, std::string>> rows;
        for (const Arithmetic& row : model.network().arithmetic()) {
          rows.emplace_back(row.product, row.forward, row.reverse);
        }
        return rows;
      });
  m.def("load", &load, nb::rv_policy::take_ownership, nb::arg("path"),
        nb::arg("kernels") = nb::none(), nb::arg("timed") = false);
  m.def(
      "float_rate",
      [](const std::optional<std::string>& name) {
        const Kernels& kernels = kernels_named(name);
        const nb::gil_scoped_release release;
        return float_rate(kernels);
      },
      nb::arg("kernels") = nb::none());
  m.def("take_stage_seconds", [] {
    double seconds[kStages];
    take_stage_seconds(seconds);
    std::vector<std::tuple<std::string, double>> stages;
    for (int stage = 0; stage < kStages; ++stage) {
      stages.emplace_back(kStageNames[stage], seconds[stage]);
    }
    return stages;
  });
  bind_dynamics(m);
}

}  // namespace equibit
