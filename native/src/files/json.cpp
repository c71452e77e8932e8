#include "files/json.h"

#include <charconv>
#include <cmath>

#include "files/faults.h"

namespace equibit {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = read(0);
    space();
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  static constexpr int kDeepest = 64;

  [[noreturn]] void fail() const {
    throw FileFault("its header is not JSON: unexpected text at byte " + std::to_string(at_));
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }
  bool take(char c) {
    space();
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }
  void word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) fail();
    at_ += expected.size();
  }

  Json read(int depth) {
    if (depth > kDeepest) fail();
    space();
    Json value;
    switch (peek()) {
      case '{':
        ++at_;
        value.kind_ = Json::Kind::kObject;
        if (take('}')) return value;
        do {
          space();
          std::string key = string();
          if (value.find(key) != nullptr || !take(':')) fail();
          Json member = read(depth + 1);
          value.members_.emplace_back(std::move(key), std::move(member));
        } while (take(','));
        if (!take('}')) fail();
        return value;
      case '[':
        ++at_;
        value.kind_ = Json::Kind::kList;
        if (take(']')) return value;
        do {
          value.list_.push_back(read(depth + 1));
        } while (take(','));
        if (!take(']')) fail();
        return value;
      case '"':
        value.kind_ = Json::Kind::kText;
        value.text_ = string();
        return value;
      case 't':
        word("true");
        value.kind_ = Json::Kind::kBoolean;
        value.boolean_ = true;
        return value;
      case 'f':
        word("false");
        value.kind_ = Json::Kind::kBoolean;
        return value;
      case 'n':
        word("null");
        return value;
      default:
        return number();
    }
  }

  Json number() {
    const size_t begin = at_;
    const auto digits = [&] {
      if (peek() < '0' || peek() > '9') fail();
      while (peek() >= '0' && peek() <= '9') ++at_;
    };
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits();
    }
    bool real = false;
    if (peek() == '.') {
      real = true;
      ++at_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      real = true;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    Json value;
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    if (!real) {
      const auto [end, error] = std::from_chars(first, last, value.integer_);
      if (error == std::errc() && end == last) {
        value.kind_ = Json::Kind::kInteger;
        value.number_ = static_cast<double>(value.integer_);
        return value;
      }
    }
    const auto [end, error] = std::from_chars(first, last, value.number_);
    if (error != std::errc() || end != last || !std::isfinite(value.number_)) fail();
    value.kind_ = Json::Kind::kReal;
    return value;
  }

  uint32_t hex() {
    uint32_t code = 0;
    for (int k = 0; k < 4; ++k, ++at_) {
      const char c = peek();
      if (c >= '0' && c <= '9') {
        code = 16 * code + static_cast<uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        code = 16 * code + static_cast<uint32_t>(c - 'a' + 10);
      } else if (c >= 'A' && c <= 'F') {
        code = 16 * code + static_cast<uint32_t>(c - 'A' + 10);
      } else {
        fail();
      }
    }
    return code;
  }

  void append(std::string& text, uint32_t code) {
    const auto tail = [&](int shift) {
      text += static_cast<char>(0x80 | ((code >> shift) & 0x3f));
    };
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else if (code < 0x800) {
      text += static_cast<char>(0xc0 | (code >> 6));
      tail(0);
    } else if (code < 0x10000) {
      text += static_cast<char>(0xe0 | (code >> 12));
      tail(6);
      tail(0);
    } else {
      text += static_cast<char>(0xf0 | (code >> 18));
      tail(12);
      tail(6);
      tail(0);
    }
  }

  std::string string() {
    if (peek() != '"') fail();
    ++at_;
    std::string text;
    for (;;) {
      if (at_ >= text_.size()) fail();
      const char c = text_[at_++];
      if (c == '"') return text;
      if (static_cast<unsigned char>(c) < 0x20) fail();
      if (c != '\\') {
        text += c;
        continue;
      }
      const char escape = peek();
      ++at_;
      switch (escape) {
        case '"':
          text += '"';
          break;
        case '\\':
          text += '\\';
          break;
        case '/':
          text += '/';
          break;
        case 'b':
          text += '\b';
          break;
        case 'f':
          text += '\f';
          break;
        case 'n':
          text += '\n';
          break;
        case 'r':
          text += '\r';
          break;
        case 't':
          text += '\t';
          break;
        case 'u': {
          uint32_t code = hex();
          if (code >= 0xd800 && code < 0xdc00) {
            if (peek() != '\\') fail();
            ++at_;
            if (peek() != 'u') fail();
            ++at_;
            const uint32_t low = hex();
            if (low < 0xdc00 || low >= 0xe000) fail();
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
          } else if (code >= 0xdc00 && code < 0xe000) {
            fail();
          }
          append(text, code);
          break;
        }
        default:
          fail();
      }
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

namespace {

[[noreturn]] void wrong(const char* what, const char* expected) {
  throw FileFault(std::string("its header is not usable: ") + what + " is not " + expected);
}

}  // namespace

Json Json::parse(std::string_view text) { return JsonReader(text).whole(); }

bool Json::boolean(const char* what) const {
  if (kind_ != Kind::kBoolean) wrong(what, "true or false");
  return boolean_;
}

int64_t Json::integer(const char* what) const {
  if (kind_ != Kind::kInteger) wrong(what, "an integer");
  return integer_;
}

double Json::number(const char* what) const {
  if (kind_ != Kind::kInteger && kind_ != Kind::kReal) wrong(what, "a number");
  return number_;
}

const std::string& Json::text(const char* what) const {
  if (kind_ != Kind::kText) wrong(what, "a text");
  return text_;
}

const std::vector<Json>& Json::list(const char* what) const {
  if (kind_ != Kind::kList) wrong(what, "a list");
  return list_;
}

const std::vector<std::pair<std::string, Json>>& Json::members(const char* what) const {
  if (kind_ != Kind::kObject) wrong(what, "an object");
  return members_;
}

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : members_) {
    if (name == key) return &value;
  }
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  const Json* found = find(key);
  if (found == nullptr) {
    throw FileFault("its header is not usable: " + std::string(key) + " is missing");
  }
  return *found;
}

}  // namespace equibit
