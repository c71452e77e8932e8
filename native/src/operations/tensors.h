// Named arrays as they come from a checked model file, and the checks before their first use.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace equibit {

/// The arrays do not describe the network that the configuration promises.
struct ModelFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tensor {
  enum class Type { kFloat32, kFloat64, kInt8, kInt32 };
  Type type;
  const void* data;
  std::vector<int64_t> shape;
};

class Tensors {
 public:
  void add(const std::string& name, Tensor tensor) { tensors_[name] = std::move(tensor); }

  bool has(const std::string& name) const { return tensors_.count(name) != 0; }

  std::vector<float> floats(const std::string& name, const std::vector<int64_t>& shape) const {
    return copy<float>(name, shape, Tensor::Type::kFloat32);
  }
  std::vector<double> doubles(const std::string& name, const std::vector<int64_t>& shape) const {
    return copy<double>(name, shape, Tensor::Type::kFloat64);
  }
  std::vector<int8_t> codes(const std::string& name, const std::vector<int64_t>& shape) const {
    return copy<int8_t>(name, shape, Tensor::Type::kInt8);
  }
  std::vector<int32_t> integers(const std::string& name, const std::vector<int64_t>& shape) const {
    return copy<int32_t>(name, shape, Tensor::Type::kInt32);
  }
  const std::vector<int64_t>& shape(const std::string& name) const { return find(name).shape; }

 private:
  const Tensor& find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw ModelFault("the tensor " + name + " is missing");
    return found->second;
  }

  template <typename T>
  std::vector<T> copy(const std::string& name, const std::vector<int64_t>& shape,
                      Tensor::Type type) const {
    const Tensor& tensor = find(name);
    if (tensor.type != type || tensor.shape != shape) {
      std::string text = "the tensor " + name + " has shape (";
      for (int64_t n : tensor.shape) text += std::to_string(n) + ",";
      text += ") or a type that do not fit the network; expected (";
      for (int64_t n : shape) text += std::to_string(n) + ",";
      throw ModelFault(text + ")");
    }
    int64_t count = 1;
    for (int64_t n : shape) count *= n;
    const T* data = static_cast<const T*>(tensor.data);
    return std::vector<T>(data, data + count);
  }

  std::map<std::string, Tensor> tensors_;
};

}  // namespace equibit
