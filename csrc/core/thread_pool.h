// Threads of our own, for callers that bring none.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "core/team.h"

namespace edge_sdk {

// threads - 1 workers that sleep between calls; the calling thread is the last one. Calls are taken one at a time.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  ThreadSource source();

 private:
  void Launch(int count, void (*task)(void*, int), void* argument);
  void Work();
  void Stop();

  std::mutex call_;  // one Launch at a time
  std::mutex mutex_;
  std::condition_variable start_, finished_;
  std::vector<std::thread> workers_;
  void (*task_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  int next_ = 0, count_ = 0, running_ = 0;
  bool stopping_ = false;
};

}  // namespace edge_sdk
