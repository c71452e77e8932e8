// `equibit.networks.equivariant_transformer` without torch: energies and an explicit reverse pass.
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

struct TransformerConfig {
  int elements;
  int layers;
  int heads;
  int scalars;     // F
  int channels;    // C of each degree ℓ ≥ 1, 0 without
  int max_degree;  // L
  int hidden;      // width of the update network's hidden layer
  int splines;
  double cutoff;
  bool softmax;
  bool axial;  // parts of vectors along a bond reach every degree
  bool robust;
  int attention_highest;  // code of queries and keys, 0 where they are not rounded
  bool local_frames;      // vectors are rounded in the atoms' own axes
  bool orient;            // turn structures into an orientation of their own first
};

class EquivariantTransformer final : public Network {
 public:
  /// Throws ModelFault where the tensors do not fit the configuration.
  EquivariantTransformer(const TransformerConfig& config, const Tensors& tensors,
                         const Kernels& kernels);

  double cutoff() const override { return config_.cutoff; }
  int elements() const override { return config_.elements; }
  const char* kernels_name() const override { return kernels_->name; }

  std::vector<Arithmetic> arithmetic() const override;
  void compute(PairList& pairs, const int32_t* species, Workspace& workspace, Crew& crew,
               const Outputs& outputs) const override;

 private:
  struct Layer {
    std::vector<float> norm_gain, norm_bias, query_factor, table;
    std::vector<uint16_t> half_table, half_differences;  // where the reverse pass is in halves
    float query_step, key_step;                          // that were learned, or 0
    Product qkv, output;
    std::vector<float> update_gain, update_bias;
    std::vector<Product> mix;  // by degree
    std::vector<std::vector<float>> product_weights;
    Product hidden, update;
  };
  struct SparseCoupling {
    int l1, l2, l3;
    std::vector<int32_t> terms;
    std::vector<float> values;
  };
  struct State;
  class Evaluation;

  int table_columns(bool first) const;
  int64_t table_stride(bool first) const;  // columns, padded
  int64_t half_stride(bool first) const;   // the same of 16-bit floats
  void narrow_tables();
  Coupling coupling(const Layer& layer, size_t path) const;

  TransformerConfig config_;
  const Kernels* kernels_;
  const HalfKernels* halves_ = nullptr;  // where edges are reversed in 16-bit floats
  EnergyReference reference_;
  std::vector<float> embedding_;
  std::vector<Layer> layers_;
  std::vector<SparseCoupling> couplings_;
  std::vector<double> wigner_[kMaxDegree + 1];  // couplings (1, ℓ−1, ℓ)
  std::vector<float> head_gain_, head_bias_;
  Product head_hidden_, head_output_;
  std::vector<float> ones_;
};

}  // namespace equibit
