// From a model file to a network that runs, without Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "operations/network.h"

namespace equibit {

struct LoadedModel {
  std::string name;
  std::string recipe;             // or fp32
  std::vector<int32_t> elements;  // atomic numbers, ascending
  std::unique_ptr<const Network> network;
};

/// Checks every byte before any is used. Throws FileFault, UnsupportedModel, and ModelFault where
/// the tensors do not fit the network.
LoadedModel load_model(std::vector<std::byte> bytes, const Kernels& kernels);

}  // namespace equibit
