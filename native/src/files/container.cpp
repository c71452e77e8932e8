#include "files/container.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>

#include "files/faults.h"
#include "files/sha256.h"

namespace equibit {
namespace {

// Tensors are used as they lie in the file.
static_assert(std::endian::native == std::endian::little);

constexpr size_t kMostBytes = size_t{1} << 32;
constexpr std::string_view kBefore = "{\"sha256\":\"", kBetween = "\",\"header\":";
constexpr size_t kDigest = 64;

[[noreturn]] void damaged(const std::string& why) {
  throw FileFault("the file is damaged: " + why + "; copy or download it again");
}

struct Type {
  const char *stored, *name;
  size_t bytes;
};
constexpr Type kTypes[] = {{"BOOL", "bool", 1},   {"I8", "int8", 1},     {"U8", "uint8", 1},
                           {"I16", "int16", 2},   {"U16", "uint16", 2},  {"I32", "int32", 4},
                           {"U32", "uint32", 4},  {"I64", "int64", 8},   {"U64", "uint64", 8},
                           {"F16", "float16", 2}, {"F32", "float32", 4}, {"F64", "float64", 8}};

/// One tensor of the layout, and where it begins and ends in the data.
struct Placed {
  StoredTensor tensor;
  size_t begin, end;
};

Placed placed(const std::string& name, const Json& entry, const std::byte* data, size_t size) {
  const std::string& stored = entry.at("dtype").text("dtype");
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const Type& t) { return stored == t.stored; });
  if (type == std::end(kTypes)) damaged("tensor " + name + " is of an unknown type");
  Placed result{{type->name, {}, nullptr, 0}, 0, 0};
  size_t count = 1;
  for (const Json& axis : entry.at("shape").list("shape")) {
    const int64_t n = axis.integer("shape");
    if (n < 0 || (n > 0 && count > size / static_cast<size_t>(n))) {
      damaged("tensor " + name + " is larger than the file");
    }
    count *= static_cast<size_t>(n);
    result.tensor.shape.push_back(n);
  }
  const auto& offsets = entry.at("data_offsets").list("data_offsets");
  if (offsets.size() != 2) damaged("tensor " + name + " has no place");
  const int64_t begin = offsets[0].integer("data_offsets"),
                end = offsets[1].integer("data_offsets");
  if (begin < 0 || end < begin || static_cast<uint64_t>(end) > size ||
      static_cast<uint64_t>(end - begin) != count * type->bytes) {
    damaged("tensor " + name + " does not fit its place");
  }
  result.begin = static_cast<size_t>(begin);
  result.end = static_cast<size_t>(end);
  result.tensor.data = data + begin;
  result.tensor.bytes = result.end - result.begin;
  return result;
}

std::string digest_of(std::string_view body, const std::map<std::string, StoredTensor>& tensors) {
  Sha256 sha;
  sha.update(body.data(), body.size());
  for (const auto& [name, tensor] : tensors) {
    std::string line = "\n" + name + " " + tensor.type + " ";
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      if (axis > 0) line += ',';
      line += std::to_string(tensor.shape[axis]);
    }
    line += "\n";
    sha.update(line.data(), line.size());
    sha.update(tensor.data, tensor.bytes);
  }
  return sha.finish();
}

}  // namespace

int64_t StoredTensor::count() const {
  int64_t n = 1;
  for (int64_t axis : shape) n *= axis;
  return n;
}

Container::Container(std::vector<std::byte> bytes, const std::string& kind, int64_t version)
    : bytes_(std::move(bytes)) {
  if (bytes_.empty()) throw FileFault("the file is empty; copy or download it again");
  const char* text = reinterpret_cast<const char*>(bytes_.data());
  if (bytes_.size() <= 8 || text[8] != '{') {
    throw FileFault("this is not an equibit file, or its beginning is damaged");
  }
  uint64_t length = 0;
  std::memcpy(&length, text, 8);
  if (length >= uint64_t{1} << 40) {
    throw FileFault("this is not an equibit file, or its beginning is damaged");
  }
  if (length > bytes_.size() - 8) {
    throw FileFault("the file is truncated: it ends within its header; copy or download it again");
  }
  const Json layout = Json::parse({text + 8, static_cast<size_t>(length)});
  const std::byte* data = bytes_.data() + 8 + length;
  const size_t size = bytes_.size() - 8 - static_cast<size_t>(length);

  const Json* metadata = layout.find("__metadata__");
  const Json* found = metadata == nullptr ? nullptr : metadata->find("equibit");
  if (found == nullptr) throw FileFault("a safetensors file, but not one that equibit wrote");
  const std::string& envelope = found->text("equibit");

  std::vector<Placed> places;
  for (const auto& [name, entry] : layout.members("the layout")) {
    if (name == "__metadata__") continue;
    places.push_back(placed(name, entry, data, size));
    tensors_.emplace(name, places.back().tensor);
  }
  // Without gaps, so that no byte escapes the checksum.
  std::sort(places.begin(), places.end(), [](const Placed& a, const Placed& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  size_t next = 0;
  for (const Placed& place : places) {
    if (place.begin != next) damaged("its tensors overlap or leave gaps");
    next = place.end;
  }
  if (next != size) throw FileFault("the file is truncated or damaged: header and length disagree");

  const std::string_view all = envelope;
  const size_t body_at = kBefore.size() + kDigest + kBetween.size();
  if (all.size() < body_at + 3 || all.substr(0, kBefore.size()) != kBefore ||
      all.substr(kBefore.size() + kDigest, kBetween.size()) != kBetween || all.back() != '}') {
    damaged("its header is not readable");
  }
  const std::string_view body = all.substr(body_at, all.size() - body_at - 1);
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  if (all.substr(kBefore.size(), kDigest) != digest_of(body, tensors_)) {
    damaged("its checksum does not match");
  }
#endif
  header_ = Json::parse(body);
  const std::string& held = header_.at("kind").text("kind");
  if (held != kind) {
    throw FileFault("it holds a " + held + ", but a " + kind + " is needed here");
  }
  const int64_t its = header_.at("version").integer("version");
  if (its > version) {
    throw FileFault("it is a " + kind + " of version " + std::to_string(its) +
                    ", but this equibit reads up to version " + std::to_string(version) +
                    "; upgrade equibit");
  }
  if (its < 1) damaged("its version is not one");
}

std::vector<std::byte> read_file(const std::string& path) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) throw FileFault(path + ": " + std::strerror(errno));
  std::vector<std::byte> bytes;
  std::vector<std::byte> chunk(size_t{1} << 16);
  for (;;) {
    const size_t n = std::fread(chunk.data(), 1, chunk.size(), file.get());
    bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(n));
    if (bytes.size() > kMostBytes) throw FileFault(path + " is larger than any model");
    if (n < chunk.size()) break;
  }
  if (std::ferror(file.get())) throw FileFault(path + ": " + std::strerror(errno));
  return bytes;
}

}  // namespace equibit
