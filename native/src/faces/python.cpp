// Python's face of the engine: arrays in, arrays out, the interpreter lock released in between.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "operations/geometry.h"
#include "potentials/equivariant_transformer.h"

namespace nb = nanobind;

namespace equibit {
namespace {

/// Two nuclei at the same place; Python says which.
struct Coincidence : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The result is not a number.
struct NotFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Workspaces for as many concurrent calls as there ever were.
class Workspaces {
 public:
  std::unique_ptr<Workspace> borrow() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique<Workspace>();
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

using Doubles = nb::ndarray<double, nb::numpy, nb::c_contig, nb::device::cpu>;
using Positions = nb::ndarray<const double, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Species = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

class Transformer {
 public:
  Transformer(const nb::dict& config, const nb::dict& arrays,
              const std::optional<std::string>& kernels)
      : network_(config_of(config), tensors_of(arrays), kernels_named(kernels)) {}

  nb::tuple open(const Species& species, const Positions& positions, bool gradients) const {
    const auto n = check(species);
    if (static_cast<int64_t>(positions.shape(0)) != n) {
      throw nb::value_error("positions and species differ in length");
    }
    return run(species, gradients, [&](Workspace& workspace) {
      return open_pairs(n, positions.data(), network_.config().cutoff, workspace);
    });
  }

  nb::tuple edges(const Species& species, const Indices& receivers, const Indices& senders,
                  const Positions& vectors, bool gradients) const {
    const auto n = check(species);
    const auto count = static_cast<int64_t>(vectors.shape(0));
    if (static_cast<int64_t>(receivers.shape(0)) != count ||
        static_cast<int64_t>(senders.shape(0)) != count) {
      throw nb::value_error("receivers, senders and vectors differ in length");
    }
    for (int64_t e = 0; e < count; ++e) {
      const int64_t i = receivers.data()[e], j = senders.data()[e];
      if (i < 0 || i >= n || j < 0 || j >= n) throw nb::value_error("an edge names no atom");
    }
    return run(species, gradients, [&](Workspace& workspace) {
      return pairs_of_edges(n, count, receivers.data(), senders.data(), vectors.data(), workspace);
    });
  }

  std::string kernels() const { return network_.kernels().name; }

 private:
  static TransformerConfig config_of(const nb::dict& config) {
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

  static const Kernels& kernels_named(const std::optional<std::string>& name) {
    if (!name) return best_kernels();
    const Kernels* table = find_kernels(name->c_str());
    if (table == nullptr) {
      throw nb::value_error(("this processor has no kernels named " + *name).c_str());
    }
    return *table;
  }

  int64_t check(const Species& species) const {
    const auto n = static_cast<int64_t>(species.shape(0));
    if (n < 1 || n > INT32_MAX) throw nb::value_error("the number of atoms is out of range");
    for (int64_t i = 0; i < n; ++i) {
      if (species.data()[i] < 0 || species.data()[i] >= network_.config().elements) {
        throw nb::value_error("a species is out of range");
      }
    }
    return n;
  }

  template <typename MakePairs>
  nb::tuple run(const Species& species, bool gradients, const MakePairs& make_pairs) const {
    const size_t n = species.shape(0);
    auto* results = new double[4 * n + 9];
    const nb::capsule owner(results, [](void* p) noexcept { delete[] static_cast<double*>(p); });
    double* forces = gradients ? results + n : nullptr;
    double* virial = gradients ? results + 4 * n : nullptr;
    {
      const nb::gil_scoped_release release;
      auto workspace = workspaces_.borrow();
      workspace->reset();
      PairList pairs = make_pairs(*workspace);
      if (pairs.n_pairs > 0 && !(pairs.closest >= kMinDistance)) {
        workspaces_.give_back(std::move(workspace));
        throw Coincidence("two atoms coincide");
      }
      network_.compute(pairs, species.data(), *workspace, {results, forces, virial});
      workspaces_.give_back(std::move(workspace));
      double sum = 0.0;
      for (size_t k = 0; k < (gradients ? 4 * n + 9 : n); ++k) sum += results[k];
      if (!std::isfinite(sum)) throw NotFinite("the result is not finite");
    }
    const Doubles energies(results, {n}, owner);
    if (!gradients) return nb::make_tuple(energies, nb::none(), nb::none());
    return nb::make_tuple(energies, Doubles(forces, {n, 3}, owner), Doubles(virial, {3, 3}, owner));
  }

  EquivariantTransformer network_;
  mutable Workspaces workspaces_;
};

}  // namespace

NB_MODULE(_native, m) {
  nb::exception<ModelFault>(m, "ModelFault", PyExc_ValueError);
  nb::exception<Coincidence>(m, "Coincidence", PyExc_ValueError);
  nb::exception<NotFinite>(m, "NotFinite", PyExc_ArithmeticError);

  m.def("kernel_names", [] {
    std::vector<std::string> names;
    for (const char* const* name = kernel_names(); *name != nullptr; ++name) {
      names.emplace_back(*name);
    }
    return names;
  });

  nb::class_<Transformer>(m, "EquivariantTransformer")
      .def(nb::init<const nb::dict&, const nb::dict&, const std::optional<std::string>&>(),
           nb::arg("config"), nb::arg("arrays"), nb::arg("kernels") = nb::none())
      .def_prop_ro("kernels", &Transformer::kernels)
      .def("open", &Transformer::open, nb::arg("species"), nb::arg("positions"),
           nb::arg("gradients"))
      .def("edges", &Transformer::edges, nb::arg("species"), nb::arg("receivers"),
           nb::arg("senders"), nb::arg("vectors"), nb::arg("gradients"));
}

}  // namespace equibit
