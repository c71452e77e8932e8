// C's face of the engine: statuses instead of exceptions.

#include <cmath>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "equibit.h"
#include "files/container.h"
#include "files/faults.h"
#include "files/model.h"
#include "kernels/kernels.h"
#include "operations/evaluator.h"
#include "operations/faults.h"
#include "operations/tensors.h"

struct equibit_model {
  equibit::LoadedModel loaded;
};

struct equibit_calculator {
  equibit::Evaluator evaluator;
  std::vector<double> atomic_energies;
};

namespace {

// A fixed buffer, so that even a lack of memory can be told.
thread_local char last_error[512] = "";

equibit_status fail(equibit_status status, const char* what) {
  std::strncpy(last_error, what, sizeof last_error - 1);
  return status;
}

/// Runs what may throw, and turns every exception into a status.
template <typename Body>
equibit_status guarded(const Body& body) noexcept {
  last_error[0] = '\0';
  try {
    return body();
  } catch (const equibit::FileFault& fault) {
    return fail(EQUIBIT_BAD_FILE, fault.what());
  } catch (const equibit::ModelFault& fault) {
    return fail(EQUIBIT_BAD_FILE, fault.what());
  } catch (const equibit::UnsupportedModel& fault) {
    return fail(EQUIBIT_BAD_MODEL, fault.what());
  } catch (const equibit::StructureFault& fault) {
    return fail(EQUIBIT_BAD_STRUCTURE, fault.what());
  } catch (const equibit::Coincidence& fault) {
    return fail(EQUIBIT_BAD_STRUCTURE, fault.what());
  } catch (const equibit::NotFinite& fault) {
    return fail(EQUIBIT_NOT_FINITE, fault.what());
  } catch (const std::bad_alloc&) {
    return fail(EQUIBIT_NO_MEMORY, "there is not enough memory");
  } catch (const std::length_error&) {
    return fail(EQUIBIT_NO_MEMORY, "there is not enough memory");
  } catch (const std::exception& fault) {
    return fail(EQUIBIT_INTERNAL, fault.what());
  } catch (...) {
    return fail(EQUIBIT_INTERNAL, "an unknown error");
  }
}

equibit_status load(std::vector<std::byte> bytes, equibit_model** model) {
  *model = new equibit_model{equibit::load_model(std::move(bytes), equibit::best_kernels())};
  return EQUIBIT_OK;
}

double volume(const double* c) {
  return std::abs(c[0] * (c[4] * c[8] - c[5] * c[7]) - c[1] * (c[3] * c[8] - c[5] * c[6]) +
                  c[2] * (c[3] * c[7] - c[4] * c[6]));
}

}  // namespace

const char* equibit_error(void) { return last_error; }

equibit_status equibit_load(const char* path, equibit_model** model) {
  return guarded([&] {
    if (path == nullptr || model == nullptr) {
      return fail(EQUIBIT_BAD_ARGUMENT, "path or model is null");
    }
    std::vector<std::byte> bytes = equibit::read_file(path);  // what it says names the file
    const std::string place = std::string(path) + ": ";
    try {
      return load(std::move(bytes), model);
    } catch (const equibit::FileFault& fault) {
      return fail(EQUIBIT_BAD_FILE, (place + fault.what()).c_str());
    } catch (const equibit::ModelFault& fault) {
      return fail(EQUIBIT_BAD_FILE, (place + fault.what()).c_str());
    } catch (const equibit::UnsupportedModel& fault) {
      return fail(EQUIBIT_BAD_MODEL, (place + fault.what()).c_str());
    }
  });
}

equibit_status equibit_load_bytes(const void* bytes, size_t size, equibit_model** model) {
  return guarded([&] {
    if ((bytes == nullptr && size > 0) || model == nullptr) {
      return fail(EQUIBIT_BAD_ARGUMENT, "bytes or model is null");
    }
    const auto* first = static_cast<const std::byte*>(bytes);
    return load(std::vector<std::byte>(first, first + size), model);
  });
}

void equibit_free_model(equibit_model* model) { delete model; }

const char* equibit_name(const equibit_model* model) { return model->loaded.name.c_str(); }

const char* equibit_recipe(const equibit_model* model) { return model->loaded.recipe.c_str(); }

const char* equibit_kernels(const equibit_model* model) {
  return model->loaded.network->kernels_name();
}

double equibit_cutoff(const equibit_model* model) { return model->loaded.network->cutoff(); }

size_t equibit_elements(const equibit_model* model, int32_t* numbers, size_t capacity) {
  const auto& elements = model->loaded.elements;
  for (size_t k = 0; k < elements.size() && k < capacity && numbers != nullptr; ++k) {
    numbers[k] = elements[k];
  }
  return elements.size();
}

equibit_status equibit_make_calculator(const equibit_model* model, int64_t n_atoms,
                                       const int32_t* numbers, double skin, int32_t threads,
                                       equibit_calculator** calculator) {
  return guarded([&] {
    if (model == nullptr || numbers == nullptr || calculator == nullptr) {
      return fail(EQUIBIT_BAD_ARGUMENT, "model, numbers or calculator is null");
    }
    if (n_atoms < 1 || n_atoms > INT32_MAX / 4) {
      return fail(EQUIBIT_BAD_ARGUMENT, "the number of atoms is out of range");
    }
    if (threads < 1 || threads > 256) {
      return fail(EQUIBIT_BAD_ARGUMENT, "the number of threads is out of range");
    }
    const auto& elements = model->loaded.elements;
    std::vector<int32_t> species;
    for (int64_t i = 0; i < n_atoms; ++i) {
      size_t index = 0;
      while (index < elements.size() && elements[index] != numbers[i]) ++index;
      if (index == elements.size()) {
        std::string what = "atom " + std::to_string(i) + " has atomic number " +
                           std::to_string(numbers[i]) + ", which the model never saw; it knows";
        for (const int32_t known : elements) what += " " + std::to_string(known);
        return fail(EQUIBIT_BAD_STRUCTURE, what.c_str());
      }
      species.push_back(static_cast<int32_t>(index));
    }
    *calculator =
        new equibit_calculator{equibit::Evaluator(*model->loaded.network, std::move(species),
                                                  equibit::Cell{}, skin, threads),
                               std::vector<double>(static_cast<size_t>(n_atoms))};
    return EQUIBIT_OK;
  });
}

void equibit_free_calculator(equibit_calculator* calculator) { delete calculator; }

equibit_status equibit_compute(equibit_calculator* calculator, const double* positions,
                               const double* cell, const int32_t* periodic, double* energy,
                               double* atomic_energies, double* forces, double* stress) {
  return guarded([&] {
    if (calculator == nullptr || positions == nullptr || energy == nullptr) {
      return fail(EQUIBIT_BAD_ARGUMENT, "calculator, positions or energy is null");
    }
    equibit::Cell lattice;
    for (int k = 0; k < 9 && cell != nullptr; ++k) lattice.vectors[k] = cell[k];
    for (int k = 0; k < 3; ++k) {
      lattice.periodic[k] = periodic != nullptr ? periodic[k] != 0 : cell != nullptr;
    }
    if (lattice.any() && cell == nullptr) {
      return fail(EQUIBIT_BAD_STRUCTURE, "a periodic direction needs a cell");
    }
    if (stress != nullptr && !(lattice.periodic[0] && lattice.periodic[1] && lattice.periodic[2])) {
      return fail(EQUIBIT_BAD_STRUCTURE, "a stress needs a cell periodic in three directions");
    }
    equibit::Evaluator& evaluator = calculator->evaluator;
    evaluator.set_cell(lattice);
    double* atoms =
        atomic_energies != nullptr ? atomic_energies : calculator->atomic_energies.data();
    *energy = evaluator.compute(positions, {atoms, forces, stress});
    for (int k = 0; k < 9 && stress != nullptr; ++k) stress[k] /= volume(cell);
    return EQUIBIT_OK;
  });
}
