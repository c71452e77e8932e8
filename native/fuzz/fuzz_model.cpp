// Any bytes as a model file. Built with the checksum left unchecked, since no mutation would pass
// it.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "files/faults.h"
#include "files/model.h"
#include "kernels/kernels.h"
#include "operations/evaluator.h"
#include "operations/faults.h"
#include "operations/tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace equibit;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  try {
    const LoadedModel model =
        load_model(std::vector<std::byte>(bytes, bytes + size), best_kernels());
    Evaluator evaluator(*model.network, {0, 0, 0}, Cell{}, 0.5);
    const double positions[9] = {0.0, 0.0, 0.0, 0.9, 0.1, 0.0, -0.2, 0.9, 0.3};
    double energies[3], forces[9];
    evaluator.compute(positions, {energies, forces, nullptr});
  } catch (const FileFault&) {
  } catch (const UnsupportedModel&) {
  } catch (const ModelFault&) {
  } catch (const NotFinite&) {
  } catch (const StructureFault&) {
  }
  return 0;
}
