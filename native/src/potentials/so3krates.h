// `equibit.networks.so3krates` without torch: energies and an explicit reverse pass.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "operations/geometry.h"
#include "operations/network.h"
#include "operations/product.h"
#include "operations/tensors.h"
#include "operations/workspace.h"

namespace equibit {

struct So3kratesConfig {
  int elements;
  int layers;
  int heads;
  int features;              // F
  std::vector<int> degrees;  // ascending, ≥ 1
  int radial_basis;          // K
  double cutoff;
  bool robust;
  bool tabulated;         // the radial networks round nothing that depends on a distance
  int attention_highest;  // code of queries and keys, 0 where they are not rounded
};

class So3krates final : public Network {
 public:
  /// Throws ModelFault where the tensors do not fit the configuration. Radial networks are
  /// tabulated here, to float32 round-off, unless rounded activations make them staircases.
  So3krates(const So3kratesConfig& config, const Tensors& tensors, const Kernels& kernels);
  ~So3krates() override;

  double cutoff() const override { return config_.cutoff; }
  int elements() const override { return config_.elements; }
  const char* kernels_name() const override { return kernels_->name; }

  std::vector<Arithmetic> arithmetic() const override;
  void compute(PairList& pairs, const int32_t* species, Workspace& workspace, Crew& crew,
               const Outputs& outputs) const override;

 private:
  struct Layer;
  struct State;
  class Evaluation;

  void tabulate(const Tensors& tensors, const std::string& name, Layer& layer) const;
  RadialGrid grid() const;
  /// exp(−β (e^{−d} − μ_k)²) of a distance, and −2β (e^{−d} − μ_k) · that, ∂/∂e^{−d}.
  void radial_basis(double decay, double* values, double* slopes) const;

  So3kratesConfig config_;
  const Kernels* kernels_;
  int degrees_, components_;  // |D| and Σ(2ℓ+1)
  int64_t stride_;            // of a row of the table, 2F padded
  EnergyReference reference_;
  std::vector<float> embedding_, ones_;
  std::vector<Layer> layers_;
  Product head_first_, head_second_;
};

}  // namespace equibit
