// Memory of one evaluation. It only grows, so repeated calls of one size allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace equibit {

class Workspace {
 public:
  /// Forget everything taken; what did not fit last time becomes one block, if there is memory.
  void reset() {
    const size_t wanted = used_ + used_ / 8;
    used_ = 0;
    if (extra_.empty()) return;
    extra_.clear();
    block_ = Block();
    try {
      block_ = Block(wanted);
    } catch (const std::bad_alloc&) {
      // The next evaluation may be smaller.
    }
  }

  /// Uninitialised memory for n values, aligned to 64 bytes, until the next reset.
  template <typename T>
  T* take(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 127) / 64 * 64;
    const size_t begin = used_;
    if (begin + bytes > block_.size) extra_.emplace_back(bytes);
    used_ += bytes;
    if (used_ <= block_.size) return reinterpret_cast<T*>(block_.data.get() + begin);
    return reinterpret_cast<T*>(extra_.back().data.get());
  }

  template <typename T>
  T* zeros(int64_t n) {
    T* data = take<T>(n);
    std::memset(static_cast<void*>(data), 0, static_cast<size_t>(n) * sizeof(T));
    return data;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  struct Block {
    Block() = default;
    explicit Block(size_t n)
        : data(static_cast<std::byte*>(::operator new[](n, std::align_val_t(64)))), size(n) {}
    std::unique_ptr<std::byte[], Free> data;
    size_t size = 0;
  };

  Block block_;
  std::vector<Block> extra_;
  size_t used_ = 0;
};

}  // namespace equibit
