#include "operations/crew.h"

#include <unistd.h>

#include <algorithm>

namespace equibit {

struct Crew::Pool {
  pid_t process = getpid();
  std::mutex mutex;
  std::condition_variable started, finished;
  std::vector<std::thread> helpers;
  const std::function<void(int64_t, Workspace&)>* work = nullptr;
  int64_t next = 0, end = 0;
  int64_t round = 0;
  int busy = 0;
  bool closing = false;
  std::exception_ptr error;

  /// Takes blocks until none is left; `lock` is held on entry and on return.
  void take_blocks(std::unique_lock<std::mutex>& lock, Workspace& workspace) {
    while (next < end) {
      const int64_t block = next++;
      lock.unlock();
      std::exception_ptr failed;
      try {
        workspace.reset();
        (*work)(block, workspace);
      } catch (...) {
        failed = std::current_exception();
      }
      lock.lock();
      if (failed != nullptr) {
        if (error == nullptr) error = failed;
        next = end;
      }
    }
  }

  void help(Workspace& workspace) {
    std::unique_lock lock(mutex);
    int64_t seen = 0;
    while (true) {
      started.wait(lock, [&] { return closing || round != seen; });
      if (closing) return;
      seen = round;
      ++busy;
      take_blocks(lock, workspace);
      if (--busy == 0) finished.notify_one();
    }
  }
};

Crew::Crew(int threads) : threads_(std::max(threads, 1)) {
  for (int t = 0; t < threads_; ++t) workspaces_.push_back(std::make_unique<Workspace>());
}

Crew::~Crew() {
  if (pool_ == nullptr) return;
  if (pool_->process != getpid()) {
    pool_.release();  // the threads stayed with the parent process
    return;
  }
  {
    const std::lock_guard lock(pool_->mutex);
    pool_->closing = true;
  }
  pool_->started.notify_all();
  for (std::thread& helper : pool_->helpers) helper.join();
}

void Crew::share(int64_t n, const std::function<void(int64_t, Workspace&)>& work) {
  if (pool_ != nullptr && pool_->process != getpid()) pool_.release();
  if (pool_ == nullptr) {
    pool_ = std::make_unique<Pool>();
    for (int t = 1; t < threads_; ++t) {
      pool_->helpers.emplace_back(
          [pool = pool_.get(), workspace = workspaces_[t].get()] { pool->help(*workspace); });
    }
  }
  Pool& pool = *pool_;
  std::unique_lock lock(pool.mutex);
  pool.work = &work;
  pool.next = 0;
  pool.end = n;
  pool.error = nullptr;
  ++pool.round;
  pool.started.notify_all();
  pool.take_blocks(lock, *workspaces_[0]);
  pool.finished.wait(lock, [&] { return pool.busy == 0; });
  pool.work = nullptr;
  if (pool.error != nullptr) std::rethrow_exception(pool.error);
}

}  // namespace equibit
