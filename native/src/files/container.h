// The container of `equibit.storage.container`: a safetensors file with a checked JSON header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "files/json.h"

namespace equibit {

struct StoredTensor {
  std::string type;  // NumPy's name: float32, uint8, …
  std::vector<int64_t> shape;
  const std::byte* data;  // little-endian, perhaps not aligned
  size_t bytes;

  int64_t count() const;
};

/// The bytes of a file, every one of them checked against its checksum.
class Container {
 public:
  /// `kind` is what the file must hold, `version` the newest that the caller reads. Throws
  /// FileFault: cut short, damaged, foreign, of another kind, newer.
  Container(std::vector<std::byte> bytes, const std::string& kind, int64_t version);

  Container(const Container&) = delete;  // tensors point into the bytes
  Container& operator=(const Container&) = delete;

  const Json& header() const { return header_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }

 private:
  std::vector<std::byte> bytes_;
  Json header_;
  std::map<std::string, StoredTensor> tensors_;
};

/// Throws FileFault where the file cannot be read, or is larger than any model.
std::vector<std::byte> read_file(const std::string& path);

}  // namespace equibit
