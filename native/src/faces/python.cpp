// Python's face of the engine: arrays in, arrays out, the interpreter lock released in between.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "faces/python.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "operations/evaluator.h"
#include "operations/faults.h"
#include "potentials/equivariant_transformer.h"

namespace equibit {
namespace {

Tensors tensors_of(const nb::dict& arrays) {
  using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
  Tensors tensors;
  for (const auto& [key, value] : arrays) {
    const auto name = nb::cast<std::string>(key);
    const auto array = nb::cast<Array>(value);
    Tensor tensor{};
    tensor.data = array.data();
    for (size_t axis = 0; axis < array.ndim(); ++axis) {
      tensor.shape.push_back(static_cast<int64_t>(array.shape(axis)));
    }
    if (array.dtype() == nb::dtype<float>()) {
      tensor.type = Tensor::Type::kFloat32;
    } else if (array.dtype() == nb::dtype<double>()) {
      tensor.type = Tensor::Type::kFloat64;
    } else if (array.dtype() == nb::dtype<int8_t>()) {
      tensor.type = Tensor::Type::kInt8;
    } else if (array.dtype() == nb::dtype<int32_t>()) {
      tensor.type = Tensor::Type::kInt32;
    } else {
      throw ModelFault("the tensor " + name + " has a type that the engine does not read");
    }
    tensors.add(name, std::move(tensor));
  }
  return tensors;
}

template <typename T>
T field(const nb::dict& config, const char* name) {
  if (!config.contains(name)) throw ModelFault(std::string("the configuration lacks ") + name);
  return nb::cast<T>(config[name]);
}

TransformerConfig transformer_config(const nb::dict& config) {
  return {.elements = field<int>(config, "elements"),
          .layers = field<int>(config, "layers"),
          .heads = field<int>(config, "heads"),
          .scalars = field<int>(config, "scalars"),
          .channels = field<int>(config, "channels"),
          .max_degree = field<int>(config, "max_degree"),
          .hidden = field<int>(config, "hidden"),
          .splines = field<int>(config, "splines"),
          .cutoff = field<double>(config, "cutoff"),
          .softmax = field<bool>(config, "softmax"),
          .robust = field<bool>(config, "robust"),
          .attention_highest = field<int>(config, "attention_highest"),
          .local_frames = field<bool>(config, "local_frames"),
          .orient = field<bool>(config, "orient")};
}

const Kernels& kernels_named(const std::optional<std::string>& name) {
  if (!name) return best_kernels();
  const Kernels* table = find_kernels(name->c_str());
  if (table == nullptr) {
    throw nb::value_error(("this processor has no kernels named " + *name).c_str());
  }
  return *table;
}

/// Python takes ownership.
Model* equivariant_transformer(const nb::dict& config, const nb::dict& arrays,
                               const std::optional<std::string>& kernels) {
  return new Model(std::make_unique<EquivariantTransformer>(
      transformer_config(config), tensors_of(arrays), kernels_named(kernels)));
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
                         bool gradients) const {
  const auto n = checked_atoms(*network_, species);
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
    const Scratch::Lease scratch = scratch_.borrow(network_->cutoff());
    PairList pairs = scratch->neighbors.find(n, positions.data(), lattice, scratch->workspace);
    const Outputs outputs{results, forces, virial};
    network_->compute(pairs, species.data(), scratch->workspace, outputs);
    check_finite(n, outputs);
  }
  const auto size = static_cast<size_t>(n);
  const Doubles energies(results, {size}, owner);
  if (!gradients) return nb::make_tuple(energies, nb::none(), nb::none());
  return nb::make_tuple(energies, Doubles(forces, {size, 3}, owner),
                        Doubles(virial, {3, 3}, owner));
}

NB_MODULE(_native, m) {
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
      .def_prop_ro("kernels", [](const Model& model) { return model.network().kernels_name(); })
      .def("compute", &Model::compute, nb::arg("species"), nb::arg("positions"), nb::arg("cell"),
           nb::arg("periodic"), nb::arg("gradients"));
  m.def("equivariant_transformer", &equivariant_transformer, nb::rv_policy::take_ownership,
        nb::arg("config"), nb::arg("arrays"), nb::arg("kernels") = nb::none());
  bind_dynamics(m);
}

}  // namespace equibit
