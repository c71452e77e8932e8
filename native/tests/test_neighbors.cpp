// Neighbour lists against all images of all pairs, and the evaluator's reuse of them.

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "check.h"
#include "operations/evaluator.h"
#include "operations/faults.h"
#include "operations/neighbors.h"

namespace equibit {
namespace {

std::mt19937 generator(2);

double uniform(double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(generator);
}

struct System {
  std::string name;
  Cell cell;
  std::vector<double> positions;
  int64_t n() const { return static_cast<int64_t>(positions.size()) / 3; }
};

System random_system(const std::string& name, int n, double spread, const Cell& cell) {
  System system{name, cell, {}};
  for (int k = 0; k < 3 * n; ++k) system.positions.push_back(uniform(-spread, spread));
  return system;
}

/// Vectors of all pairs, sorted, from every image within reach; of r and −r the greater one.
std::vector<std::tuple<double, double, double>> reference(const System& s, double cutoff) {
  std::vector<std::tuple<double, double, double>> found;
  int reach[3];
  for (int k = 0; k < 3; ++k) reach[k] = s.cell.periodic[k] ? 14 : 0;
  for (int64_t i = 0; i < s.n(); ++i) {
    for (int64_t j = i; j < s.n(); ++j) {
      for (int a = -reach[0]; a <= reach[0]; ++a) {
        for (int b = -reach[1]; b <= reach[1]; ++b) {
          for (int c = -reach[2]; c <= reach[2]; ++c) {
            if (i == j && std::tuple(a, b, c) <= std::tuple(0, 0, 0)) continue;
            double r[3], square = 0.0;
            for (int x = 0; x < 3; ++x) {
              r[x] = s.positions[static_cast<size_t>(3 * j + x)] -
                     s.positions[static_cast<size_t>(3 * i + x)] + a * s.cell.vectors[x] +
                     b * s.cell.vectors[3 + x] + c * s.cell.vectors[6 + x];
              square += r[x] * r[x];
            }
            if (square < cutoff * cutoff) found.emplace_back(r[0], r[1], r[2]);
          }
        }
      }
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::tuple<double, double, double>> found(const PairList& pairs) {
  std::vector<std::tuple<double, double, double>> result;
  for (int64_t p = 0; p < pairs.n_pairs; ++p) {
    const double* r = pairs.vectors + 3 * p;
    result.emplace_back(r[0], r[1], r[2]);
  }
  std::sort(result.begin(), result.end());
  return result;
}

bool close(const std::vector<std::tuple<double, double, double>>& a,
           const std::vector<std::tuple<double, double, double>>& b) {
  if (a.size() != b.size()) return false;
  for (size_t k = 0; k < a.size(); ++k) {
    const auto& [ax, ay, az] = a[k];
    const auto& [bx, by, bz] = b[k];
    if (std::abs(ax - bx) + std::abs(ay - by) + std::abs(az - bz) > 1e-9) return false;
  }
  return true;
}

void test_search() {
  constexpr double kCutoff = 3.0;
  const std::vector<System> systems = {
      random_system("open", 90, 6.0, {}),
      random_system("open, far apart", 60, 4e8, {}),
      random_system("cube", 70, 9.0, {{8, 0, 0, 0, 8, 0, 0, 0, 8}, {true, true, true}}),
      random_system("smaller than the cutoff", 3, 9.0,
                    {{2, 0, 0, 0, 2.5, 0, 0, 0, 1.5}, {true, true, true}}),
      random_system("triclinic", 40, 20.0,
                    {{6, 0.5, 0.2, -2.5, 5, 0.1, 1, -2, 7}, {true, true, true}}),
      random_system("left-handed", 40, 20.0, {{0, 6, 0, 5, 0, 0, 1, 1, 7}, {true, true, true}}),
      random_system("slab", 60, 6.0, {{5, 0, 0, 1, 6, 0, 0, 0, 0}, {true, true, false}}),
      random_system("wire", 60, 5.0, {{0, 0, 0, 3, 1, 4, 0, 0, 0}, {false, true, false}}),
      random_system("thin wire", 2, 1.0, {{0, 0, 0, 0, 0, 0, 0.4, 0, 0}, {false, false, true}}),
  };
  for (const System& system : systems) {
    Workspace workspace;
    Neighbors fresh(kCutoff, 0.0), kept(kCutoff, 0.7);
    System moving = system;
    for (int step = 0; step < 12; ++step) {
      workspace.reset();
      const PairList a = fresh.find(moving.n(), moving.positions.data(), moving.cell, workspace);
      const PairList b = kept.find(moving.n(), moving.positions.data(), moving.cell, workspace);
      const std::string what = system.name + ", step " + std::to_string(step);
      if (step % 4 == 0) check(close(reference(moving, kCutoff), found(a)), what + ": pairs");
      bool same = a.n_pairs == b.n_pairs && a.most == b.most && a.closest == b.closest &&
                  std::equal(a.first, a.first + a.n_atoms + 1, b.first);
      same = same && std::equal(a.second, a.second + a.n_pairs, b.second) &&
             std::equal(a.vectors, a.vectors + 3 * a.n_pairs, b.vectors);
      check(same, what + ": a kept list gives other pairs or another order");
      for (double& x : moving.positions) x += uniform(-0.08, 0.08);
    }
    const bool listed = system.n() > 30;
    check(kept.builds() < 8 && (!listed || kept.builds() > 1),
          system.name + ": lists made " + std::to_string(kept.builds()));
  }
}

template <typename Fault>
bool refuses(const System& system) {
  Workspace workspace;
  Neighbors neighbors(4.0, 0.5);
  try {
    neighbors.find(system.n(), system.positions.data(), system.cell, workspace);
  } catch (const Fault&) {
    return true;
  }
  return false;
}

void test_refusals() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Cell cube{{9, 0, 0, 0, 9, 0, 0, 0, 9}, {true, true, true}};
  check(refuses<StructureFault>({"", {}, {0, 0, nan}}), "a position that is NaN");
  check(refuses<StructureFault>({"", cube, {0, 0, nan}}), "a position that is NaN in a cell");
  check(refuses<StructureFault>({"", cube, {0, 0, 1e300}}), "an atom far outside the cell");
  check(refuses<StructureFault>({"", {{1, 0, 0, 2, 0, 0, 0, 0, 3}, {true, true, true}}, {0, 0, 0}}),
        "a flat cell");
  check(
      refuses<StructureFault>({"", {{nan, 0, 0, 0, 9, 0, 0, 0, 9}, {true, true, true}}, {0, 0, 0}}),
      "a cell that is NaN");
  check(refuses<StructureFault>(
            {"", {{1e-5, 0, 0, 0, 1e-5, 0, 0, 0, 1e-5}, {true, true, true}}, {0, 0, 0}}),
        "a tiny cell");
  check(refuses<Coincidence>({"", {}, {0, 0, 0, 0, 0.01, 0}}), "coinciding atoms");
  check(refuses<Coincidence>({"", cube, {0, 0, 0, 0, 9, 0}}), "coinciding images");
  const Cell thin{{0.06, 0, 0, 60, 0.06, 0, 0, 60, 9}, {true, true, true}};
  check(refuses<StructureFault>({"", thin, {0, 0, 0}}), "a thin and skewed cell");
}

template <typename Fault>
std::string words(const System& system) {
  Workspace workspace;
  Neighbors neighbors(4.0, 0.5);
  try {
    neighbors.find(system.n(), system.positions.data(), system.cell, workspace);
  } catch (const Fault& fault) {
    return fault.what();
  }
  return "";
}

void test_words() {
  const Cell cube{{9, 0, 0, 0, 9, 0, 0, 0, 9}, {true, true, true}};
  const Cell tiny{{0.3, 0, 0, 0, 0.3, 0, 0, 0, 0.3}, {true, true, true}};
  const std::string near = words<Coincidence>({"", {}, {7, 0, 0, 0, 0, 0, 0, 0.04, 0, 0, 0.01, 0}});
  check(near.starts_with("atom 1 and atom 3 coincide: they are 0.01 Å apart"), near);
  const std::string image = words<Coincidence>({"", cube, {0, 0, 0, 0, 8.98, 0}});
  check(image.starts_with("atom 0 and a periodic image of atom 1 coincide: they are 0.02"), image);
  const std::string crowd = words<StructureFault>({"", tiny, {0, 0, 0, 0.1, 0.1, 0.1}});
  check(crowd.starts_with("atom 0 has more than 4096 neighbours within 4.5 Å"), crowd);
}

/// E = ½ Σ |r|² over pairs, so that the evaluator can be watched without a model.
class Springs final : public Network {
 public:
  double cutoff() const override { return 3.0; }
  int elements() const override { return 2; }
  const char* kernels_name() const override { return "none"; }
  std::vector<Arithmetic> arithmetic() const override { return {}; }
  void compute(PairList& pairs, const int32_t*, Workspace&, Crew&,
               const Outputs& out) const override {
    std::fill(out.atomic_energies, out.atomic_energies + pairs.n_atoms, 0.0);
    for (int64_t i = 0; i < pairs.n_atoms; ++i) {
      for (int64_t p = pairs.first[i]; p < pairs.first[i + 1]; ++p) {
        for (int k = 0; k < 3; ++k) {
          out.atomic_energies[i] += 0.5 * pairs.vectors[3 * p + k] * pairs.vectors[3 * p + k];
        }
      }
    }
    if (broken) out.atomic_energies[0] = std::numeric_limits<double>::infinity();
  }
  bool broken = false;
};

void test_evaluator() {
  Springs network;
  System system = random_system("", 80, 6.0, {{9, 0, 0, 0, 9, 0, 0, 0, 9}, {true, true, true}});
  Evaluator evaluator(network, std::vector<int32_t>(80, 1), system.cell, 0.6);
  std::vector<double> energies(80);
  const Outputs outputs{energies.data(), nullptr, nullptr};
  double energy = 0.0;
  for (int step = 0; step < 20; ++step) {
    for (double& x : system.positions) x += uniform(-0.02, 0.02);
    energy = evaluator.compute(system.positions.data(), outputs);
  }
  check(evaluator.neighbor_builds() < 6, "the evaluator keeps its list");
  Evaluator resumed(network, std::vector<int32_t>(80, 1), system.cell, 0.6);
  check(resumed.compute(system.positions.data(), outputs) == energy,
        "a resumed run has the same bits");
  Cell wider = system.cell;
  wider.vectors[0] = 9.5;
  evaluator.set_cell(wider);
  Evaluator other(network, std::vector<int32_t>(80, 1), wider, 0.6);
  check(evaluator.compute(system.positions.data(), outputs) ==
            other.compute(system.positions.data(), outputs),
        "a changed cell makes a new list");
  network.broken = true;
  bool thrown = false;
  try {
    evaluator.compute(system.positions.data(), outputs);
  } catch (const NotFinite&) {
    thrown = true;
  }
  check(thrown, "an infinite energy is refused");
  for (const std::vector<int32_t>& species : {std::vector<int32_t>{}, {0, 2}, {-1}}) {
    thrown = false;
    try {
      const Evaluator wrong(network, species, {}, 0.5);
    } catch (const StructureFault&) {
      thrown = true;
    }
    check(thrown, "wrong species are refused");
  }
}

}  // namespace
}  // namespace equibit

int main() {
  equibit::test_search();
  equibit::test_refusals();
  equibit::test_evaluator();
  return equibit::verdict();
}
