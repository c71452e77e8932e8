// What can go wrong with a structure or a result; faces turn these into errors of their language.
#pragma once

#include <stdexcept>

namespace equibit {

/// Two nuclei, periodic images included, at the same place.
struct Coincidence : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A position or a cell from which no neighbours can be found.
struct StructureFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The result is not a number.
struct NotFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace equibit
