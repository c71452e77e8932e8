// Threads that share the blocks of one computation.
//
// What a block computes must not depend on which thread takes it, nor on how many there are: then
// neither do results. A crew that was inherited through fork makes threads of its own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "operations/workspace.h"

namespace equibit {

class Crew {
 public:
  /// The caller is one of the threads, so 1 starts none.
  explicit Crew(int threads = 1);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  int threads() const { return threads_; }

  /// Calls work(block, workspace) for blocks 0 … n−1, with a workspace of the thread's own that is
  /// reset before each call, and returns when all are done. Rethrows the first exception.
  template <typename Work>
  void each(int64_t n, const Work& work) {
    if (threads_ == 1 || n <= 1) {
      Workspace& workspace = *workspaces_[0];
      for (int64_t block = 0; block < n; ++block) {
        workspace.reset();
        work(block, workspace);
      }
      return;
    }
    share(n, work);
  }

 private:
  struct Pool;
  void share(int64_t n, const std::function<void(int64_t, Workspace&)>& work);

  int threads_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;
  std::unique_ptr<Pool> pool_;
};

}  // namespace equibit
