#include "operations/neighbors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <tuple>

#include "operations/faults.h"

namespace equibit {
namespace {

constexpr int64_t kAllPairs = 48;         // atoms of an open system of which every pair is listed
constexpr double kMostTests = 1e5;        // distances to measure around one atom
constexpr int64_t kMostNeighbors = 4096;  // of one atom; matter at its densest has hundreds
constexpr double kLargestShift = 1e9;     // cells between an atom and the origin

using Vector = std::array<double, 3>;

Vector cross(const Vector& a, const Vector& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}
double dot(const Vector& a, const Vector& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
double length(const Vector& a) { return std::sqrt(dot(a, a)); }

/// Three axes: the periodic lattice vectors, and unit vectors normal to them in open directions.
struct Axes {
  Vector row[3];
  Vector inverse[3];  // fractional coordinate k of r is inverse[k]·r
  double height[3];   // distance of opposite faces

  explicit Axes(const Cell& cell) {
    for (int k = 0; k < 3; ++k) {
      for (int x = 0; x < 3; ++x) row[k][x] = cell.periodic[k] ? cell.vectors[3 * k + x] : 0.0;
    }
    for (int k = 0; k < 3; ++k) {
      if (!cell.periodic[k]) row[k] = normal_to(k);
    }
    for (int k = 0; k < 3; ++k) {
      if (cell.periodic[k] && length(row[k]) < kMinDistance) {
        throw StructureFault("a periodic lattice vector is shorter than two atoms may be apart");
      }
    }
    const double volume = dot(row[0], cross(row[1], row[2]));
    const double size = length(row[0]) * length(row[1]) * length(row[2]);
    if (!(std::abs(volume) > 1e-9 * size) || !std::isfinite(size)) {
      throw StructureFault(
          "the periodic cell has no volume: its lattice vectors are linearly dependent");
    }
    for (int k = 0; k < 3; ++k) {
      inverse[k] = cross(row[(k + 1) % 3], row[(k + 2) % 3]);
      for (double& x : inverse[k]) x /= volume;
      height[k] = 1.0 / length(inverse[k]);
    }
  }

 private:
  /// A unit vector normal to the other rows, of which those not yet known are zero.
  Vector normal_to(int k) const {
    const Vector& a = row[(k + 1) % 3];
    const Vector& b = row[(k + 2) % 3];
    Vector result = cross(a, b);
    if (dot(a, a) == 0.0 || dot(b, b) == 0.0) {
      const Vector& known = dot(a, a) == 0.0 ? b : a;
      int smallest = 0;
      for (int x = 1; x < 3; ++x) {
        if (std::abs(known[x]) < std::abs(known[smallest])) smallest = x;
      }
      Vector axis{};
      axis[smallest] = 1.0;
      result = dot(known, known) == 0.0 ? axis : cross(known, axis);
    }
    const double size = length(result);
    if (size > 0.0) {
      for (double& x : result) x /= size;
    }
    return result;
  }
};

constexpr const char* kTooThin =
    "the periodic cell is too thin or too skewed to list its images; repeat it, or give the same "
    "lattice by shorter vectors";

[[noreturn]] void too_many(size_t atom, double reach) {
  char text[160];
  std::snprintf(
      text, sizeof text,
      "atom %zu has more than %lld neighbours within %.3g Å; check the cell and the units "
      "of length",
      atom, static_cast<long long>(kMostNeighbors), reach);
  throw StructureFault(text);
}

/// Names the two that are closest.
[[noreturn]] void coincide(const PairList& list, const double* positions) {
  int64_t first = 0, pair = 0;
  double closest = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < list.n_atoms; ++i) {
    for (int64_t p = list.first[i]; p < list.first[i + 1]; ++p) {
      const double* r = list.vectors + 3 * p;
      const double square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      if (!(square < closest)) continue;
      closest = square;
      first = i;
      pair = p;
    }
  }
  const int32_t second = list.second[pair];
  bool image = false;
  for (int k = 0; k < 3; ++k) {
    image |= list.vectors[3 * pair + k] != positions[3 * second + k] - positions[3 * first + k];
  }
  char text[192];
  std::snprintf(
      text, sizeof text,
      "atom %lld and %satom %d coincide: they are %.3g Å apart, and at least %g Å is needed%s",
      static_cast<long long>(first), image ? "a periodic image of " : "", second,
      std::sqrt(closest), kMinDistance, image ? "; check the cell" : "");
  throw Coincidence(text);
}

void check_positions(int64_t n_atoms, const double* positions) {
  for (int64_t k = 0; k < 3 * n_atoms; ++k) {
    if (!std::isfinite(positions[k])) {
      throw StructureFault("the position of atom " + std::to_string(k / 3) + " is not finite");
    }
  }
}

}  // namespace

bool Neighbors::serves(int64_t n_atoms, const double* positions, const Cell& cell) const {
  if (!valid_ || static_cast<int64_t>(positions_.size()) != 3 * n_atoms || !(cell == cell_)) {
    return false;
  }
  const double limit = 0.25 * skin_ * skin_;
  bool valid = true;
  for (int64_t i = 0; i < n_atoms; ++i) {
    double square = 0.0;
    for (int64_t k = 3 * i; k < 3 * i + 3; ++k) {
      const double moved = positions[k] - positions_[static_cast<size_t>(k)];
      square += moved * moved;
    }
    valid &= square < limit;  // also false for NaN
  }
  return valid;
}

void Neighbors::build(int64_t n_atoms, const double* positions, const Cell& cell) {
  check_positions(n_atoms, positions);
  valid_ = false;  // whatever is thrown below leaves no list
  positions_.assign(positions, positions + 3 * n_atoms);
  cell_ = cell;
  search(n_atoms, positions, cell);
  valid_ = true;
  ++builds_;
}

void Neighbors::search(int64_t n_atoms, const double* positions, const Cell& cell) {
  const double reach = cutoff_ + skin_;
  const auto n = static_cast<size_t>(n_atoms);
  const Axes axes(cell);

  // Fractional coordinates, wrapped into the cell; scaled into a box around the atoms where open.
  wrapped_.resize(3 * n);
  wraps_.assign(3 * n, 0);
  double low[3], extent[3];
  for (int k = 0; k < 3; ++k) {
    double smallest = 1e300, largest = -1e300;
    for (size_t i = 0; i < n; ++i) {
      const Vector r = {positions[3 * i], positions[3 * i + 1], positions[3 * i + 2]};
      double s = dot(axes.inverse[k], r);
      if (cell.periodic[k]) {
        const double floor = std::floor(s);
        if (!(std::abs(floor) < kLargestShift)) {
          throw StructureFault("atom " + std::to_string(i) + " is too far outside the cell");
        }
        wraps_[3 * i + k] = static_cast<int32_t>(floor);
        s -= floor;
      }
      wrapped_[3 * i + k] = s;
      smallest = std::min(smallest, s);
      largest = std::max(largest, s);
    }
    low[k] = cell.periodic[k] ? 0.0 : smallest;
    extent[k] = cell.periodic[k] ? 1.0 : largest - smallest;
  }

  // Bins at least as wide as the reach, or as the cell where that is narrower; never many more
  // than atoms.
  int64_t count[3], range[3];
  double images = 1.0;
  const double most = std::cbrt(4.0 * static_cast<double>(n) + 64.0);
  for (int k = 0; k < 3; ++k) {
    const double size = extent[k] * axes.height[k];
    count[k] = static_cast<int64_t>(std::clamp(size / reach, 1.0, most));
    const double around = cell.periodic[k] ? std::ceil(reach / size * count[k]) : 1.0;
    images *= 2.0 * around + 1.0;
    if (!(images < kMostTests)) throw StructureFault(kTooThin);
    range[k] = static_cast<int64_t>(around);
  }
  const auto n_bins = static_cast<size_t>(count[0] * count[1] * count[2]);
  if (cell.any() && !(images * static_cast<double>(n) < kMostTests * static_cast<double>(n_bins))) {
    throw StructureFault(kTooThin);
  }
  bins_.resize(n);
  bin_first_.assign(n_bins + 1, 0);
  const auto place = [&](size_t i, int k) {
    const double s = extent[k] > 0.0 ? (wrapped_[3 * i + k] - low[k]) / extent[k] : 0.0;
    return std::clamp<int64_t>(static_cast<int64_t>(s * static_cast<double>(count[k])), 0,
                               count[k] - 1);
  };
  for (size_t i = 0; i < n; ++i) {
    const int64_t bin = (place(i, 0) * count[1] + place(i, 1)) * count[2] + place(i, 2);
    bins_[i] = static_cast<int32_t>(bin);
    ++bin_first_[static_cast<size_t>(bin) + 1];
  }
  for (size_t b = 0; b < n_bins; ++b) bin_first_[b + 1] += bin_first_[b];
  bin_atoms_.resize(n);
  for (size_t i = n; i-- > 0;) {
    // Counts down, so that starts become right again below and atoms ascend within a bin.
    bin_atoms_[static_cast<size_t>(--bin_first_[static_cast<size_t>(bins_[i]) + 1])] =
        static_cast<int32_t>(i);
  }
  // bin_first_[b + 1] is now the start of bin b.
  const auto start_of = [&](size_t bin) { return static_cast<size_t>(bin_first_[bin + 1]); };
  const auto end_of = [&](size_t bin) {
    return bin + 1 < n_bins ? static_cast<size_t>(bin_first_[bin + 2]) : n;
  };

  const auto cartesian = [&](const double* shift) {
    Vector r{};
    for (int k = 0; k < 3; ++k) {
      for (int x = 0; x < 3; ++x) r[x] += shift[k] * axes.row[k][x];
    }
    return r;
  };
  first_.assign(n + 1, 0);
  candidates_.clear();
  for (size_t i = 0; i < n; ++i) {
    const auto begin = static_cast<int64_t>(candidates_.size());
    first_[i] = begin;
    int64_t home[3], wrap[3], bin[3];
    for (int k = 0; k < 3; ++k) home[k] = place(i, k);
    int64_t step[3];
    for (step[0] = -range[0]; step[0] <= range[0]; ++step[0]) {
      for (step[1] = -range[1]; step[1] <= range[1]; ++step[1]) {
        for (step[2] = -range[2]; step[2] <= range[2]; ++step[2]) {
          bool inside = true;
          for (int k = 0; k < 3; ++k) {
            const int64_t at = home[k] + step[k];
            wrap[k] = (at >= 0 ? at : at - count[k] + 1) / count[k];
            bin[k] = at - wrap[k] * count[k];
            inside &= cell.periodic[k] || wrap[k] == 0;
          }
          if (!inside) continue;
          const auto index = static_cast<size_t>((bin[0] * count[1] + bin[1]) * count[2] + bin[2]);
          for (size_t at = start_of(index); at < end_of(index); ++at) {
            const auto j = static_cast<size_t>(bin_atoms_[at]);
            if (j < i) continue;
            Candidate candidate{static_cast<int32_t>(j), {}};
            double shift[3];
            for (int k = 0; k < 3; ++k) {
              candidate.shift[k] =
                  static_cast<int32_t>(wrap[k]) - wraps_[3 * j + k] + wraps_[3 * i + k];
              shift[k] = candidate.shift[k];
            }
            // Of an atom and its own images, one of each opposite two.
            if (j == i && std::tie(shift[0], shift[1], shift[2]) <= std::tuple(0.0, 0.0, 0.0)) {
              continue;
            }
            const Vector r = cartesian(shift);
            double square = 0.0;
            for (int x = 0; x < 3; ++x) {
              const double d = positions[3 * j + x] - positions[3 * i + x] + r[x];
              square += d * d;
            }
            if (square < reach * reach) candidates_.push_back(candidate);
            if (static_cast<int64_t>(candidates_.size()) > begin + kMostNeighbors)
              too_many(i, reach);
          }
        }
      }
    }
    std::sort(candidates_.begin() + begin, candidates_.end(),
              [](const Candidate& a, const Candidate& b) {
                return std::tie(a.second, a.shift[0], a.shift[1], a.shift[2]) <
                       std::tie(b.second, b.shift[0], b.shift[1], b.shift[2]);
              });
  }
  first_[n] = static_cast<int64_t>(candidates_.size());
}

PairList Neighbors::find(int64_t n_atoms, const double* positions, const Cell& cell,
                         Workspace& workspace) {
  PairList list;
  if (n_atoms <= kAllPairs && !cell.any()) {
    check_positions(n_atoms, positions);
    list = open_pairs(n_atoms, positions, cutoff_, workspace);
  } else {
    if (!serves(n_atoms, positions, cell)) build(n_atoms, positions, cell);
    const int64_t most = first_[static_cast<size_t>(n_atoms)];
    list.n_atoms = n_atoms;
    list.first = workspace.take<int64_t>(n_atoms + 1);
    list.second = workspace.take<int32_t>(most);
    list.vectors = workspace.take<double>(3 * most);
    const double limit = cutoff_ * cutoff_;
    double closest = 1e60;
    int64_t p = 0;
    for (int64_t i = 0; i < n_atoms; ++i) {
      list.first[i] = p;
      const double* a = positions + 3 * i;
      for (int64_t c = first_[static_cast<size_t>(i)]; c < first_[static_cast<size_t>(i) + 1];
           ++c) {
        const Candidate& candidate = candidates_[static_cast<size_t>(c)];
        const double* b = positions + 3 * static_cast<int64_t>(candidate.second);
        double r[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
        for (int k = 0; k < 3; ++k) {
          if (candidate.shift[k] == 0) continue;
          for (int x = 0; x < 3; ++x) r[x] += candidate.shift[k] * cell.vectors[3 * k + x];
        }
        const double square = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
        if (!(square < limit)) continue;
        closest = std::min(closest, square);
        list.second[p] = candidate.second;
        std::copy(r, r + 3, list.vectors + 3 * p);
        ++p;
      }
      list.most = std::max(list.most, p - list.first[i]);
    }
    list.first[n_atoms] = p;
    list.n_pairs = p;
    list.closest = std::sqrt(closest);
  }
  if (list.n_pairs > 0 && !(list.closest >= kMinDistance)) {
    coincide(list, positions);
  }
  return list;
}

}  // namespace equibit
