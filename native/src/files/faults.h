// Why a file was not read; faces turn these into errors of their language.
#pragma once

#include <stdexcept>

namespace equibit {

/// Missing, damaged, foreign or newer: the message says which and what to do.
struct FileFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Whole, but of a network or recipe that the engine does not run.
struct UnsupportedModel : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace equibit
