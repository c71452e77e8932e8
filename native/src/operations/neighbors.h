// Who is within the cutoff of whom, periodic images included, in time proportional to the atoms.
#pragma once

#include <cstdint>
#include <vector>

#include "operations/geometry.h"
#include "operations/workspace.h"

namespace equibit {

/// Lattice vectors as rows in Å, and which of them repeat; none does in an open system.
struct Cell {
  double vectors[9] = {};
  bool periodic[3] = {};

  bool any() const { return periodic[0] || periodic[1] || periodic[2]; }
  bool operator==(const Cell&) const = default;
};

/// A neighbour list that is kept while no atom has moved by more than half the skin.
///
/// The pairs found, and their order, depend on positions and cell alone, not on when the list was
/// made: by first atom, second atom, then image. So a dynamics that is resumed from positions gives
/// the same bits as one that was never interrupted.
class Neighbors {
 public:
  /// Cutoff and skin in Å. A skin of 0 makes a new list in every call.
  Neighbors(double cutoff, double skin) : cutoff_(cutoff), skin_(skin) {}

  /// Pairs within the cutoff, in `workspace`. Positions [n_atoms][3] in Å need not be wrapped into
  /// the cell. Throws StructureFault (a position that is not finite, a cell without volume) and
  /// Coincidence (two atoms closer than kMinDistance).
  PairList find(int64_t n_atoms, const double* positions, const Cell& cell, Workspace& workspace);

  /// How often a list was made.
  int64_t builds() const { return builds_; }

 private:
  struct Candidate {
    int32_t second;
    int32_t shift[3];
  };

  bool serves(int64_t n_atoms, const double* positions, const Cell& cell) const;
  void build(int64_t n_atoms, const double* positions, const Cell& cell);
  void search(int64_t n_atoms, const double* positions, const Cell& cell);

  double cutoff_, skin_;
  int64_t builds_ = 0;
  bool valid_ = false;
  Cell cell_;
  std::vector<double> positions_;      // at which the list was made
  std::vector<int64_t> first_;         // [n_atoms + 1]
  std::vector<Candidate> candidates_;  // by first, second, shift; within cutoff + skin then
  // Of a search, kept so that the next one allocates nothing.
  std::vector<double> wrapped_;
  std::vector<int32_t> wraps_, bins_, bin_atoms_;
  std::vector<int64_t> bin_first_;
};

}  // namespace equibit
