// Any numbers as positions and cell of a system.
//
// Bytes: number of atoms, flags (periodic directions, a second call that moves atoms), then float64
// of the cell where there is one and of the positions, repeated where they are too few.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "files/container.h"
#include "files/model.h"
#include "kernels/kernels.h"
#include "operations/evaluator.h"
#include "operations/faults.h"
#include "operations/neighbors.h"

namespace {

constexpr int64_t kMostPairs =
    64;  // beyond it neighbours alone are searched, for the sake of speed

const equibit::LoadedModel& model() {
  static const equibit::LoadedModel loaded =
      equibit::load_model(equibit::read_file(EQUIBIT_MODEL), equibit::best_kernels());
  return loaded;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace equibit;
  if (size < 10) return 0;
  const int n = 1 + data[0] % 12;
  const uint8_t flags = data[1];
  const uint8_t* numbers = data + 2;
  const size_t count = (size - 2) / sizeof(double);
  size_t taken = 0;
  const auto next = [&] {
    double value;
    std::memcpy(&value, numbers + sizeof(double) * (taken % count), sizeof value);
    // What repeats is shifted, so that few bytes still give atoms in different places.
    value += 1.37 * static_cast<double>(taken / count);
    ++taken;
    return value;
  };
  Cell cell;
  for (int k = 0; k < 3; ++k) cell.periodic[k] = (flags >> k & 1) != 0;
  for (int k = 0; k < 9 && cell.any(); ++k) cell.vectors[k] = next();
  std::vector<double> positions(static_cast<size_t>(3 * n));
  for (double& x : positions) x = next();
  std::vector<int32_t> species(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) species[static_cast<size_t>(i)] = (data[0] + i) % 3;
  std::vector<double> energies(species.size()), forces(positions.size());
  double virial[9];
  try {
    const double skin = 0.3 * (flags >> 6);
    Neighbors neighbors(model().network->cutoff(), skin);
    Workspace workspace;
    const PairList pairs = neighbors.find(n, positions.data(), cell, workspace);
    for (int64_t p = 0; p < 3 * pairs.n_pairs; ++p) {
      if (!(pairs.vectors[p] - pairs.vectors[p] == 0.0)) std::abort();  // a silent NaN
    }
    if (pairs.n_pairs > kMostPairs) return 0;
    Evaluator evaluator(*model().network, species, cell, skin);
    evaluator.compute(positions.data(), {energies.data(), forces.data(), virial});
    if ((flags >> 3 & 7) != 0) {
      for (double& x : positions) x += 0.01 * (flags >> 3 & 7);
      evaluator.compute(positions.data(), {energies.data(), forces.data(), virial});
    }
    for (double force : forces) {
      if (!(force - force == 0.0)) std::abort();  // a silent NaN
    }
  } catch (const StructureFault&) {
  } catch (const Coincidence&) {
  } catch (const NotFinite&) {
  } catch (const std::bad_alloc&) {
  }
  return 0;
}
