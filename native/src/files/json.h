// JSON text from a file that nobody vouches for: strict, bounded in depth, never half-read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace equibit {

class Json {
 public:
  enum class Kind { kNull, kBoolean, kInteger, kReal, kText, kList, kObject };

  /// Throws FileFault where the text is not exactly one JSON value.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }

  // Each throws FileFault, naming `what`, where the value is of another kind.
  bool boolean(const char* what) const;
  int64_t integer(const char* what) const;
  double number(const char* what) const;
  const std::string& text(const char* what) const;
  const std::vector<Json>& list(const char* what) const;
  const std::vector<std::pair<std::string, Json>>& members(const char* what) const;

  /// A member of an object, or null where there is none.
  const Json* find(std::string_view key) const;
  /// Throws FileFault where there is none.
  const Json& at(std::string_view key) const;

 private:
  friend class JsonReader;

  Kind kind_ = Kind::kNull;
  bool boolean_ = false;
  int64_t integer_ = 0;
  double number_ = 0.0;
  std::string text_;
  std::vector<Json> list_;
  std::vector<std::pair<std::string, Json>> members_;
};

}  // namespace equibit
