#include "core/thread_pool.h"

namespace edge_sdk {

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
  } catch (...) {  // the system has no more threads: those that run must end before their members go
    Stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { Stop(); }

void ThreadPool::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  start_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

ThreadSource ThreadPool::source() {
  ThreadSource source;
  source.context = this;
  source.threads = static_cast<int>(workers_.size()) + 1;
  source.launch = [](void* context, int count, void (*task)(void*, int), void* argument) {
    static_cast<ThreadPool*>(context)->Launch(count, task, argument);
  };
  return source;
}

void ThreadPool::Launch(int count, void (*task)(void*, int), void* argument) {
  std::lock_guard<std::mutex> one_call(call_);
  std::unique_lock<std::mutex> lock(mutex_);
  task_ = task;
  argument_ = argument;
  next_ = 1;  // index 0 is the caller's
  count_ = count;
  start_.notify_all();
  lock.unlock();
  task(argument, 0);
  lock.lock();
  next_ = count_;  // what no worker has begun has nothing left to do: the leader is done
  finished_.wait(lock, [this] { return running_ == 0; });
  task_ = nullptr;
}

void ThreadPool::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    start_.wait(lock, [this] { return stopping_ || (task_ && next_ < count_); });
    if (stopping_) return;
    const int index = next_++;
    ++running_;
    lock.unlock();
    task_(argument_, index);
    lock.lock();
    if (--running_ == 0) finished_.notify_one();
  }
}

}  // namespace edge_sdk
